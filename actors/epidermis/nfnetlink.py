"""The kernel's own answers about nf_tables, over a netlink socket: generation, one element, all elements. Read only.

``nft`` costs 5 ms to start and reads whole sets; a question asked here costs microseconds, so every ban can be proved
and the generation can be watched all the time. Layouts are those of ``linux/netfilter/nf_tables.h`` and
``nfnetlink.h``, which are kernel ABI. One question at a time; not for use by two threads at once.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from actors.core.netlink import ACKNOWLEDGE, NetlinkSocket, attribute, attributes, nest

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NFPROTO_INET = 1
_NEWSETELEM, _GETSETELEM, _NEWGEN, _GETGEN = 12, 13, 15, 16
# attribute numbers: of the list, of one element, of a datum, of the generation
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_KEY, _FLAGS, _TIMEOUT, _EXPIRATION, _DATUM, _GEN_ID = 1, 3, 4, 5, 1, 1
_INTERVAL_END = 1

_FAMILY = struct.Struct(">BBH")


@dataclass(frozen=True, slots=True)
class KernelElement:
    """``key`` in network order. ``expires_s``: time left, None when it stays. ``end`` marks the address after an
    interval."""

    key: bytes
    expires_s: float | None = None
    end: bool = False


class NfTablesReader:
    """Raises OSError with the kernel's errno (EPERM without CAP_NET_ADMIN, ENOENT for an absent table or set)."""

    def __init__(self) -> None:
        self._line = NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        self._line.close()

    def generation(self) -> int:
        """Grows by one with each transaction of anybody in this network namespace; not when an element expires."""
        for body in self._line.ask(_SUBSYSTEM | _GETGEN, ACKNOWLEDGE, _family(socket.AF_UNSPEC)):
            return int.from_bytes(_told(body)[_GEN_ID], "big")
        raise OSError(0, "the kernel gave no generation")

    def element(self, table: str, name: str, key: bytes) -> KernelElement | None:
        """The element for this key; in an interval set the interval that covers it. None when there is none."""
        wanted = nest(_LIST_ELEMENTS, nest(_LIST_ELEMENT, nest(_KEY, attribute(_DATUM, key))))
        question = _family(_NFPROTO_INET) + _names(table, name) + wanted
        try:
            bodies = list(self._line.ask(_SUBSYSTEM | _GETSETELEM, ACKNOWLEDGE, question))
        except FileNotFoundError:
            return None
        return next((found for body in bodies for found in _elements(body) if not found.end), None)

    def elements(self, table: str, name: str) -> list[KernelElement]:
        """All of a set. A dump that a transaction interrupts starts again; OSError EINTR when that never ends."""
        question = _family(_NFPROTO_INET) + _names(table, name)
        bodies = self._line.dump(_SUBSYSTEM | _GETSETELEM, ACKNOWLEDGE, question)
        return [element for body in bodies for element in _elements(body)]


def _family(number: int) -> bytes:
    return _FAMILY.pack(number, 0, 0)


def _names(table: str, name: str) -> bytes:
    return attribute(_LIST_TABLE, table.encode() + b"\0") + attribute(_LIST_SET, name.encode() + b"\0")


def _told(body: bytes) -> dict[int, bytes]:
    return dict(attributes(body[_FAMILY.size :]))


def _elements(body: bytes) -> Iterator[KernelElement]:
    listed = _told(body).get(_LIST_ELEMENTS, b"")
    for _, one in attributes(listed):
        fields = dict(attributes(one))
        key = dict(attributes(fields.get(_KEY, b""))).get(_DATUM, b"")
        end = bool(int.from_bytes(fields.get(_FLAGS, b"\0"), "big") & _INTERVAL_END)
        expires = fields.get(_EXPIRATION, fields.get(_TIMEOUT))
        yield KernelElement(key, int.from_bytes(expires, "big") / 1000 if expires else None, end)
