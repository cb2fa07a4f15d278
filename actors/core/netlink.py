"""Netlink: one question to the kernel and its answers, for every family of netlink that we read.

Messages and attributes are laid out as ``linux/netlink.h`` says, which is kernel ABI. One question at a time; not for
use by two threads at once.
"""

import os
import socket
import struct
from collections.abc import Iterator

REQUEST, ACKNOWLEDGE, DUMP = 0x001, 0x004, 0x300
_DUMP_INTERRUPTED = 0x010
_ERROR, _DONE = 2, 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

#: A dump that changes of others keep interrupting is given up after this many attempts.
_ATTEMPTS = 5
_ANSWER_LIMIT_S = 2.0


class NetlinkSocket:
    """Raises OSError with the kernel's errno, and ``TimeoutError`` when nothing comes for two seconds.

    protocol: ``socket.NETLINK_ROUTE`` and its like. The network namespace is that of the thread that makes it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_ANSWER_LIMIT_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "NetlinkSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        """The payloads of all answers to one message, until the kernel says done or acknowledges."""
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(payload), kind, REQUEST | flags, self._sequence, 0)
        self._socket.send(header + payload)
        yield from self._answers(self._sequence)

    def dump(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """All of a list. One that changes meanwhile is read again; OSError EINTR when that never ends."""
        for _ in range(_ATTEMPTS):
            try:
                return list(self.ask(kind, flags | DUMP, payload))
            except InterruptedError:
                continue
        raise InterruptedError(4, f"what is being read changed under every one of {_ATTEMPTS} attempts to read it")

    def _answers(self, sequence: int) -> Iterator[bytes]:
        """Answers to an earlier, abandoned question are skipped."""
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
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    if interrupted:
                        raise InterruptedError(4, "what is being read was changed")
                    return
                yield body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) & 3)


def nest(kind: int, value: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, value)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute, in order; ends at the first that cannot be one."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
