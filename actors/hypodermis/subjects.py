"""Who can be judged: addresses and prefixes, read strictly and written in one way only.

A ``Prefix`` is three numbers, so that a hundred thousand of them are cheap to keep and to compare. IPv4-mapped IPv6
(``::ffff:203.0.113.7``) is folded to IPv4: the kernel knows that source by its IPv4 address, and two names for one
source would be two bans. Everything unclear is refused with a sentence that says what to type instead.
"""

import ipaddress
import socket
from struct import iter_unpack
from typing import NamedTuple

from actors.core.errors import Refused
from actors.core.packed import HOST_BITS, MAPPED, MAPPED_BITS, ROW

#: Longest text that is looked at; the longest address with length and zone is shorter.
TEXT_LIMIT = 64
IPV4_BITS, IPV6_BITS = 32, 128
#: One customer's worth of IPv6: whoever holds one address of a /64 holds all of them.
IPV6_SOURCE_BITS = 64

_MAPPED = 0xFFFF << 32
_IPV6_COMPATIBLE_END = 1 << 32


class Prefix(NamedTuple):
    """An address range. version: 4 or 6; value: the first address as a number; length: bits that count."""

    version: int
    value: int
    length: int

    @property
    def bits(self) -> int:
        """Bits of an address of this family."""
        return IPV4_BITS if self.version == 4 else IPV6_BITS

    @property
    def is_host(self) -> bool:
        """Exactly one address."""
        return self.length == self.bits

    @property
    def address(self) -> str:
        """The first address as canonical text (RFC 5952)."""
        if self.version == 4:
            return socket.inet_ntop(socket.AF_INET, self.value.to_bytes(4, "big"))
        if self.value < _IPV6_COMPATIBLE_END:  # inet_ntop would write ::1.2.3.4, which RFC 5952 does not
            return str(ipaddress.IPv6Address(self.value))
        return socket.inet_ntop(socket.AF_INET6, self.value.to_bytes(16, "big"))

    @property
    def text(self) -> str:
        """Canonical text; a host carries no length."""
        return self.address if self.is_host else f"{self.address}/{self.length}"

    @property
    def row(self) -> bytes:
        """Seventeen bytes (``core.packed``)."""
        if self.version == 4:
            return MAPPED + self.value.to_bytes(4, "big") + bytes((self.length + MAPPED_BITS,))
        return self.value.to_bytes(16, "big") + bytes((self.length,))

    def widened(self, length: int) -> "Prefix":
        """The prefix of ``length`` bits around this one; itself when it is that wide already."""
        if length >= self.length:
            return self
        spare = self.bits - length
        return Prefix(self.version, self.value >> spare << spare, length)

    def contains(self, other: "Prefix") -> bool:
        """Every address of ``other`` is one of ours."""
        return self.version == other.version and self.length <= other.length and other.widened(self.length) == self

    def overlaps(self, other: "Prefix") -> bool:
        """At least one address in common."""
        return self.contains(other) or other.contains(self)


def parse_prefix(text: str) -> Prefix:
    """An address or prefix in any usual spelling, as one canonical ``Prefix``. Raises Refused with a sentence.

    Refused are: zone ids (``fe80::1%eth0``), bits beyond the prefix length, leading zeros, shortened IPv4, netmasks."""
    if not isinstance(text, str):
        raise Refused(f"{text!r:.60} is no address", remedy="give an address such as 203.0.113.7 or 2001:db8::/64")
    spoken = text.strip()
    if len(spoken) > TEXT_LIMIT:
        raise Refused(f"{spoken[:24]!r}... is too long for an address", remedy="give one address or prefix")
    if "%" in spoken:
        raise Refused(
            f"{spoken!r} carries a zone id, which means something on one interface only",
            remedy="give the address without the part from '%' on",
        )
    head, slash, tail = spoken.partition("/")
    version, value = _address(head, spoken)
    bits = IPV4_BITS if version == 4 else IPV6_BITS
    length = _length(tail, bits, spoken) if slash else bits
    if version == 6 and value >> 32 == _MAPPED >> 32 and length >= 96:
        version, value, length, bits = 4, value & 0xFFFF_FFFF, length - 96, IPV4_BITS
    prefix = Prefix(version, value, length)
    whole = Prefix(version, value, bits).widened(length)
    if whole != prefix:
        raise Refused(
            f"{spoken!r} has bits beyond its length of {length}",
            remedy=f"give {whole.text} for the range, or {Prefix(version, value, bits).text} for the one address",
        )
    return prefix


