"""Drains BPF ring buffers in bulk: shared memory and numpy, tens of millions of records a second.

The kernel maps the data area twice in a row, so a batch never wraps. Each record has an 8-byte header: its length, with
a bit for "still being written" and one for "thrown away". The descriptor is readable when something waits, so it fits
any event loop. One reader per ring. Source: kernel/bpf/ringbuf.c of Linux.
"""

import mmap
import os
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi, libbpf

BUSY, DISCARD = 1 << 31, 1 << 30
_LENGTH = DISCARD - 1


class _Ring:
    """The shared pages of one ring buffer map."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = libbpf.map_info(fd).max_entries
        consumer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        producer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._consumed = np.frombuffer(consumer, "<u8", 1)
        self._produced = np.frombuffer(producer, "<u8", 1)

    @cached_property
    def data(self) -> npt.NDArray[np.uint8]:
        """Mapped when the first record has come: a mapping counts whole against its process, a quiet node has none."""
        shared = mmap.mmap(self.fd, 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=2 * mmap.PAGESIZE)
        return np.frombuffer(shared, np.uint8)

    def waiting(self) -> tuple[int, int]:
        """Offset of the first unread byte in ``data``, and how many bytes follow."""
        at = int(self._consumed[0])
        return at & (self.size - 1), int(self._produced[0]) - at

    def rest(self) -> None:
        """Nothing has come for a while: let go of the mapping until the next record."""
        self.__dict__.pop("data", None)

    def advance(self, size: int) -> None:
        self._consumed[0] += np.uint64(size)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RecordRing(_Ring):
    """A ring whose records all have one structure."""

    def __init__(self, fd: int, dtype: np.dtype[np.void]) -> None:
        super().__init__(fd)
        if dtype.itemsize % 8:
            raise ValueError(f"records of {dtype.itemsize} bytes are no whole words")
        self._dtype = dtype
        self._width = 8 + dtype.itemsize

    def read(self, limit: int = 65_536) -> npt.NDArray[Any]:
        """Copies of up to ``limit`` waiting records; empty when none. Stops before one that is still being written.

        Headers are looked at before the records are copied, never with them. Copied as words: numpy moves structures
        one field of one record at a time, six times slower."""
        start, size = self.waiting()
        count = min(size // self._width, limit)
        if not count:
            return np.zeros(0, self._dtype)
        headers = np.ndarray(count, "<u4", self.data.data, start, self._width)
        odd = headers != self._dtype.itemsize
        if odd.any():
            count = int(odd.argmax())
        words = (count, self._dtype.itemsize // 8)
        waiting = np.ndarray(words, "<u8", self.data.data, start + 8, (self._width, 8))
        records = np.empty(words, "<u8")
        records[:] = waiting
        self.advance(count * self._width)
        return records.view(self._dtype).reshape(-1)


class SampleRing(_Ring):
    """The ring of payload samples: a fixed header, then as many bytes as it says."""

    def read(self, limit: int = 1_024) -> list[tuple[Any, bytes]]:
        """Up to ``limit`` waiting samples as (header record, payload)."""
        found: list[tuple[Any, bytes]] = []
        start, size = self.waiting()
        header = abi.SAMPLE
        at, end = start, start + size
        while at < end and len(found) < limit:
            length = int(self.data[at : at + 4].view("<u4")[0])
            if length & BUSY:
                break
            if not length & DISCARD and (length & _LENGTH) >= header.itemsize:
                body = self.data[at + 8 : at + 8 + (length & _LENGTH)]
                head = body[: header.itemsize].copy().view(header)[0]
                payload = body[header.itemsize : header.itemsize + int(head["captured"])].tobytes()
                found.append((head, payload))
            at += (8 + (length & _LENGTH) + 7) & ~7
        self.advance(at - start)
        return found


class NoStream:
    """Where the kernel refuses every kind of stream: nothing comes, counters must be polled."""

    fd = -1

    def read(self, limit: int = 0) -> Any:
        return np.zeros(0, abi.EVENT)

    def close(self) -> None:
        """Nothing is open."""


class NoSamples:
    """Payload sampling is not possible here."""

    fd = -1

    def read(self, limit: int = 0) -> list[tuple[Any, bytes]]:
        return []

    def rest(self) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""
