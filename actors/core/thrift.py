"""Thrift: one heap per process, and what is free in it goes back to the kernel.

glibc gives every thread a heap of its own (an arena), keeps what is freed for later, and learns from each large array
that is freed to keep the next one too. A cell does its heavy work once, at its start and mostly in a worker thread, and
would hold those pages for life: that was 11 MB of the reflex arc and 24 MB of the macrophage. With another C library
nothing here has an effect.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Of <malloc.h>, glibc 2.36.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Blocks from this size on come from the kernel and go back when they are freed; free space above it at the end of the
#: heap goes back as well. To set them ends the learning.
_LARGE: Final = 256 * 1024
#: When a cell gives back: soon after its start, and then now and again. It takes 0.2 ms.
FIRST_S, EVERY_S = 3.0, 60.0


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
