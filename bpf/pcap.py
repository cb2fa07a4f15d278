"""Reads capture files: pcap (microseconds and nanoseconds, either byte order) and pcapng, as Ethernet frames.

The file may be hostile: every length is checked and bounded, nothing is read twice, and whatever is wrong raises
``CaptureError`` and nothing else. Raw IP, Linux cooked and BSD loopback frames are given an Ethernet header; other link
types are refused with a sentence. Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, tcpdump.org link types.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

FRAME_MAX = 262_144
BLOCK_MAX = 16 << 20

_MACS = b"\2\0\0\0\0\1\2\0\0\0\0\2"
ETHERNET, RAW_IP, NULL, LOOP, COOKED, COOKED2, IP4, IP6 = 1, 101, 0, 108, 113, 276, 228, 229
_RAW_IP_TOO = (12, 14)  #: what some systems call raw IP
_IP6_FAMILIES = (10, 24, 28, 30)  #: AF_INET6 of Linux, NetBSD, FreeBSD, macOS


class CaptureError(ValueError):
    """The file is no capture that can be read, or ends in the middle. ``str()`` is one sentence."""


class Frame(NamedTuple):
    """at_ns: nanoseconds since 1970 by the capture's clock. wire_bytes: its length before the capture cut it."""

    at_ns: int
    wire_bytes: int
    data: bytes


@dataclass(slots=True)
class _Interface:
    link_type: int
    units: int = 1_000_000
    offset_s: int = 0

    def to_ns(self, stamp: int) -> int:
        return self.offset_s * 1_000_000_000 + stamp * 1_000_000_000 // self.units


@dataclass(slots=True)
class _Pcapng:
    order: str
    interfaces: list[_Interface] = field(default_factory=list)


def read_capture(path: Path) -> Iterator[Frame]:
    """Frames in file order. Raises CaptureError; frames before the broken place have been given by then."""
    try:
        with path.open("rb") as file:
            yield from read_stream(file)
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror}") from error


def read_stream(file: BinaryIO) -> Iterator[Frame]:
    """As ``read_capture``, from an open file."""
    magic = file.read(4)
    if magic == b"\x0a\x0d\x0d\x0a":
        yield from _read_pcapng(file)
        return
    formats = {
        b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
        b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
    }  # fmt: skip
    if magic not in formats:
        raise CaptureError("not a capture file: it starts like neither pcap nor pcapng")
    order, ns_per_unit = formats[magic]
    yield from _read_pcap(file, order, ns_per_unit)


