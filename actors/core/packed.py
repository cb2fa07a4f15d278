"""Many subjects in one field of a message: rows of 17 bytes, without an object each.

A row is an address in IPv6 form (IPv4 mapped into ``::ffff:0:0/96``) in network order, and one byte that says how many
of its 128 bits count: 128 for a host of either family, 120 for an IPv4 /24. The text of a row is the canonical one
that all cells use; what is no canonical row raises ValueError, and nothing else does.
"""

import ipaddress
import socket
from collections.abc import Iterable
from struct import Struct

ROW = 17
#: The first twelve bytes of an IPv4 address in IPv6 form.
MAPPED = bytes(10) + b"\xff\xff"
HOST_BITS, MAPPED_BITS = 128, 96
_ROW = Struct("!12s4sB")
#: Below this inet_ntop writes an IPv6 address with an IPv4 tail, which RFC 5952 does not.
_COMPATIBLE = bytes(12)


def pack(subjects: Iterable[str]) -> bytes:
    """Rows of these, in order. Raises ValueError for what is no address or has bits beyond its prefix length."""
    return b"".join(map(row, subjects))


def row(subject: str) -> bytes:
    """One row. About a third of a microsecond for a host."""
    try:
        if "/" not in subject:
            if ":" in subject:
                return socket.inet_pton(socket.AF_INET6, subject) + b"\x80"
            return MAPPED + socket.inet_pton(socket.AF_INET, subject) + b"\x80"
        network = ipaddress.ip_network(subject)
    except OSError as exc:
        raise ValueError(f"{subject[:60]!r} is no address") from exc
    if network.version == 4:
        return MAPPED + network.network_address.packed + bytes((network.prefixlen + MAPPED_BITS,))
    return network.network_address.packed + bytes((network.prefixlen,))


def unpack(rows: bytes) -> list[str]:
    """The subjects as canonical text, in order. Raises ValueError for what is not made of canonical rows."""
    if len(rows) % ROW:
        raise ValueError(f"{len(rows)} bytes are no rows of {ROW}")
    ntop, inet = socket.inet_ntop, socket.AF_INET
    return [
        ntop(inet, low) if bits == HOST_BITS and head == MAPPED else _text(head + low, bits)
        for head, low, bits in _ROW.iter_unpack(rows)
    ]


def count(rows: bytes) -> int:
    """How many there are."""
    return len(rows) // ROW


def _text(address: bytes, bits: int) -> str:
    if bits > HOST_BITS or int.from_bytes(address, "big") & ((1 << (HOST_BITS - bits)) - 1):
        raise ValueError(f"{address.hex()} has bits beyond its length of {bits}")
    if address.startswith(MAPPED) and bits >= MAPPED_BITS:
        host = socket.inet_ntop(socket.AF_INET, address[12:])
        return f"{host}/{bits - MAPPED_BITS}" if bits < HOST_BITS else host
    if address.startswith(_COMPATIBLE):
        host = str(ipaddress.IPv6Address(address))
    else:
        host = socket.inet_ntop(socket.AF_INET6, address)
    return f"{host}/{bits}" if bits < HOST_BITS else host
