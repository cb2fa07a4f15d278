"""Addresses as people write them, as the kernel program keys them, and back.

IPv4 is mapped (``::ffff:a.b.c.d``), so one table serves both families: an IPv4 /24 has 120 bits, an address 128.
"""

import ipaddress
import socket
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpf.errors import BadSubject

_MAPPED = b"\0" * 10 + b"\xff\xff"
#: Many subjects, as other processes send them: sixteen bytes of the (mapped) address, and how many of its bits count.
ROW = np.dtype([("addr", "u1", 16), ("bits", "u1")])


class Subject(NamedTuple):
    """16 bytes in network order, host bits zero, and how many bits count."""

    addr: bytes
    bits: int

    @property
    def is_host(self) -> bool:
        """Fits the ban table proper: an address, or an IPv6 /64."""
        return self.bits == 128 or (self.bits == 64 and not self.is_ip4)

    @property
    def is_ip4(self) -> bool:
        return self.addr.startswith(_MAPPED)

    def __str__(self) -> str:
        return text_of(self.addr, self.bits)


def text_of(addr: bytes, bits: int) -> str:
    """Canonical text; a host carries no length."""
    if addr.startswith(_MAPPED) and bits >= 96:
        host = socket.inet_ntop(socket.AF_INET, addr[12:])
        return host if bits == 128 else f"{host}/{bits - 96}"
    host = socket.inet_ntop(socket.AF_INET6, addr)
    return host if bits == 128 else f"{host}/{bits}"


def parse(text: str) -> Subject:
    """Raises BadSubject. Host bits beyond a prefix are cut, as routers do."""
    try:
        if "/" not in text:
            if ":" in text:
                return Subject(socket.inet_pton(socket.AF_INET6, text), 128)
            return Subject(_MAPPED + socket.inet_pton(socket.AF_INET, text), 128)
        network = ipaddress.ip_network(text, strict=False)
    except (OSError, ValueError) as error:
        raise BadSubject(f"{text[:60]!r} is neither an address nor a prefix") from error
    if isinstance(network, ipaddress.IPv4Network):
        return Subject(_MAPPED + network.network_address.packed, network.prefixlen + 96)
    return Subject(network.network_address.packed, network.prefixlen)


def parse_ban(text: str) -> Subject:
    """What may be banned: not loopback, multicast, broadcast, the unspecified address, or everything at once."""
    subject = parse(text)
    addr = subject.addr
    if subject.bits < 100 if subject.is_ip4 else subject.bits < 16:
        raise BadSubject(f"{text} covers too much to be banned: at least /4 in IPv4 and /16 in IPv6")
    if subject.is_ip4:
        first = addr[12]
        if first == 127 or first >= 224 or addr[12:] == b"\0\0\0\0":
            raise BadSubject(f"{text} is loopback, multicast or no address of anybody: a ban of it means nothing")
    elif addr[0] == 0xFF or addr[:15] == b"\0" * 15 or addr.startswith(_MAPPED[:10]):
        raise BadSubject(f"{text} is loopback, multicast or no address of anybody: a ban of it means nothing")
    return subject


def bannable_hosts(rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Which rows (``ROW``) ``parse_ban`` would take and are hosts."""
    addr, bits = rows["addr"], rows["bits"]
    is_ip4 = ~addr[:, :10].any(axis=1) & (addr[:, 10:12] == 0xFF).all(axis=1)
    first = addr[:, 12]
    good4 = (bits == 128) & (first != 127) & (first < 224) & addr[:, 12:].any(axis=1)
    whole = (bits == 128) | ((bits == 64) & ~addr[:, 8:].any(axis=1))
    good6 = whole & (addr[:, 0] != 0xFF) & addr[:, :10].any(axis=1)
    good: npt.NDArray[np.bool_] = np.where(is_ip4, good4, good6)
    return good