def unpack(rows: bytes) -> list[Prefix]:
    """Rows of ``core.packed``, in order. Raises Refused for what ``parse_prefix`` would not take as text."""
    if len(rows) % ROW:
        raise Refused(f"{len(rows)} bytes are no rows of {ROW}", remedy="send the addresses as text")
    return [
        Prefix(4, low, IPV4_BITS) if bits == HOST_BITS and head == MAPPED else _unpacked(head, low, bits)
        for head, low, bits in iter_unpack("!12sIB", rows)
    ]


def _unpacked(head: bytes, low: int, bits: int) -> Prefix:
    if head == MAPPED and MAPPED_BITS <= bits <= HOST_BITS:
        prefix = Prefix(4, low, bits - MAPPED_BITS)
    else:
        prefix = Prefix(6, int.from_bytes(head, "big") << 32 | low, bits)
    if bits > HOST_BITS or Prefix(prefix.version, prefix.value, prefix.bits).widened(prefix.length) != prefix:
        raise Refused(f"a row names bits beyond its length of {bits}", remedy="send the addresses as text")
    return prefix


def parse_address(text: str) -> Prefix:
    """Like ``parse_prefix``, for exactly one address."""
    prefix = parse_prefix(text)
    if not prefix.is_host:
        raise Refused(f"{prefix.text} is a range, and one address is wanted", remedy=f"give {prefix.address}")
    return prefix


def of_source(prefix: Prefix) -> Prefix:
    """What stands for the holder of this address: itself in IPv4, its /64 in IPv6."""
    return prefix.widened(IPV6_SOURCE_BITS) if prefix.version == 6 else prefix


def _address(text: str, spoken: str) -> tuple[int, int]:
    try:
        if ":" in text:
            return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
        return 4, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
    except (OSError, ValueError) as exc:  # ValueError: a NUL or a surrogate inside
        raise Refused(
            f"{spoken!r} is no IPv4 or IPv6 address", remedy="give an address such as 203.0.113.7 or 2001:db8::/64"
        ) from exc


def _length(text: str, bits: int, spoken: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= bits and text == str(int(text))):
        raise Refused(f"{spoken!r} has no prefix length from 0 to {bits} after the slash", remedy=f"give e.g. /{bits}")
    return int(text)


# --- ranges that nobody can be banned from or by ------------------------------------------------------------------

#: Sources that are no single party's, with the reason said to whoever wants to ban them.
NOT_A_SOURCE: tuple[tuple[Prefix, str], ...] = tuple(
    (parse_prefix(text), why)
    for text, why in (
        ("127.0.0.0/8", "loopback: the node itself"),
        ("::1", "loopback: the node itself"),
        ("0.0.0.0/8", "'this network', the address of a host that has none yet"),
        ("::", "the unspecified address, used while a host has none yet"),
        ("224.0.0.0/4", "multicast, which is never a source"),
        ("ff00::/8", "multicast, which is never a source"),
        ("255.255.255.255", "broadcast, which is never a source"),
        ("fe80::/10", "link-local: neighbours that routing and neighbour discovery need"),
    )
)

_NOT_A_SOURCE = {version: [row for row in NOT_A_SOURCE if row[0].version == version] for version in (4, 6)}

#: The widest prefix that may be banned. Shorter ones are no party on the net but a share of it.
WIDEST_BAN = {4: 8, 6: 16}


def objection(prefix: Prefix) -> str:
    """Why this can never be banned on any node, in words; empty when it can."""
    if prefix.length < WIDEST_BAN[prefix.version]:
        return f"{prefix.text} is too wide: the widest prefix that can be banned is /{WIDEST_BAN[prefix.version]}"
    for special, why in _NOT_A_SOURCE[prefix.version]:
        if special.contains(prefix):
            return f"{prefix.text} is {why}"
        if not prefix.is_host and prefix.contains(special):
            return f"{prefix.text} contains {special.text}, which is {why}"
    return ""
