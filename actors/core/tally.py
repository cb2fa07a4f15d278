"""Tally: counters of a process that cannot report, on a page that it shares with the supervisor.

The admin is Thespian's own process: no cell lives in it, and nobody asks it anything. What its socket refuses would be
known to itself alone. The launcher makes the page, the admin writes, the supervisor reads; cells do not inherit it.
"""

import mmap
import struct

_NUMBER = struct.Struct("=Q")


class Tally:
    """Whole numbers by name, for the names given; usable where a ``Counter`` is added to."""

    def __init__(self, *names: str) -> None:
        self._places = {name: number * _NUMBER.size for number, name in enumerate(names)}
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def keep_from_forks(self) -> None:
        """In the reader: processes forked from now on do not get the page."""
        self._page.madvise(mmap.MADV_DONTFORK)

    def __getitem__(self, name: str) -> int:
        number: int = _NUMBER.unpack_from(self._page, self._places[name])[0]
        return number

    def __setitem__(self, name: str, value: int) -> None:
        _NUMBER.pack_into(self._page, self._places[name], value)

    def counts(self, prefix: str) -> dict[str, int]:
        """Those that are not nought, by prefixed name."""
        return {f"{prefix}{name}": count for name in self._places if (count := self[name])}
