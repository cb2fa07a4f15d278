"""What the kernel says of this namespace's addresses and routes, over rtnetlink. Read only, no privilege, milliseconds.

A general netlink library answers this too, and costs every node 9 MB for the rest of what it knows. Layouts are those
of ``linux/if_addr.h`` and ``linux/rtnetlink.h``, which are kernel ABI.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAIN_TABLE = 254
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 20, 22, 24, 26
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x001, 0x300, 0x010
_ERROR, _DONE = 2, 3
_TYPE_MASK = 0x3FFF
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 4, 5, 9, 15, 18

_HEADER = struct.Struct("=IHHII")
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
#: family, length of destination, of source, type of service, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")  # length, flags, hops, interface
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")

#: A dump that changes of others keep interrupting is given up after this many attempts.
_ATTEMPTS = 5
_ANSWER_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Own:
    """One address of this host, with the length of its network and, for IPv4, the network's broadcast address."""

    address: Address
    length: int
    broadcast: Address | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """length: of the destination, 0 for a default route. interfaces: indices; gateways: of every hop."""

    family: int
    table: int
    length: int
    interfaces: tuple[int, ...]
    gateways: tuple[Address, ...]


def addresses() -> list[Own]:
    """Of both families, on all interfaces. Raises OSError."""
    return [own for body in _dump(_GETADDR, _NEWADDR, _ADDRESS.size) if (own := read_address(body)) is not None]


def routes() -> list[Route]:
    """Of both families, in every table. Raises OSError."""
    return [route for body in _dump(_GETROUTE, _NEWROUTE, _ROUTE.size) if (route := read_route(body)) is not None]


def read_address(body: bytes) -> Own | None:
    """From the body of one answer; None when it holds no address."""
    if len(body) < _ADDRESS.size:
        return None
    length = _ADDRESS.unpack_from(body)[1]
    told = dict(_attributes(body[_ADDRESS.size :]))
    address = _address(told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS))
    if address is None or length > address.max_prefixlen:
        return None
    return Own(address, length, _address(told.get(_IFA_BROADCAST)))


def read_route(body: bytes) -> Route | None:
    """From the body of one answer; None when it is too short for one."""
    if len(body) < _ROUTE.size:
        return None
    family, length, _, _, table, *_ = _ROUTE.unpack_from(body)
    told = dict(_attributes(body[_ROUTE.size :]))
    hops = [told, *(attributes for _, attributes in _hops(told.get(_RTA_MULTIPATH, b"")))]
    gateways = [_address(hop.get(_RTA_GATEWAY)) or _address(hop.get(_RTA_VIA, b"")[2:]) for hop in hops]
    interfaces = [_number(told.get(_RTA_OIF)), *(index for index, _ in _hops(told.get(_RTA_MULTIPATH, b"")))]
    return Route(
        family=family,
        table=_number(told.get(_RTA_TABLE)) or table,
        length=length,
        interfaces=tuple(dict.fromkeys(index for index in interfaces if index > 0)),
        gateways=tuple(dict.fromkeys(gateway for gateway in gateways if gateway is not None)),
    )


def _dump(ask: int, answer: int, size: int) -> list[bytes]:
    for _ in range(_ATTEMPTS):
        try:
            return list(_bodies(ask, answer, size))
        except InterruptedError:
            continue
    raise InterruptedError(4, f"addresses or routes changed under every one of {_ATTEMPTS} attempts to read them")


def _bodies(ask: int, answer: int, size: int) -> Iterator[bytes]:
    """Bodies of all answers to one dump; the question's own body is empty, which means everything."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as line:
        line.settimeout(_ANSWER_LIMIT_S)
        line.bind((0, 0))
        line.send(_HEADER.pack(_HEADER.size + size, ask, _REQUEST | _DUMP, 1, 0) + bytes(size))
        interrupted = False
        while True:
            datagram = line.recv(1 << 18)
            at = 0
            while at + _HEADER.size <= len(datagram):
                length, kind, flags, _, _ = _HEADER.unpack_from(datagram, at)
                body = datagram[at + _HEADER.size : at + length]
                at += max(_HEADER.size, (length + 3) & ~3)
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    code = -int.from_bytes(body[:4], "little", signed=True)
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    if interrupted:
                        raise InterruptedError(4, "what is being read was changed")
                    return
                if kind == answer:
                    yield body


def _hops(data: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Interface and attributes of each hop of a multipath route."""
    at = 0
    while at + _HOP.size <= len(data):
        length, _, _, index = _HOP.unpack_from(data, at)
        if length < _HOP.size:
            return
        yield index, dict(_attributes(data[at + _HOP.size : at + length]))
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _address(raw: bytes | None) -> Address | None:
    return ipaddress.ip_address(raw) if raw is not None and len(raw) in (4, 16) else None


def _number(raw: bytes | None) -> int:
    return int(_NUMBER.unpack(raw)[0]) if raw is not None and len(raw) == _NUMBER.size else 0
