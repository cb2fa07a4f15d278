"""Outbox: what leaves the node leaves at least once, in order, and never faster than its server takes it.

The journal itself is the queue; each sink (a database, a broker) keeps one cursor in it. A batch is offered again until
it is acknowledged, with the same idempotent keys, so a sink that keeps keys unique stores every entry exactly once.
Pure: times are arguments; whoever carries the entries calls ``due``, then ``acknowledged`` or ``failed``.
"""

from dataclasses import dataclass
from typing import Any, Protocol

BATCH = 500
RETRY_FIRST_S = 1.0
RETRY_CAP_S = 60.0


class Journal(Protocol):
    """What an outbox needs of the store."""

    def since(self, seq: int, limit: int = BATCH) -> list[dict[str, Any]]: ...
    def sent_to(self, sink: str) -> int: ...
    def sent(self, sink: str, seq: int) -> None: ...


@dataclass(frozen=True)
class Parcel:
    """Entries under way, oldest first; up_to is the cursor once they have arrived."""

    entries: tuple[dict[str, Any], ...]
    up_to: int


class Outbox:
    """One sink's view of the journal. At most one parcel is under way."""

    def __init__(self, journal: Journal, sink: str) -> None:
        self._journal, self._sink = journal, sink
        self._under_way: Parcel | None = None
        self._failures = 0
        self._not_before = 0.0

    def due(self, now: float, limit: int = BATCH) -> Parcel | None:
        """The next parcel, or None when nothing waits, one is under way, or the pause after a failure is not over."""
        if self._under_way is not None or now < self._not_before:
            return None
        entries = self._journal.since(self._journal.sent_to(self._sink), limit)
        if not entries:
            return None
        self._under_way = Parcel(tuple(entries), int(entries[-1]["seq"]))
        return self._under_way

    def acknowledged(self, parcel: Parcel) -> None:
        """The sink has it for good. An answer to an earlier parcel is ignored."""
        if parcel is self._under_way:
            self._journal.sent(self._sink, parcel.up_to)
            self._under_way, self._failures, self._not_before = None, 0, 0.0

    def failed(self, parcel: Parcel, now: float) -> float:
        """It did not arrive, or nobody knows. Returns the seconds until it is offered again: 1, 2, 4 … 60."""
        if parcel is not self._under_way:
            return 0.0
        self._under_way = None
        pause = min(RETRY_CAP_S, RETRY_FIRST_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._not_before = now + pause
        return float(pause)