def _exactly(file: BinaryIO, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise CaptureError(f"the capture ends inside {what}")
    return data


def _read_pcap(file: BinaryIO, order: str, ns_per_unit: int) -> Iterator[Frame]:
    _major, _minor, _zone, _sigfigs, _snaplen, network = struct.unpack(
        f"{order}HHiIII", _exactly(file, 20, "its header")
    )
    link_type = network & 0xFFFF
    _check_link_type(link_type)
    record = struct.Struct(f"{order}IIII")
    while header := file.read(16):
        if len(header) < 16:
            raise CaptureError("the capture ends inside a frame header")
        seconds, fraction, captured, length = record.unpack(header)
        if captured > FRAME_MAX:
            raise CaptureError(f"a frame claims {captured} bytes; at most {FRAME_MAX} are possible")
        data = _exactly(file, captured, "a frame")
        yield _frame(seconds * 1_000_000_000 + fraction * ns_per_unit, length, data, link_type)


def _read_pcapng(file: BinaryIO) -> Iterator[Frame]:
    section = _section_header(file)
    while head := file.read(8):
        if len(head) < 8:
            raise CaptureError("the capture ends inside a block header")
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            section = _section_header(file, head[4:])
            continue
        kind, length = struct.unpack(f"{section.order}II", head)
        if length < 12 or length > BLOCK_MAX or length % 4:
            raise CaptureError(f"a block claims {length} bytes")
        body = _exactly(file, length - 8, "a block")[:-4]
        frame = _block(section, kind, body)
        if frame is not None:
            yield frame


def _section_header(file: BinaryIO, length_bytes: bytes = b"") -> _Pcapng:
    length_bytes = length_bytes or _exactly(file, 4, "the section header")
    magic = _exactly(file, 4, "the section header")
    order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(magic)
    if order is None:
        raise CaptureError("the section header has no known byte order")
    (length,) = struct.unpack(f"{order}I", length_bytes)
    if length < 28 or length > BLOCK_MAX or length % 4:
        raise CaptureError(f"the section header claims {length} bytes")
    _exactly(file, length - 12, "the section header")
    return _Pcapng(order)


def _block(section: _Pcapng, kind: int, body: bytes) -> Frame | None:
    order = section.order
    if kind == 1:  # interface description
        if len(body) < 8:
            raise CaptureError("an interface description is too short")
        (link_type,) = struct.unpack_from(f"{order}H", body)
        section.interfaces.append(_described(_Interface(link_type), body[8:], order))
        return None
    if kind == 6:  # enhanced packet
        if len(body) < 20:
            raise CaptureError("a packet block is too short")
        number, high, low, captured, length = struct.unpack_from(f"{order}IIIII", body)
        interface = _interface(section, number)
        return _cut(interface, interface.to_ns(high << 32 | low), captured, length, body[20:])
    if kind == 3:  # simple packet: no time
        if len(body) < 4:
            raise CaptureError("a packet block is too short")
        (length,) = struct.unpack_from(f"{order}I", body)
        return _cut(_interface(section, 0), 0, min(length, len(body) - 4), length, body[4:])
    if kind == 2:  # the old packet block
        if len(body) < 20:
            raise CaptureError("a packet block is too short")
        number, _drops, high, low, captured, length = struct.unpack_from(f"{order}HHIIII", body)
        interface = _interface(section, number)
        return _cut(interface, interface.to_ns(high << 32 | low), captured, length, body[20:])
    return None  # statistics, names, secrets, comments


def _described(interface: _Interface, options: bytes, order: str) -> _Interface:
    """Options 9 (resolution of time stamps) and 14 (their offset)."""
    at = 0
    while at + 4 <= len(options):
        code, length = struct.unpack_from(f"{order}HH", options, at)
        value = options[at + 4 : at + 4 + length]
        if code == 0 or len(value) < length:
            break
        if code == 9 and length == 1:
            exponent = value[0] & 0x7F
            if exponent > (63 if value[0] & 0x80 else 19):
                raise CaptureError("the resolution of the time stamps is absurd")
            interface.units = 2**exponent if value[0] & 0x80 else 10**exponent
        elif code == 14 and length == 8:
            (interface.offset_s,) = struct.unpack(f"{order}q", value)
        at += 4 + (length + 3 & ~3)
    return interface


def _interface(section: _Pcapng, number: int) -> _Interface:
    if number >= len(section.interfaces):
        raise CaptureError(f"a packet names interface {number}, which was not described")
    interface = section.interfaces[number]
    _check_link_type(interface.link_type)
    return interface


def _cut(interface: _Interface, at_ns: int, captured: int, length: int, data: bytes) -> Frame:
    if captured > len(data) or captured > FRAME_MAX:
        raise CaptureError("a packet block claims more than it holds")
    return _frame(at_ns, length, data[:captured], interface.link_type)


def _check_link_type(link_type: int) -> None:
    known = (ETHERNET, RAW_IP, NULL, LOOP, COOKED, COOKED2, IP4, IP6, *_RAW_IP_TOO)
    if link_type not in known:
        raise CaptureError(
            f"link type {link_type} is not Ethernet, raw IP, Linux cooked or loopback; "
            "capture on an Ethernet interface, or convert the file"
        )


def _frame(at_ns: int, length: int, data: bytes, link_type: int) -> Frame:
    """With an Ethernet header in front, whatever was there."""
    length = max(length, len(data))
    if link_type == ETHERNET:
        return Frame(at_ns, length, data)
    if link_type == COOKED:
        header, protocol = 16, data[14:16]
    elif link_type == COOKED2:
        header, protocol = 20, data[0:2]
    elif link_type in (NULL, LOOP):
        header = 4
        number = int.from_bytes(data[:4], "big" if link_type == LOOP or data[:2] == b"\0\0" else "little")
        protocol = b"\x08\x00" if number == 2 else b"\x86\xdd" if number in _IP6_FAMILIES else b"\x88\xb5"
    else:
        header = 0
        protocol = b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\x00"
    inner = data[header:]
    return Frame(at_ns, 14 + max(length - header, len(inner)), _MACS + protocol.ljust(2, b"\0") + inner)
