"""Subjects, hashes, pin names, the error table and the object's types: the parts that need no kernel."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf import abi, hashes, libbpf
from bpf.bpffs import pin_name
from bpf.btf import Btf, BtfError
from bpf.build import object_path
from bpf.dataplane import BadSubject, DataPlaneError
from bpf.program import Build, schema_hash
from bpf.subjects import parse, parse_ban


@pytest.mark.parametrize(
    ("text", "canonical", "bits"),
    [
        ("203.0.113.7", "203.0.113.7", 128),
        ("203.0.113.7/32", "203.0.113.7", 128),
        ("203.0.113.7/24", "203.0.113.0/24", 120),
        ("2001:DB8::1", "2001:db8::1", 128),
        ("2001:db8:0:1::5/64", "2001:db8:0:1::/64", 64),
        ("::ffff:203.0.113.7", "203.0.113.7", 128),
        ("0.0.0.0/0", "0.0.0.0/0", 96),
        ("::/0", "::/0", 0),
    ],
)
def test_a_subject_has_one_canonical_form(text: str, canonical: str, bits: int) -> None:
    assert str(parse(text)) == canonical
    assert parse(text).bits == bits
    assert parse(str(parse(text))) == parse(text)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.one_of(st.text(max_size=60), st.from_regex(r"[0-9a-f:./]{1,45}", fullmatch=True)))
def test_any_text_is_a_subject_or_one_kind_of_error(text: str) -> None:
    for read in (parse, parse_ban):
        try:
            subject = read(text)
        except BadSubject as error:
            assert str(error)  # noqa: PT017
        else:
            assert parse(str(subject)) == subject


def test_a_prefix_filter_covers_every_address_of_the_prefix() -> None:
    subject = parse("10.64.0.0/13")

    slots = set(hashes.prefix_slots(subject.addr, subject.bits, is_ip4=True))

    assert slots == set(range(0x0A40, 0x0A48))
    assert set(hashes.prefix_slots(parse("10.64.7.0/24").addr, 120, is_ip4=True)) == {0x0A40}


def test_a_fingerprint_depends_on_32_bytes_and_on_how_many_there_are() -> None:
    base = hashes.fingerprint(b"a" * 32)

    assert hashes.fingerprint(b"a" * 40) == base
    assert hashes.fingerprint(b"a" * 31 + b"b") != base
    assert hashes.fingerprint(b"a") != hashes.fingerprint(b"a\0")


def test_filter_slots_differ_between_an_address_and_its_64() -> None:
    keys = np.zeros(2, abi.BAN_KEY)
    keys["bits"] = (128, 64)

    one, other = hashes.ban_slots(keys, 7).tolist()

    assert one != other


@pytest.mark.parametrize("name", ["eth0", "eth0.100", "wg-home", "br_lan", "vlan@x", "ens1f0np0"])
def test_pin_names_have_no_dots_and_no_clashes(name: str) -> None:
    assert "." not in pin_name(name)
    assert pin_name(name) != pin_name(name + ".")


@pytest.mark.parametrize(("attempt", "number"), libbpf.CAUSES)
def test_every_known_refusal_names_a_cause_and_keeps_the_number(attempt: str, number: int) -> None:
    error = libbpf.KernelRefused(attempt, "v0", number)

    assert errno.errorcode[number] in str(error)
    assert os.strerror(number) not in str(error)
    assert error.errno == number


def test_a_wrong_definition_is_never_taken_for_a_missing_right() -> None:
    """The perf event map without key and value sizes was once read as a platform's prohibition."""
    wrong = str(libbpf.KernelRefused("load", "events", errno.EINVAL))
    right = str(libbpf.KernelRefused("load", "events", errno.EPERM))

    assert "defined" in wrong
    assert "allowed" not in wrong
    assert "CAP_BPF" in right


def test_an_unknown_refusal_says_what_the_system_says() -> None:
    assert os.strerror(errno.EXDEV) in str(libbpf.KernelRefused("attach", "v0", errno.EXDEV))


def test_the_object_knows_every_structure_with_its_size() -> None:
    sizes = {name: getattr(abi, name).itemsize for name in abi.STRUCTS}

    assert sizes == {
        "EVENT": 64, "FLOW": 448, "FLOW_SIDE": 192, "FLOW_KEY": 40, "FLOW_SET": 32, "SAMPLE": 80, "STATS": 4096,
        "BAN_KEY": 20, "BAN": 24, "PREFIX": 20, "VACCINE_KEY": 16, "VACCINE": 24, "SOURCE_SET": 64,
        "SOURCE_KINDS": 24, "METER": 32, "INCIDENT": 16, "KNOBS": 248,
    }  # fmt: skip
    assert abi.REASON_NUMBERS["land"] == abi.DROP_FIRST
    assert abi.FLOW_STATES == ("new", "half_open", "established", "refused", "closed")
    assert len(abi.BUDGETS) == abi.KNOBS["budget"].shape[0]


def test_constants_that_python_repeats_are_those_of_the_header() -> None:
    header = (object_path().parents[2] / "bpf" / "shared.h").read_text()

    lines = [line.split() for line in header.splitlines() if line.startswith("#define TG_")]
    defined = {words[1]: words[2] for words in lines if len(words) > 2}
    for name, value in (
        ("TG_PAGE", abi.PAGE),
        ("TG_SNAPSHOT_PAGES", abi.SNAPSHOT_PAGES),
        ("TG_SNAPSHOT6_PAGES", abi.SNAPSHOT6_PAGES),
        ("TG_PREFIX_SLOTS", abi.PREFIX_SLOTS),
        ("TG_FINGERPRINT_BYTES", abi.FINGERPRINT_BYTES),
        ("TG_SAMPLE_MAX", abi.SAMPLE_MAX),
        ("TG_FLOW_WAYS", abi.FLOW_WAYS),
        ("TG_SOURCE_WAYS", abi.SOURCE_WAYS),
    ):
        assert int(defined[name]) == value
    assert "#define TG_FILTER_SLOTS (1 << 19)" in header
    assert abi.FILTER_SLOTS == 1 << 19


def test_another_table_size_is_another_schema() -> None:
    assert schema_hash(Build()) == schema_hash(Build())
    assert schema_hash(Build(max_bans=2_048)) != schema_hash(Build())


def test_a_table_size_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(DataPlaneError, match="power of two"):
        Build(flow_sets=1_000).sizes()


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(0, 255)), max_size=8), st.integers(0, 1_000_000))
def test_a_damaged_object_raises_one_kind_of_error(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(object_path().read_bytes())
    data = data[: max(cut % len(data), 64)] if cut % 3 == 0 else data
    for at, value in damage:
        data[at % min(len(data), 4_096)] = value

    try:
        Btf(bytes(data))
    except BtfError as error:
        assert str(error)  # noqa: PT017
