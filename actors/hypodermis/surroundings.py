"""Surroundings: what this node must not cut itself off from, read anew when it may have changed."""

import time
from collections.abc import Sequence

from actors.hypodermis.hostfacts import HostFacts, HostSource
from actors.hypodermis.tolerance import SafetySet

#: Addresses and routes are read again when the kernel tells of a change, and after a while in any case; who
#: administers the node changes with every login.
FACTS_FOR_S, SESSIONS_FOR_S = 30.0, 1.0


class Surroundings:
    """The safety set of the moment. Facts and sessions take a fraction of a millisecond each where there are few."""

    def __init__(self, host: HostSource, management_ports: Sequence[int]) -> None:
        self._host, self._ports = host, tuple(management_ports)
        self._facts = HostFacts()
        self._safety = SafetySet()
        self._facts_at = self._sessions_at = float("-inf")

    @property
    def unread(self) -> tuple[str, ...]:
        """What could not be read, in sentences."""
        return self._facts.unread

    def safety(self, *, fresh: bool = False) -> SafetySet:
        """As of a moment ago; ``fresh``: as of now."""
        now = time.monotonic()
        if fresh:
            self._sessions_at = float("-inf")
        if now - self._facts_at >= FACTS_FOR_S or (fresh and self._host.changed()):
            self._facts = self._host.facts()
            self._facts_at, self._sessions_at = now, float("-inf")
        if now - self._sessions_at >= SESSIONS_FOR_S:
            self._safety = SafetySet(self._facts, self._host.admin_sessions(self._ports))
            self._sessions_at = now
        return self._safety
