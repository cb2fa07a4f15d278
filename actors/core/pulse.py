"""Pulse: one shared page per cell, on which it shows that it lives and leaves its last words.

A message per heartbeat would cost a millisecond of CPU each; writing a number to shared memory costs nothing. The
supervisor makes the page just before the fork and keeps it from later forks, so no sibling can write to it.

    0  u64  actor thread's last beat, monotonic ns        16  u32  length of the cause
    8  u64  asyncio loop's last beat, 0 when there is none 20 …    the cause of death, UTF-8
"""

import mmap
import struct
import time

_BEATS = struct.Struct("=QQ")
_LENGTH = struct.Struct("=I")
_CAUSE_AT = _BEATS.size + _LENGTH.size
_CAUSE_LIMIT = mmap.PAGESIZE - _CAUSE_AT


class Pulse:
    """The page. The cell writes, the supervisor reads and trusts none of it."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self.beat()

    def keep_from_forks(self) -> None:
        """In the supervisor, right after the fork: children made later do not get this page."""
        self._page.madvise(mmap.MADV_DONTFORK)

    def beat(self) -> None:
        """In the cell, on the actor thread."""
        self._page[0:8] = time.monotonic_ns().to_bytes(8, "little")

    def beat_loop(self) -> None:
        """In the cell, in the loop's thread."""
        self._page[8:16] = time.monotonic_ns().to_bytes(8, "little")

    def leave(self, cause: str) -> None:
        """In the cell, as the last thing it does."""
        words = cause.encode("utf-8", "replace")[:_CAUSE_LIMIT]
        self._page[_CAUSE_AT : _CAUSE_AT + len(words)] = words
        self._page[_BEATS.size : _CAUSE_AT] = _LENGTH.pack(len(words))

    def silent_for(self) -> tuple[float, float]:
        """In the supervisor: seconds since the last beat of the actor thread and of the loop (0 when it has none).

        A beat from the future, which only a broken or hostile cell writes, counts as silence since boot."""
        now = time.monotonic_ns()
        actor, loop = _BEATS.unpack_from(self._page)
        return _age(now, actor), _age(now, loop) if loop else 0.0

    def cause(self) -> str:
        """In the supervisor: what the cell left behind, or nothing."""
        (length,) = _LENGTH.unpack_from(self._page, _BEATS.size)
        return self._page[_CAUSE_AT : _CAUSE_AT + min(length, _CAUSE_LIMIT)].decode("utf-8", "replace")

    def close(self) -> None:
        self._page.close()


def _age(now: int, beat: int) -> float:
    return (now - beat) / 1e9 if beat <= now + 1_000_000 else now / 1e9
