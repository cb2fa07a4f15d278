"""Room for a flood: while looks are large, the heap keeps what they free instead of giving it back at once.

A cell's heap hands blocks of a quarter of a megabyte back to the kernel (actors/core/thrift.py), which is right for one
that idles. A look at fifty thousand flows makes hundreds of such blocks, each of them mapped, filled with zeros page by
page and unmapped again: that was half of its time. With another C library nothing is changed.
"""

import ctypes

from actors.core import thrift

#: Flows of one look that make it large, and looks in a row below that after which the flood is over.
MANY, CALM = 4_096, 20
#: Of <malloc.h>, glibc 2.36; the first is the largest that it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST, _KEPT = 32 << 20, 256 << 20


class Heap:
    """Asked once per look."""

    def __init__(self) -> None:
        self.roomy = False
        self._calm = 0

    def look(self, flows: int) -> None:
        """flows: how many there are to look at."""
        self._calm = 0 if flows >= MANY else self._calm + 1
        if flows >= MANY and not self.roomy:
            self.roomy = True
            _keep()
        elif self.roomy and self._calm >= CALM:
            self.roomy = False
            thrift.one_heap()
            thrift.give_back()


def _keep() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
