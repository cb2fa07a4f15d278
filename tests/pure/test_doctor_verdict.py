"""The doctor's verdict: which answers of a host mean that it can protect."""

import pytest

from actors.admin.doctor.check import Check, State, Weight, bad, enforcement, exit_code, good, unclear

WHOLE = (
    "capabilities", "bpf_object", "libbpf", "ring_buffer", "xdp_native", "xdp_generic", "tcx", "nft", "nft_rights",
)  # fmt: skip


def host(*missing: str, weight: Weight = Weight.USEFUL) -> list[Check]:
    return [bad(name, "", "", "", weight) if name in missing else good(name) for name in WHOLE]


def test_a_host_with_everything_protects_twice() -> None:
    assert enforcement(host()) == ["native XDP", "nftables"]
    assert exit_code(host()) == 0


@pytest.mark.parametrize(
    ("missing", "ways"),
    [
        (["xdp_native"], ["generic XDP", "nftables"]),
        (["xdp_native", "xdp_generic"], ["TCX", "nftables"]),
        (["libbpf"], ["nftables"]),
        (["bpf_object"], ["nftables"]),
        (["nft"], ["native XDP"]),
        (["nft_rights"], ["native XDP"]),
    ],
)
def test_a_host_that_lacks_something_takes_the_next_way_and_is_degraded(missing: list[str], ways: list[str]) -> None:
    assert enforcement(host(*missing)) == ways
    assert exit_code(host(*missing)) == 6


def test_a_host_whose_program_only_bcc_can_make_has_it_and_is_degraded() -> None:
    checks = [*host("bpf_object"), good("bcc")]

    assert enforcement(checks) == ["native XDP", "nftables"]
    assert exit_code(checks) == 6


def test_a_host_that_can_refuse_no_packet_can_only_watch() -> None:
    assert exit_code(host("capabilities", "nft_rights")) == 1


def test_what_is_unknown_is_never_counted_as_protection() -> None:
    checks = [unclear(name, "") for name in WHOLE]

    assert enforcement(checks) == []
    assert exit_code(checks) == 1


def test_a_note_degrades_nothing() -> None:
    checks = [*host(), bad("service_user", "", "", "", Weight.NOTE), unclear("time_sync", "")]

    assert exit_code(checks) == 0


def test_a_check_is_a_plain_document() -> None:
    document = bad("nft", "not installed", "no filter", "apt-get install nftables", Weight.VITAL).document()

    assert document == {
        "name": "nft",
        "state": State.NO,
        "says": "not installed",
        "consequence": "no filter",
        "remedy": "apt-get install nftables",
        "weight": "vital",
    }
