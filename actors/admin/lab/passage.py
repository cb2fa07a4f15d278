"""Which packets of one source left when, and which of them arrived: the arithmetic of reaction and leak.

Pure. The sender's log gives the departures, the witness the arrivals; nothing here asks the firewall.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

FOREVER_NS = 1 << 62


@dataclass(frozen=True)
class Passage:
    """left_ns: departures in order, CLOCK_MONOTONIC. arrived: indexes of those that came through every filter."""

    left_ns: Sequence[int]
    arrived: frozenset[int]

    def counts(self, since_ns: int = 0, until_ns: int = FOREVER_NS) -> tuple[int, int]:
        """How many packets left in this span, and how many of them arrived."""
        span = self._span(since_ns, until_ns)
        return len(span), sum(1 for index in span if index in self.arrived)

    def first_lost_ns(self, since_ns: int = 0) -> int | None:
        """When the first packet left that never arrived; None when all arrived."""
        for index in self._span(since_ns, FOREVER_NS):
            if index not in self.arrived:
                return self.left_ns[index]
        return None

    def reaction_ms(self, since_ns: int | None = None) -> float | None:
        """From the first packet (or ``since_ns``) to the first that was lost; None when none was."""
        if not self.left_ns:
            return None
        lost_ns = self.first_lost_ns(since_ns or 0)
        return None if lost_ns is None else round((lost_ns - (since_ns or self.left_ns[0])) / 1e6, 2)

    def leaked(self, since_ns: int = 0, until_ns: int = FOREVER_NS) -> int:
        """Packets that left after the first lost one and arrived all the same. Without any reaction: all of them."""
        lost_ns = self.first_lost_ns(since_ns)
        start_ns = since_ns if lost_ns is None or lost_ns >= until_ns else lost_ns
        return self.counts(start_ns, until_ns)[1]

    def _span(self, since_ns: int, until_ns: int) -> range:
        return range(bisect.bisect_left(self.left_ns, since_ns), bisect.bisect_left(self.left_ns, until_ns))


def slowest(reactions: Sequence[float | None]) -> float | None:
    """The reaction of the whole: the slowest one, or None when one never came."""
    known = [reaction for reaction in reactions if reaction is not None]
    return max(known) if known and len(known) == len(reactions) else None
