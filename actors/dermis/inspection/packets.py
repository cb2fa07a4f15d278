"""What inspection knows of one packet, and how it is read from an Ethernet frame (captures) or a kernel sample (life).

Pure. A frame that cannot be parsed gives None: the kernel program counts such frames, inspection has nothing to say.
"""

import socket
import struct
from dataclasses import dataclass
from typing import Any

TCP, UDP, ICMP, ICMP6, IGMP = 6, 17, 1, 58, 2
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
_VLANS = (0x8100, 0x88A8)
#: Extension headers of IPv6 that may stand before the transport: hop-by-hop, routing, destination options.
_EXTENSIONS = (0, 43, 60)
_MAX_EXTENSIONS = 6


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. Addresses are 4 or 16 bytes; ports are 0 without TCP or UDP; at_s is any clock that only grows.

    icmp_type, icmp_code and icmp_id are -1 where they are not known. initiator: True when the sender opened the flow
    (kernel samples know), None when that must be found out."""

    at_s: float
    source: bytes
    dest: bytes
    proto: int
    source_port: int = 0
    dest_port: int = 0
    payload: bytes = b""
    flags: int = 0
    seq: int = 0
    ack: int = 0
    ttl: int = 0
    icmp_type: int = -1
    icmp_code: int = -1
    icmp_id: int = -1
    initiator: bool | None = None
    incarnation: int = 0


def address_text(address: bytes) -> str:
    """Canonical text of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def from_sample(head: Any, payload: bytes) -> Packet:
    """A record of the kernel's sample ring (``bpf.abi`` SAMPLE and its bytes) as a packet."""
    key = head["key"]
    side = int(head["side"]) & 1
    cut = slice(12, 16) if int(key["family"]) == 4 else slice(0, 16)
    return Packet(
        at_s=int(head["at_ns"]) / 1e9,
        source=key["addr"][side].tobytes()[cut],
        dest=key["addr"][1 - side].tobytes()[cut],
        proto=int(key["proto"]),
        source_port=int(key["port"][side]),
        dest_port=int(key["port"][1 - side]),
        payload=payload,
        flags=int(head["tcp_flags"]),
        seq=int(head["seq"]),
        ack=int(head["ack"]),
        ttl=int(head["ttl"]),
        initiator=side == 0,
        incarnation=int(head["slot"]) << 32 | int(head["incarnation"]),
    )


def from_frame(at_s: float, frame: bytes) -> Packet | None:
    """An Ethernet frame as a packet; None for what is no whole IPv4 or IPv6 packet. Never raises."""
    try:
        return _parse(at_s, frame)
    except (struct.error, IndexError):
        return None


def _parse(at_s: float, frame: bytes) -> Packet | None:
    offset = 12
    (ethertype,) = struct.unpack_from("!H", frame, offset)
    while ethertype in _VLANS and offset < 20:
        offset += 4
        (ethertype,) = struct.unpack_from("!H", frame, offset)
    data = frame[offset + 2 :]
    if ethertype == 0x0800:
        return _ip4(at_s, data)
    return _ip6(at_s, data) if ethertype == 0x86DD else None


def _ip4(at_s: float, data: bytes) -> Packet | None:
    header = (data[0] & 15) * 4
    total, place, ttl, proto = struct.unpack_from("!2xH2xHBB", data)
    if data[0] >> 4 != 4 or header < 20 or total < header or len(data) < header:
        return None
    body = data[header:total]
    if place & 0x3FFF:  # a fragment: only whole packets are read
        return None
    return _transport(at_s, data[12:16], data[16:20], proto, ttl, body)


def _ip6(at_s: float, data: bytes) -> Packet | None:
    length, proto, ttl = struct.unpack_from("!4xHBB", data)
    if data[0] >> 4 != 6 or len(data) < 40:
        return None
    body = data[40 : 40 + length] if length else data[40:]
    for _ in range(_MAX_EXTENSIONS):
        if proto not in _EXTENSIONS:
            break
        proto, body = body[0], body[(body[1] + 1) * 8 :]
    return _transport(at_s, data[8:24], data[24:40], proto, ttl, body)


def _transport(at_s: float, source: bytes, dest: bytes, proto: int, ttl: int, body: bytes) -> Packet | None:
    if proto == TCP:
        source_port, dest_port, seq, ack, words, flags = struct.unpack_from("!HHIIBB", body)
        header = (words >> 4) * 4
        if header < 20 or header > len(body):
            return None
        return Packet(at_s, source, dest, proto, source_port, dest_port, body[header:], flags, seq, ack, ttl)
    if proto == UDP:
        source_port, dest_port, length = struct.unpack_from("!HHH", body)
        return Packet(at_s, source, dest, proto, source_port, dest_port, body[8 : max(8, length)], ttl=ttl)
    if proto in (ICMP, ICMP6):
        kind, code = body[0], body[1]
        number = struct.unpack_from("!4xH", body)[0] if len(body) >= 6 else -1
        return Packet(
            at_s, source, dest, proto, payload=body[8:], ttl=ttl, icmp_type=kind, icmp_code=code, icmp_id=number
        )
    if proto == IGMP:  # queries and reports of version 3 are header to their end
        return Packet(at_s, source, dest, proto, payload=b"" if body[0] in (0x11, 0x22) else body[8:], ttl=ttl)
    return Packet(at_s, source, dest, proto, payload=body, ttl=ttl)
