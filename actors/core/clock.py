"""Clocks: the time as an argument.

Pure code takes a number; a cell or tool that must read the time takes a ``Clock``, so that tests turn it by hand.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Two times: one that never steps, one that people read."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary origin; the same origin in every process of this boot; never goes back."""
        ...

    def unix(self) -> float:
        """Seconds since 1970; may step when the host's clock is set."""
        ...


class SystemClock:
    """The kernel's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def unix(self) -> float:
        return time.time()


class ManualClock:
    """A clock that stands still until ``advance``."""

    def __init__(self, monotonic: float = 1_000.0, unix: float = 1_800_000_000.0) -> None:
        self._monotonic, self._unix = monotonic, unix

    def monotonic(self) -> float:
        return self._monotonic

    def unix(self) -> float:
        return self._unix

    def advance(self, seconds: float) -> None:
        """Let both clocks run on; raises ValueError for a step back, which ``step`` makes on purpose."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self._monotonic += seconds
        self._unix += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or back; the monotonic one does not notice."""
        self._unix += seconds
