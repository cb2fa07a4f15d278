"""Vaccines, asked of the real data plane and of the fake alike."""

import time

import pytest

from bpf.dataplane import BadSubject, Ban, Policy, Stance, Vaccine
from bpf.hashes import fingerprint
from tests.contract.test_data_plane import SECOND, Case, case  # noqa: F401 — a fixture

HEAD = b"WORM/3 spread now to every host "


def test_a_vaccine_is_listed_and_proved_by_a_packet_that_begins_like_it(case: Case) -> None:  # noqa: F811
    vaccine = Vaccine(17, 7777, fingerprint(HEAD), time.monotonic_ns() + 600 * SECOND, 0xFFFF_FFFF, packets=7)
    before = case.plane.prove_payload(17, 7777, HEAD)

    case.plane.vaccinate([vaccine])
    asked = [(17, 7777, HEAD), (17, 7777, HEAD[:-1] + b"!"), (17, 7778, HEAD), (6, 7777, HEAD), (17, 7777, HEAD[:31])]
    proofs = [case.plane.prove_payload(*one) for one in asked]
    standing = case.plane.vaccines()
    case.plane.set_policy(Policy(stance=Stance.OBSERVE))
    observed = case.plane.prove_payload(17, 7777, HEAD)
    case.plane.unvaccinate([vaccine])

    assert standing == [vaccine]
    assert [proof.reason for proof in proofs] == ["vaccine", "clean", "clean", "clean", "clean"]
    assert [proof.drop for proof in (before, proofs[0], observed)] == [False, True, False]
    assert observed.reason == "vaccine"
    assert case.plane.vaccines() == []
    with pytest.raises(BadSubject):
        case.plane.prove_payload(1, 7777, HEAD)


def test_a_payload_is_proved_from_another_source_when_the_usual_one_is_banned(case: Case) -> None:  # noqa: F811
    case.plane.ban([Ban("198.51.100.1")])
    case.plane.vaccinate([Vaccine(6, 8080, fingerprint(HEAD))])

    proof = case.plane.prove_payload(6, 8080, HEAD)

    assert (proof.drop, proof.reason) == (True, "vaccine")


def test_a_vaccine_that_is_over_proves_nothing(case: Case) -> None:  # noqa: F811
    case.plane.vaccinate([Vaccine(6, 8080, fingerprint(HEAD), time.monotonic_ns() - SECOND)])

    assert case.plane.prove_payload(6, 8080, HEAD).reason == "clean"
