"""Frames built by hand, so that a test can break any single field. Checksums stay zero: the program ignores them."""

import socket
import struct

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
NODE4, NODE6 = "192.0.2.10", "2001:db8:aaaa::10"
PEER4, PEER6 = "203.0.113.7", "2001:db8:bbbb::7"


def ethernet(payload: bytes, ethertype: int = 0x0800, vlans: tuple[int, ...] = ()) -> bytes:
    tags = b"".join(struct.pack("!HH", 0x88A8 if i < len(vlans) - 1 else 0x8100, vlan) for i, vlan in enumerate(vlans))
    return b"\2\0\0\0\0\1\2\0\0\0\0\2" + tags + struct.pack("!H", ethertype) + payload


def ip4(
    payload: bytes,
    proto: int = TCP,
    source: str = PEER4,
    dest: str = NODE4,
    *,
    options: bytes = b"",
    offset: int = 0,
    more: bool = False,
    total: int | None = None,
    ihl: int | None = None,
    ttl: int = 64,
    version: int = 4,
) -> bytes:
    """offset in bytes. total and ihl lie when given."""
    header = 20 + len(options)
    words = header // 4 if ihl is None else ihl
    length = header + len(payload) if total is None else total
    place = offset // 8 | (0x2000 if more else 0)
    fixed = struct.pack(
        "!BBHHHBBH4s4s", version << 4 | words, 0, length, 1, place, ttl, proto, 0,
        socket.inet_aton(source), socket.inet_aton(dest),
    )  # fmt: skip
    return fixed + options + payload


def ip6(
    payload: bytes,
    next_header: int = TCP,
    source: str = PEER6,
    dest: str = NODE6,
    *,
    length: int | None = None,
    hops: int = 64,
) -> bytes:
    size = len(payload) if length is None else length
    return (
        struct.pack("!IHBB", 6 << 28, size, next_header, hops)
        + socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, dest)
        + payload
    )


def extension(next_header: int, units: int = 0) -> bytes:
    """A hop-by-hop, routing or destination header of 8 * (units + 1) bytes."""
    return bytes((next_header, units)) + b"\1\4\0\0\0\0" + bytes(8 * units)


def fragment6(next_header: int, offset: int = 0, more: bool = False) -> bytes:
    return struct.pack("!BBHI", next_header, 0, offset & 0xFFF8 | more, 0x1234)


def tcp(
    flags: int = ACK,
    payload: bytes = b"",
    *,
    sport: int = 40_000,
    dport: int = 443,
    seq: int = 1_000,
    ack: int = 0,
    window: int = 64_000,
    options: bytes = b"",
    doff: int | None = None,
) -> bytes:
    words = (20 + len(options)) // 4 if doff is None else doff
    return struct.pack("!HHIIBBHHH", sport, dport, seq, ack, words << 4, flags, window, 0, 0) + options + payload


def udp(payload: bytes = b"data", *, sport: int = 40_000, dport: int = 53, length: int | None = None) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload


def icmp(kind: int = 8, code: int = 0, *, ident: int = 77, payload: bytes = b"ping") -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, ident, 1) + payload


def mss(value: int) -> bytes:
    return struct.pack("!BBH", 2, 4, value)


def arp() -> bytes:
    return ethernet(b"\0\1\x08\0\6\4\0\1" + bytes(20), 0x0806)


def syn4(source: str = PEER4, **fields: int) -> bytes:
    return ethernet(ip4(tcp(SYN, **fields), source=source))  # type: ignore[arg-type]


def syn6(source: str = PEER6, **fields: int) -> bytes:
    return ethernet(ip6(tcp(SYN, **fields), source=source), 0x86DD)  # type: ignore[arg-type]


def udp4(source: str = PEER4, payload: bytes = b"data", **fields: int) -> bytes:
    return ethernet(ip4(udp(payload, **fields), UDP, source))  # type: ignore[arg-type]


def udp6(source: str = PEER6, payload: bytes = b"data", **fields: int) -> bytes:
    return ethernet(ip6(udp(payload, **fields), UDP, source), 0x86DD)  # type: ignore[arg-type]
