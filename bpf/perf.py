"""Perf event array: the way up for incidents where the kernel refuses the ring buffer.

One buffer per CPU, each with its own descriptor; an epoll descriptor stands for all of them, so the reader looks like a
ring to its user. Needs CAP_PERFMON. Source: perf_event_open(2), include/uapi/linux/perf_event.h.
"""

import ctypes
import mmap
import os
import select
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import libbpf
from bpf.program import possible_cpus

PAGES = 64  #: of data per CPU, a power of two
_SOFTWARE, _BPF_OUTPUT, _SAMPLE_RAW = 1, 10, 1 << 10
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
_HEAD, _TAIL = 1024, 1032  #: offsets in struct perf_event_mmap_page
_ENABLE = 0x2400
_SYSCALL = {"x86_64": 298, "aarch64": 241}


def _open_on(cpu: int) -> int:
    attributes = bytearray(128)
    struct.pack_into("<IIQQQ", attributes, 0, _SOFTWARE, 128, _BPF_OUTPUT, 1, _SAMPLE_RAW)
    struct.pack_into("<I", attributes, 48, 1)  # wake up after one event
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise libbpf.KernelRefused("perf event", f"CPU {cpu}", 38)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_char * 128).from_buffer(attributes)
    fd = libc.syscall(number, buffer, -1, cpu, -1, ctypes.c_ulong(8))
    if fd < 0:
        raise libbpf.KernelRefused("perf event", f"CPU {cpu}", ctypes.get_errno())
    return int(fd)


class PerfDrain:
    """Reads fixed records from a perf event array. ``lost`` counts what the kernel had no room for."""

    def __init__(self, map_fd: int, dtype: np.dtype[np.void]) -> None:
        self._dtype = dtype
        self.lost = 0
        self._buffers: list[tuple[int, mmap.mmap]] = []
        poll = select.epoll()
        self._poll = poll
        self.fd = poll.fileno()
        libc = ctypes.CDLL(None, use_errno=True)
        for cpu in range(min(possible_cpus(), libbpf.map_info(map_fd).max_entries)):
            try:
                fd = _open_on(cpu)
            except libbpf.KernelRefused:
                if cpu == 0:
                    raise
                continue  # a CPU that is not up
            self._buffers.append((fd, mmap.mmap(fd, (1 + PAGES) * mmap.PAGESIZE)))
            libbpf.put(map_fd, np.array([cpu], "<u4"), np.array([fd], "<u4"))
            libc.ioctl(fd, ctypes.c_ulong(_ENABLE), 0)
            poll.register(fd, select.EPOLLIN)

    def read(self, limit: int = 65_536) -> npt.NDArray[Any]:
        """Copies of up to ``limit`` waiting records; empty when none."""
        self._poll.poll(0)  # clears the readiness of what is read now
        found: list[bytes] = []
        for _fd, memory in self._buffers:
            found += self._read_one(memory, limit - len(found))
        return np.frombuffer(b"".join(found), self._dtype)

    def _read_one(self, memory: mmap.mmap, limit: int) -> list[bytes]:
        size = PAGES * mmap.PAGESIZE
        (head,) = struct.unpack_from("<Q", memory, _HEAD)
        (tail,) = struct.unpack_from("<Q", memory, _TAIL)
        found: list[bytes] = []
        while tail < head and len(found) < limit:
            kind, _misc, length = struct.unpack("<IHH", _wrapped(memory, tail % size, 8, size))
            if length < 8:
                tail = head  # a broken buffer: give up on what waits in it
                break
            body = _wrapped(memory, (tail + 8) % size, length - 8, size)
            if kind == _RECORD_SAMPLE:
                (raw,) = struct.unpack_from("<I", body)
                if raw >= self._dtype.itemsize:
                    found.append(body[4 : 4 + self._dtype.itemsize])
            elif kind == _RECORD_LOST:
                self.lost += struct.unpack_from("<QQ", body)[1]
            tail += length
        struct.pack_into("<Q", memory, _TAIL, tail)
        return found

    def close(self) -> None:
        if self.fd < 0:
            return
        self._poll.close()
        self.fd = -1
        for fd, memory in self._buffers:
            memory.close()
            os.close(fd)
        self._buffers.clear()


def _wrapped(memory: mmap.mmap, at: int, length: int, size: int) -> bytes:
    """Bytes of the data area, which follows the first page and wraps."""
    start = mmap.PAGESIZE + at
    first = min(length, size - at)
    return memory[start : start + first] + memory[mmap.PAGESIZE : mmap.PAGESIZE + length - first]
