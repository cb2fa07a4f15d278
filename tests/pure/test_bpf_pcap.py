"""Capture files: every dialect gives the same frames, and a broken one raises one kind of error."""

import io
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.pcap import CaptureError, Frame, read_stream

FRAMES = [
    (1_700_000_000_123_456_000, b"a" * 60),
    (1_700_000_001_000_000_000, b"b" * 61),
    (1_700_000_002_999_999_000, b"c"),
]
IP4_PACKET, IP6_PACKET = b"\x45" + b"4" * 19, b"\x60" + b"6" * 39


def pcap(
    order: str = "<", *, nano: bool = False, link: int = 1, frames: list[tuple[int, bytes]] | None = None
) -> bytes:
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65_535, link)]
    for at_ns, data in FRAMES if frames is None else frames:
        fraction = at_ns % 10**9 // (1 if nano else 1000)
        parts.append(struct.pack(f"{order}IIII", at_ns // 10**9, fraction, len(data), len(data) + 5) + data)
    return b"".join(parts)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def pcapng(order: str = "<", *, resolution: int = 6, link: int = 1, old: bool = False) -> bytes:
    options = struct.pack(f"{order}HHB3x", 9, 1, resolution) + struct.pack(f"{order}HH", 0, 0)
    parts = [section(order), block(order, 1, struct.pack(f"{order}HHI", link, 0, 0) + options)]
    units = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    for at_ns, data in FRAMES:
        stamp = -(-at_ns * units // 10**9)
        if old:
            head = struct.pack(f"{order}HHIIII", 0, 0, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data) + 5)
        else:
            head = struct.pack(f"{order}IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data) + 5)
        parts.append(block(order, 2 if old else 6, head + data))
        parts.append(block(order, 5, b"statistics.."))
    return b"".join(parts)


def read(data: bytes) -> list[Frame]:
    return list(read_stream(io.BytesIO(data)))


DIALECTS: dict[str, Callable[[], bytes]] = {
    "microseconds": pcap,
    "nanoseconds": lambda: pcap(nano=True),
    "big-endian": lambda: pcap(">"),
    "big-endian nanoseconds": lambda: pcap(">", nano=True),
    "pcapng": pcapng,
    "pcapng big-endian": lambda: pcapng(">"),
    "pcapng in nanoseconds": lambda: pcapng(resolution=9),
    "pcapng with the old packet block": lambda: pcapng(old=True),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_gives_the_same_frames(name: str) -> None:
    assert read(DIALECTS[name]()) == [Frame(at_ns, len(data) + 5, data) for at_ns, data in FRAMES]


def test_time_stamps_in_powers_of_two_are_understood() -> None:
    found = read(pcapng(resolution=0x80 | 30))

    assert all(abs(frame.at_ns - at_ns) < 2 for frame, (at_ns, _) in zip(found, FRAMES, strict=True))


def test_sections_may_follow_each_other_in_different_byte_orders() -> None:
    assert len(read(pcapng("<") + pcapng(">"))) == 6


@pytest.mark.parametrize(
    ("link", "packet", "ethertype", "inner"),
    [
        (101, IP4_PACKET, b"\x08\x00", IP4_PACKET),
        (101, IP6_PACKET, b"\x86\xdd", IP6_PACKET),
        (12, IP4_PACKET, b"\x08\x00", IP4_PACKET),
        (228, IP4_PACKET, b"\x08\x00", IP4_PACKET),
        (229, IP6_PACKET, b"\x86\xdd", IP6_PACKET),
        (0, b"\2\0\0\0" + IP4_PACKET, b"\x08\x00", IP4_PACKET),
        (0, b"\0\0\0\x1e" + IP6_PACKET, b"\x86\xdd", IP6_PACKET),
        (108, b"\0\0\0\x1c" + IP6_PACKET, b"\x86\xdd", IP6_PACKET),
        (113, b"\0" * 14 + b"\x86\xdd" + IP6_PACKET, b"\x86\xdd", IP6_PACKET),
        (276, b"\x08\x00" + b"\0" * 18 + IP4_PACKET, b"\x08\x00", IP4_PACKET),
    ],
)
def test_frames_without_ethernet_get_a_header(link: int, packet: bytes, ethertype: bytes, inner: bytes) -> None:
    (frame,) = read(pcap(link=link, frames=[(10**18, packet)]))

    assert frame.data[12:14] == ethertype
    assert frame.data[14:] == inner
    assert frame.wire_bytes == len(frame.data) + 5


@pytest.mark.parametrize("link", [105, 127, 147, 9])
def test_other_link_types_are_refused_in_words(link: int) -> None:
    with pytest.raises(CaptureError, match=f"link type {link}"):
        read(pcap(link=link))
    with pytest.raises(CaptureError, match=f"link type {link}"):
        read(pcapng(link=link))


def test_a_frame_that_claims_gigabytes_is_refused_before_memory_is_taken() -> None:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)

    with pytest.raises(CaptureError, match="claims"):
        read(head + struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 0x7FFFFFFF))
    with pytest.raises(CaptureError, match="claims"):
        read(section("<") + struct.pack("<II", 6, 0x7FFFFFF0))


@pytest.mark.parametrize("name", DIALECTS)
def test_a_file_cut_anywhere_gives_whole_frames_and_then_one_error(name: str) -> None:
    whole = DIALECTS[name]()

    for length in range(len(whole)):
        found = []
        try:
            for frame in read_stream(io.BytesIO(whole[:length])):
                found.append(frame)
        except CaptureError:
            pass
        assert found == read(whole)[: len(found)]


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(sorted(DIALECTS)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_damaged_files_raise_one_kind_of_error(name: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(DIALECTS[name]())
    for at, value in damage:
        data[at % len(data)] = value

    try:
        frames = read(bytes(data))
    except CaptureError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right, silence is not
    else:
        assert all(frame.wire_bytes >= len(frame.data) for frame in frames)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a"]))
def test_random_bytes_raise_one_kind_of_error(data: bytes, magic: bytes) -> None:
    try:
        read(magic + data)
    except CaptureError as error:
        assert str(error)  # noqa: PT017
