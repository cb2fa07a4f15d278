"""Autoimmune guard: a skin that attacks everything is sick. Too many automatic bans too fast stop automatic banning.

A forged-source flood, or a detector gone wrong, would otherwise make the node cut itself off from the whole world. What
people wish is never held back. After the rest it starts again with an empty memory. Monotonic seconds, as arguments.
"""

from collections import deque


class AutoimmuneGuard:
    """At most ``bans`` automatic bans in ``window_s`` seconds; beyond that none for ``rest_s``."""

    def __init__(self, bans: int, window_s: float, rest_s: float) -> None:
        self._bans, self._window_s, self._rest_s = bans, window_s, rest_s
        self._times: deque[float] = deque()
        self._rests_until = 0.0
        self.alarms = 0
        self.withheld = 0  #: bans not placed, since the guard was made

    def resting(self, now: float) -> bool:
        """Automatic bans are stopped."""
        return now < self._rests_until

    def left_s(self, now: float) -> float:
        """Seconds until automatic bans are possible again; 0 when they are."""
        return max(0.0, self._rests_until - now)

    def admit(self, now: float) -> bool:
        """Count one automatic ban. False: it must not be placed."""
        if self.resting(now):
            self.withheld += 1
            return False
        while self._times and self._times[0] <= now - self._window_s:
            self._times.popleft()
        if len(self._times) >= self._bans:
            self._rests_until = now + self._rest_s
            self._times.clear()
            self.alarms += 1
            self.withheld += 1
            return False
        self._times.append(now)
        return True

    def reason(self, now: float) -> str:
        """The alarm, for people; empty while there is none."""
        if not self.resting(now):
            return ""
        return (
            f"more than {self._bans} automatic bans within {self._window_s:g} s: automatic blocking is stopped "
            f"for {self.left_s(now):.0f} s more"
        )

    @property
    def remedy(self) -> str:
        return (
            "what is banned stays banned; look at `blocks` for the origin that proposes so many, and set the posture "
            "hardened or lockdown if the attack is real"
        )
