"""Timers of a cell, on one timerfd: ordered, cancellable, never lost.

Thespian's own wake-ups are lost under load and arrive in reverse order; a timerfd in the cell's watch list is neither.
"""

import ctypes
import heapq
import itertools
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_CLOCK_MONOTONIC, _TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 1, 0o4000, 0o2000000, 1
_libc = ctypes.CDLL(None, use_errno=True)


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: interval, then first expiry, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


@dataclass(order=True)
class _Entry:
    due: float
    id: int
    call: Callable[[], Any] = field(compare=False)
    period: float | None = field(compare=False, default=None)


#: Periodic timers of at least ``_LONG_S`` fire in step with each other: an idle cell wakes once, not for each of them.
_LONG_S, _STEP_S = 0.5, 1.0


class Timers:
    """Calls functions on the thread that calls ``run``. Times are monotonic seconds; late calls are made in order.

    A periodic timer that is more than a period late skips what it missed: it never fires in a burst. Those with a
    period of half a second or more fall into step with the first of them: their first call comes up to a quarter of a
    step (half a second, or one) too early or three quarters late."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._heap: list[_Entry] = []
        self._live: set[int] = set()
        self._ids = itertools.count(1)
        self._origin = 0.0

    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> int:
        """Call once, ``seconds`` from now. Returns the id for ``cancel``."""
        due = time.monotonic() + max(0.0, seconds)
        return self._add(due, (lambda: call(*args)) if args else call, None)

    def every(self, seconds: float, call: Callable[..., Any]) -> int:
        """Call again and again, first after one period. Raises ValueError unless ``seconds`` > 0."""
        if seconds <= 0:
            raise ValueError("a period must be longer than nothing")
        due = time.monotonic() + seconds
        if seconds >= _LONG_S:
            self._origin = self._origin or due
            step = min(seconds, _STEP_S)
            due = self._origin + math.floor((due - self._origin) / step + 0.75) * step
        return self._add(due, call, seconds)

    def dues(self) -> list[tuple[int, float]]:
        """Id and time of everything that waits."""
        return [(entry.id, entry.due) for entry in self._heap if entry.id in self._live]

    def cancel(self, timer: int) -> None:
        """Forget a timer; one that has fired or is unknown is no error."""
        self._live.discard(timer)

    def run(self) -> None:
        """Call everything that is due. Spurious calls are harmless."""
        with suppress(BlockingIOError):  # woken for another descriptor, or the timer was set anew meanwhile
            os.read(self.fd, 8)
        now = time.monotonic()
        while self._heap and self._heap[0].due <= now:
            entry = heapq.heappop(self._heap)
            if entry.id not in self._live:
                continue
            if entry.period is None:
                self._live.discard(entry.id)
            else:
                entry.due += entry.period * (1 + (now - entry.due) // entry.period)
                heapq.heappush(self._heap, entry)
            entry.call()
        self._arm()

    def close(self) -> None:
        os.close(self.fd)

    def _add(self, due: float, call: Callable[..., Any], period: float | None) -> int:
        entry = _Entry(due, next(self._ids), call, period)
        self._live.add(entry.id)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._arm()
        return entry.id

    def _arm(self) -> None:
        while self._heap and self._heap[0].id not in self._live:
            heapq.heappop(self._heap)
        due = max(self._heap[0].due, 1e-6) if self._heap else 0.0
        spec = _TimerSpec(0, 0, int(due), int(due % 1 * 1e9))
        if _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
