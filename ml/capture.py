"""Reads a capture and dissects headers: the learning side's own parser, independent of the kernel's.

Being written a second time is its purpose: where the kernel's counters and these disagree, one of them is wrong.
Reads classic pcap (both byte orders, micro- and nanoseconds) and the Ethernet link type; at most two VLAN tags,
IPv4 with options, IPv6 with at most six extension headers. What it cannot read it skips and counts.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LINK_ETHERNET: Final = 1
#: More than any interface delivers; a longer record is a broken file.
MAX_FRAME: Final = 262_144
_MAGIC: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_VLAN: Final = (0x8100, 0x88A8)
_EXTENSIONS: Final = (0, 43, 44, 51, 60)
_MAX_EXTENSIONS: Final = 6
#: Request and answer; both carry the identifier that makes them one flow.
_ECHO: Final = {1: (8, 0), 58: (128, 129)}
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class CaptureError(ValueError):
    """The file is no capture that this program reads. The message says which file and why."""


@dataclass(slots=True)
class Packet:
    """One IP packet's header facts. ``flags`` is the TCP flag byte; ``payload`` counts bytes above layer four.

    An ICMP echo has its identifier in both ports, other ICMP and later fragments have zeros."""

    at_ns: int
    frame: int
    family: int
    proto: int
    src: bytes
    dst: bytes
    sport: int = 0
    dport: int = 0
    payload: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    vlan: int = 0
    seq: int = 0
    flags: int = 0
    window: int = 0
    mss: int = 0
    ttl: int = 0
    fragment: bool = False
    later_fragment: bool = False


def read_frames(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(time in ns, length on the wire, captured bytes) of each frame; ends quietly at a truncated last record.

    Raises CaptureError when the file is not a pcap of Ethernet frames.
    """
    try:
        stream = path.open("rb")
    except OSError as exc:
        raise CaptureError(f"cannot read capture {path}: {exc.strerror}") from exc
    with stream:
        header = stream.read(24)
        if len(header) < 24 or header[:4] not in _MAGIC:
            raise CaptureError(f"{path} is not a pcap file; convert it with: editcap -F pcap IN OUT")
        order, tick_ns = _MAGIC[header[:4]]
        (link,) = struct.unpack(order + "I", header[20:24])
        if link & 0xFFFF != LINK_ETHERNET:
            raise CaptureError(f"{path} has link type {link & 0xFFFF}; only Ethernet (1) carries what the model reads")
        record = struct.Struct(order + "IIII")
        while len(head := stream.read(16)) == 16:
            seconds, fraction, kept, length = record.unpack(head)
            if kept > MAX_FRAME:
                raise CaptureError(f"{path} claims a frame of {kept} bytes: the file is broken")
            data = stream.read(kept)
            if len(data) < kept:
                return
            yield seconds * 1_000_000_000 + fraction * tick_ns, length, data


def dissect(at_ns: int, length: int, data: bytes) -> Packet | None:
    """Header facts of one Ethernet frame, or None when it is no IP packet or is cut before its ports."""
    offset, kind = 12, 0
    vlan = 0
    for _ in range(3):
        if len(data) < offset + 4:
            return None
        kind = data[offset] << 8 | data[offset + 1]
        if kind not in _VLAN:
            break
        vlan = (data[offset + 2] << 8 | data[offset + 3]) & 0xFFF
        offset += 4
    read = {0x0800: _ipv4, 0x86DD: _ipv6}.get(kind)
    packet = read(at_ns, length, data, offset + 2) if read else None
    if packet is not None:
        packet.vlan = vlan
    return packet


def _ipv4(at_ns: int, length: int, data: bytes, offset: int) -> Packet | None:
    if len(data) < offset + 20 or data[offset] >> 4 != 4:
        return None
    header = (data[offset] & 15) * 4
    total = data[offset + 2] << 8 | data[offset + 3]
    if header < 20 or total < header:
        return None
    fragment = data[offset + 6] << 8 | data[offset + 7]
    packet = Packet(
        at_ns, length, 4, data[offset + 9],
        _MAPPED + data[offset + 12 : offset + 16], _MAPPED + data[offset + 16 : offset + 20], ttl=data[offset + 8],
    )  # fmt: skip
    packet.fragment = bool(fragment & 0x3FFF)
    packet.later_fragment = bool(fragment & 0x1FFF)
    return _transport(packet, data, offset + header, total - header)


def _ipv6(at_ns: int, length: int, data: bytes, offset: int) -> Packet | None:
    if len(data) < offset + 40 or data[offset] >> 4 != 6:
        return None
    left = data[offset + 4] << 8 | data[offset + 5]
    packet = Packet(
        at_ns, length, 6, data[offset + 6], data[offset + 8 : offset + 24], data[offset + 24 : offset + 40],
        ttl=data[offset + 7],
    )  # fmt: skip
    offset += 40
    for _ in range(_MAX_EXTENSIONS):
        if packet.proto not in _EXTENSIONS:
            break
        if len(data) < offset + 8:
            return None
        if packet.proto == 44:
            where = data[offset + 2] << 8 | data[offset + 3]
            # An atomic fragment is whole (RFC 6946).
            packet.fragment, packet.later_fragment, size = bool(where & 0xFFF9), bool(where & 0xFFF8), 8
        elif packet.proto == 51:
            size = (data[offset + 1] + 2) * 4
        else:
            size = (data[offset + 1] + 1) * 8
        packet.proto = data[offset]
        offset, left = offset + size, left - size
        if packet.later_fragment:
            break
    return _transport(packet, data, offset, left) if left >= 0 else None


def _transport(packet: Packet, data: bytes, offset: int, left: int) -> Packet | None:
    """Fill in what layer four says. A later fragment has no ports of its own and stays with port 0."""
    if packet.later_fragment:
        packet.payload = left
        return packet
    if packet.proto == 6:
        if len(data) < offset + 20 or left < 20:
            return None
        packet.sport, packet.dport = data[offset] << 8 | data[offset + 1], data[offset + 2] << 8 | data[offset + 3]
        header = (data[offset + 12] >> 4) * 4
        packet.seq = int.from_bytes(data[offset + 4 : offset + 8], "big")
        packet.flags, packet.window = data[offset + 13], data[offset + 14] << 8 | data[offset + 15]
        packet.payload = max(0, left - header)
        if packet.flags & 2:
            packet.mss = _mss(data[offset + 20 : offset + header])
    elif packet.proto == 17:
        if len(data) < offset + 8 or left < 8:
            return None
        packet.sport, packet.dport = data[offset] << 8 | data[offset + 1], data[offset + 2] << 8 | data[offset + 3]
        packet.payload = left - 8
    elif packet.proto in (1, 58):
        if len(data) < offset + 4 or left < 4:
            return None
        packet.icmp_type, packet.icmp_code = data[offset], data[offset + 1]
        if packet.icmp_type in _ECHO[packet.proto] and len(data) >= offset + 6:
            packet.sport = packet.dport = data[offset + 4] << 8 | data[offset + 5]
        packet.payload = max(0, left - 8)
    else:
        packet.payload = left
    return packet


def _mss(options: bytes) -> int:
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2:
            return 0
        if options[at] == 2 and at + 4 <= len(options):
            return options[at + 2] << 8 | options[at + 3]
        at += options[at + 1]
    return 0
