"""Sets of IP prefixes as numpy columns: the arithmetic of blocklists. Pure.

A prefix is its network address in two 64-bit words and its length. An IPv4 address stands in the top half of ``hi``,
so that masks, containment and order are the same arithmetic in both families. All functions return new arrays; the
host bits of every prefix are zero.
"""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ONES = (1 << 64) - 1
#: masks by prefix length, 0..128
MASK_HI: Words = np.array([_ONES ^ (_ONES >> min(n, 64)) for n in range(129)], np.uint64)
MASK_LO: Words = np.array([_ONES ^ (_ONES >> max(n - 64, 0)) for n in range(129)], np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """hi, lo: uint64[n]; plen: uint8[n]; family 4 or 6. May hold doubles and overlaps unless a function says not."""

    family: int
    hi: Words
    lo: Words
    plen: Lengths

    def __len__(self) -> int:
        return len(self.plen)

    def pick(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Prefixes":
        """Those that a mask or an index array chooses."""
        return Prefixes(self.family, self.hi[which], self.lo[which], self.plen[which])

    @property
    def host_length(self) -> int:
        return 32 if self.family == 4 else 128


def empty(family: int) -> Prefixes:
    return Prefixes(family, np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint8))


def from_networks(family: int, networks: Iterable[Network]) -> Prefixes:
    """From ``ipaddress`` objects of one family: exact and slow (about 1 us each); for the few, not for feeds."""
    listed = list(networks)
    values = [_value(network.network_address) for network in listed]
    return Prefixes(
        family,
        np.array([value >> 64 for value in values], np.uint64),
        np.array([value & _ONES for value in values], np.uint64),
        np.array([network.prefixlen for network in listed], np.uint8),
    )


def from_packed(family: int, packed: bytes, plen: Lengths) -> Prefixes:
    """From addresses in network byte order back to back, with host bits cleared."""
    if family == 4:
        hi = np.frombuffer(packed, ">u4").astype(np.uint64) << np.uint64(32)
        return Prefixes(4, hi & MASK_HI[plen], np.zeros(len(plen), np.uint64), plen)
    words = np.frombuffer(packed, ">u8").astype(np.uint64).reshape(-1, 2)
    return Prefixes(6, words[:, 0] & MASK_HI[plen], words[:, 1] & MASK_LO[plen], plen)


def concat(family: int, parts: Sequence[Prefixes]) -> Prefixes:
    if not parts:
        return empty(family)
    return Prefixes(
        family,
        np.concatenate([part.hi for part in parts]),
        np.concatenate([part.lo for part in parts]),
        np.concatenate([part.plen for part in parts]),
    )


def collapse(prefixes: Prefixes) -> Prefixes:
    """The same addresses without doubles and without what a wider prefix covers; sorted by address.

    Of prefixes sorted by start, wider ones first, one is covered exactly when an earlier one ends no sooner."""
    ordered = _sorted(prefixes)
    if len(ordered) < 2:
        return ordered
    ends = _rank_of_ends(ordered)
    covered = np.zeros(len(ordered), bool)
    covered[1:] = np.maximum.accumulate(ends)[:-1] >= ends[1:]
    return ordered.pick(~covered)


def subtract(prefixes: Prefixes, networks: Iterable[Network]) -> Prefixes:
    """The same addresses without those of ``networks``: exact; a wider prefix is split around the hole.

    Cost: one pass over the columns for each network, so meant for dozens of them."""
    left = prefixes
    for network in networks:
        if network.version != prefixes.family:
            continue
        inside, around = _inside(left, network), _around(left, network)
        if not (inside.any() or around.any()):
            continue
        holed = [piece for outer in to_networks(left.pick(around)) for piece in outer.address_exclude(network)]  # type: ignore[arg-type]
        left = concat(left.family, [left.pick(~(inside | around)), from_networks(left.family, holed)])
    return left


def no_shorter_than(prefixes: Prefixes, length: int) -> Prefixes:
    """The same addresses with wider prefixes cut into pieces of ``length`` (at most 64)."""
    wide = prefixes.plen < length
    if not wide.any():
        return prefixes
    parts = [prefixes.pick(~wide)]
    for plen in np.unique(prefixes.plen[wide]).tolist():
        outer = prefixes.hi[prefixes.plen == plen]
        step = np.arange(1 << (length - plen), dtype=np.uint64) << np.uint64(64 - length)
        hi = (outer[:, None] | step).reshape(-1)
        parts.append(Prefixes(prefixes.family, hi, np.zeros(len(hi), np.uint64), np.full(len(hi), length, np.uint8)))
    return concat(prefixes.family, parts)


def overlapping(prefixes: Prefixes, network: Network) -> Flags:
    """Which of them share an address with ``network``; none in another family."""
    if network.version != prefixes.family:
        return np.zeros(len(prefixes), bool)
    return _inside(prefixes, network) | _around(prefixes, network)


def covering(prefixes: Prefixes, address: Address) -> Prefixes:
    """Those that contain the address: one linear pass, about 10 ms for a million."""
    host = ipaddress.ip_network(address)
    return prefixes.pick(overlapping(prefixes, host))


def address_count(prefixes: Prefixes) -> float:
    """How many addresses they hold; exact for IPv4, rounded for IPv6. Give collapsed prefixes, else doubles count."""
    return float(np.ldexp(1.0, prefixes.host_length - prefixes.plen.astype(np.int64)).sum())


def to_networks(prefixes: Prefixes) -> list[Network]:
    """As ``ipaddress`` objects; slow, for the few."""
    return [ipaddress.ip_network(text) for text in to_text(prefixes)]


def to_text(prefixes: Prefixes) -> list[str]:
    """Canonical text in the given order: hosts without a length, prefixes with."""
    if prefixes.family == 4:
        packed = (prefixes.hi >> np.uint64(32)).astype(">u4").tobytes()
        names = [socket.inet_ntoa(packed[i : i + 4]) for i in range(0, len(packed), 4)]
    else:
        packed = np.column_stack([prefixes.hi, prefixes.lo]).astype(">u8").tobytes()
        names = [_name6(packed[i : i + 16]) for i in range(0, len(packed), 16)]
    whole = prefixes.host_length
    return [
        name if plen == whole else f"{name}/{plen}" for name, plen in zip(names, prefixes.plen.tolist(), strict=True)
    ]


def _name6(packed: bytes) -> str:
    """As ``ipaddress`` writes it: libc prints ::1.2.3.4 where the canonical form of this project is ::102:304."""
    name = socket.inet_ntop(socket.AF_INET6, packed)
    return str(ipaddress.IPv6Address(packed)) if "." in name else name


def _value(address: Address) -> int:
    return int(address) << 96 if address.version == 4 else int(address)


def _sorted(prefixes: Prefixes) -> Prefixes:
    if prefixes.family == 4:
        key = np.sort(prefixes.hi | prefixes.plen)  # the length fits into the empty low half
        plen = (key & np.uint64(63)).astype(np.uint8)
        return Prefixes(4, key & MASK_HI[32], np.zeros(len(key), np.uint64), plen)
    return prefixes.pick(np.lexsort((prefixes.plen, prefixes.lo, prefixes.hi)))


def _rank_of_ends(prefixes: Prefixes) -> Words:
    """Numbers that are ordered as the last addresses are; equal for equal ones."""
    end_hi = prefixes.hi | ~MASK_HI[prefixes.plen]
    if prefixes.family == 4:
        return end_hi
    end_lo = prefixes.lo | ~MASK_LO[prefixes.plen]
    order = np.lexsort((end_lo, end_hi))
    hi, lo = end_hi[order], end_lo[order]
    rank = np.empty(len(order), np.uint64)
    rank[order] = np.concatenate([[0], np.cumsum((hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1]))])
    return rank


def _words(network: Network) -> tuple[np.uint64, np.uint64]:
    value = _value(network.network_address)
    return np.uint64(value >> 64), np.uint64(value & _ONES)


def _inside(prefixes: Prefixes, network: Network) -> Flags:
    """Which lie within the network or are equal to it."""
    hi, lo = _words(network)
    same = (prefixes.hi ^ hi) & MASK_HI[network.prefixlen]
    if prefixes.family == 6 and network.prefixlen > 64:
        same |= (prefixes.lo ^ lo) & MASK_LO[network.prefixlen]
    inside: Flags = (same == 0) & (prefixes.plen >= network.prefixlen)
    return inside


def _around(prefixes: Prefixes, network: Network) -> Flags:
    """Which are wider than the network and contain it."""
    hi, lo = _words(network)
    same = (prefixes.hi ^ hi) & MASK_HI[prefixes.plen]
    if prefixes.family == 6:
        same |= (prefixes.lo ^ lo) & MASK_LO[prefixes.plen]
    around: Flags = (same == 0) & (prefixes.plen < network.prefixlen)
    return around
