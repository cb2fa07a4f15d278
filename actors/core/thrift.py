"""Thrift: one heap per process; what is free in it, and code that ran only at the start, goes back to the kernel.

glibc gives every thread a heap of its own (an arena), keeps what is freed for later, and learns from each large array
that is freed to keep the next one too. A cell does its heavy work once, at its start and mostly in a worker thread, and
would hold those pages for life: that was 11 MB of the reflex arc and 24 MB of the macrophage. With another C library
the heap is left as it is.

Code of libraries is mapped page by page as it runs, and much of it runs once, while modules are imported. Such pages
stay in the page cache when a process lets go of them; what is needed again comes back without reading the disk.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

#: Of <malloc.h>, glibc 2.36.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Blocks from this size on come from the kernel and go back when they are freed; free space above it at the end of the
#: heap goes back as well. To set them ends the learning.
_LARGE: Final = 256 * 1024
_MADV_DONTNEED: Final = 4
#: When a cell settles: soon after its start, and once more for what a busy machine had not finished by then. Later it
#: gives back now and again. Seconds; it takes a millisecond.
SETTLE_S, EVERY_S = (3.0, 10.0), 60.0


def one_heap() -> None:
    """For this process and all that are forked from it. Call it before any thread."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE)):
            libc.mallopt(option, value)


def give_back() -> None:
    """Whole pages that are free anywhere in the heap; harmless at any time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def settle() -> None:
    """The start is over: give back, and let go of all code pages; the few that still run come back by themselves.

    Only mappings of files that may be executed and not written: nothing in them is ever changed, so nothing is lost."""
    give_back()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "madvise"):
        return
    with suppress(OSError), Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, rights, _offset, _device, inode, *_path = line.split()
            if rights == "r-xp" and inode != "0":
                start, end = (int(edge, 16) for edge in span.split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


@contextmanager
def absent(module: str) -> Iterator[None]:
    """Libraries imported in here find ``module`` not installed, unless it is loaded already; it can be imported later.

    For what a library takes along for the sake of something that a service never shows."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
