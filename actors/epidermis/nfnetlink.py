"""The kernel's own answers about nf_tables, over a netlink socket: generation, one element, all elements. Read only.

``nft`` costs 5 ms to start and reads whole sets; a question asked here costs microseconds, so every ban can be proved
and the generation can be watched all the time. Layouts are those of ``linux/netfilter/nf_tables.h`` and
``nfnetlink.h``, which are kernel ABI. One question at a time; not for use by two threads at once.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NFPROTO_INET = 1
_NEWSETELEM, _GETSETELEM, _NEWGEN, _GETGEN = 12, 13, 15, 16
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x001, 0x300, 0x010
_ERROR, _DONE = 2, 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
# attribute numbers: of the list, of one element, of a datum, of the generation
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_KEY, _FLAGS, _TIMEOUT, _EXPIRATION, _DATUM, _GEN_ID = 1, 3, 4, 5, 1, 1
_INTERVAL_END = 1

_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")

#: A dump that other writers keep interrupting is given up after this many attempts.
_DUMP_ATTEMPTS = 5
_ANSWER_LIMIT_S = 2.0


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
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.settimeout(_ANSWER_LIMIT_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def generation(self) -> int:
        """Grows by one with each transaction of anybody in this network namespace; not when an element expires."""
        for body in self._ask(_GETGEN, _REQUEST, socket.AF_UNSPEC, b""):
            return int.from_bytes(_attributes(body)[_GEN_ID], "big")
        raise OSError(0, "the kernel gave no generation")

    def element(self, table: str, name: str, key: bytes) -> KernelElement | None:
        """The element for this key; in an interval set the interval that covers it. None when there is none."""
        wanted = _nest(_LIST_ELEMENTS, _nest(_LIST_ELEMENT, _nest(_KEY, _attribute(_DATUM, key))))
        try:
            bodies = list(self._ask(_GETSETELEM, _REQUEST, _NFPROTO_INET, _names(table, name) + wanted))
        except FileNotFoundError:
            return None
        return next((found for body in bodies for found in _elements(body) if not found.end), None)

    def elements(self, table: str, name: str) -> list[KernelElement]:
        """All of a set. A dump that a transaction interrupts starts again; OSError EINTR when that never ends."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                bodies = self._ask(_GETSETELEM, _REQUEST | _DUMP, _NFPROTO_INET, _names(table, name))
                return [element for body in bodies for element in _elements(body)]
            except InterruptedError:
                continue
        raise InterruptedError(4, f"set {name} changed under every one of {_DUMP_ATTEMPTS} attempts to read it")

    def _ask(self, kind: int, flags: int, family: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        body = _FAMILY.pack(family, 0, 0) + payload
        header = _HEADER.pack(_HEADER.size + len(body), _SUBSYSTEM | kind, flags | 0x004, self._sequence, 0)
        self._socket.send(header + body)
        yield from self._answers(self._sequence)

    def _answers(self, sequence: int) -> Iterator[bytes]:
        """Bodies until the kernel says done or acknowledges. Answers to an earlier, abandoned question are skipped."""
        interrupted = False
        while True:
            datagram = self._socket.recv(1 << 18)
            at = 0
            while at + _HEADER.size <= len(datagram):
                length, kind, flags, answered, _ = _HEADER.unpack_from(datagram, at)
                body = datagram[at + _HEADER.size : at + length]
                at += max(_HEADER.size, (length + 3) & ~3)
                if answered != sequence:
                    continue
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    code = -int.from_bytes(body[:4], "little", signed=True)
                    if code:
                        raise OSError(code, os.strerror(code))
                    if interrupted:
                        raise InterruptedError(4, "the set changed while it was read")
                    return
                yield body[_FAMILY.size :]


def _names(table: str, name: str) -> bytes:
    return _attribute(_LIST_TABLE, table.encode() + b"\0") + _attribute(_LIST_SET, name.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) & 3
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * padding


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_pairs(data))


def _elements(body: bytes) -> Iterator[KernelElement]:
    listed = _attributes(body).get(_LIST_ELEMENTS, b"")
    for _, one in _pairs(listed):
        fields = _attributes(one)
        key = _attributes(fields.get(_KEY, b"")).get(_DATUM, b"")
        end = bool(int.from_bytes(fields.get(_FLAGS, b"\0"), "big") & _INTERVAL_END)
        expires = fields.get(_EXPIRATION, fields.get(_TIMEOUT))
        yield KernelElement(key, int.from_bytes(expires, "big") / 1000 if expires else None, end)
