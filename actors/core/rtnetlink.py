"""What the kernel says of this namespace's addresses and routes, over rtnetlink. Read only, no privilege, milliseconds.

A general netlink library answers this too, and costs every node 9 MB for the rest of what it knows. Layouts are those
of ``linux/if_addr.h`` and ``linux/rtnetlink.h``, which are kernel ABI.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from actors.core.netlink import NetlinkSocket, attributes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAIN_TABLE = 254
_GETADDR, _GETROUTE = 22, 26
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 4, 5, 9, 15, 18

_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
#: family, length of destination, of source, type of service, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")  # length, flags, hops, interface
_NUMBER = struct.Struct("=I")


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
    return [own for body in _dump(_GETADDR, _ADDRESS.size) if (own := read_address(body)) is not None]


def routes() -> list[Route]:
    """Of both families, in every table. Raises OSError."""
    return [route for body in _dump(_GETROUTE, _ROUTE.size) if (route := read_route(body)) is not None]


def read_address(body: bytes) -> Own | None:
    """From the body of one answer; None when it holds no address."""
    if len(body) < _ADDRESS.size:
        return None
    length = _ADDRESS.unpack_from(body)[1]
    told = dict(attributes(body[_ADDRESS.size :]))
    address = _address(told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS))
    if address is None or length > address.max_prefixlen:
        return None
    return Own(address, length, _address(told.get(_IFA_BROADCAST)))


def read_route(body: bytes) -> Route | None:
    """From the body of one answer; None when it is too short for one."""
    if len(body) < _ROUTE.size:
        return None
    family, length, _, _, table, *_ = _ROUTE.unpack_from(body)
    told = dict(attributes(body[_ROUTE.size :]))
    hops = [told, *(hop for _, hop in _hops(told.get(_RTA_MULTIPATH, b"")))]
    gateways = [_address(hop.get(_RTA_GATEWAY)) or _address(hop.get(_RTA_VIA, b"")[2:]) for hop in hops]
    interfaces = [_number(told.get(_RTA_OIF)), *(index for index, _ in _hops(told.get(_RTA_MULTIPATH, b"")))]
    return Route(
        family=family,
        table=_number(told.get(_RTA_TABLE)) or table,
        length=length,
        interfaces=tuple(dict.fromkeys(index for index in interfaces if index > 0)),
        gateways=tuple(dict.fromkeys(gateway for gateway in gateways if gateway is not None)),
    )


def _dump(ask: int, size: int) -> list[bytes]:
    """Everything of one kind: the question's own fields are empty."""
    with NetlinkSocket(socket.NETLINK_ROUTE) as line:
        return line.dump(ask, 0, bytes(size))


def _hops(data: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Interface and attributes of each hop of a multipath route."""
    at = 0
    while at + _HOP.size <= len(data):
        length, _, _, index = _HOP.unpack_from(data, at)
        if length < _HOP.size:
            return
        yield index, dict(attributes(data[at + _HOP.size : at + length]))
        at += (length + 3) & ~3


def _address(raw: bytes | None) -> Address | None:
    return ipaddress.ip_address(raw) if raw is not None and len(raw) in (4, 16) else None


def _number(raw: bytes | None) -> int:
    return int(_NUMBER.unpack(raw)[0]) if raw is not None and len(raw) == _NUMBER.size else 0
