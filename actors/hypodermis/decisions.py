"""Decisions carried out: written down, told to the enforcing cells, answered; and ended when their time is over."""

import time
from collections.abc import Callable, Iterable

from actors.core.cell import Cell
from actors.core.messages import Entry
from actors.hypodermis.diary import Diary
from actors.hypodermis.herald import Herald
from actors.hypodermis.journal_line import JournalLine
from actors.hypodermis.ledger import Ledger
from actors.hypodermis.subjects import Prefix
from actors.hypodermis.tolerance import Tolerance

#: Bans that end in one go, a few milliseconds, and the pause behind them.
EXPIRE_AT_ONCE, EXPIRE_PAUSE_S = 2_000, 0.005


class Decisions:
    """Belongs to one cell, on its actor thread."""

    def __init__(
        self, cell: Cell, ledger: Ledger, tolerance: Tolerance, journal: JournalLine, diary: Diary, herald: Herald
    ) -> None:
        self._cell, self._ledger, self._tolerance = cell, ledger, tolerance
        self._journal, self._diary, self._herald = journal, diary, herald
        self._timer = 0

    def commit(self, entries: list[Entry], subjects: list[Prefix], then: Callable[[], object] | None = None) -> None:
        """Write down, then enforce, then go on. Somebody waits when there is a ``then``."""
        if not (entries or subjects or then):
            return

        def written() -> None:
            if subjects:
                self._herald.changed(subjects, at_once=then is not None)
            if then is not None:
                then()

        self._journal.write(entries, written)
        self.arm()

    def release(
        self,
        subjects: Iterable[Prefix],
        reason: str,
        by: str,
        *,
        then: Callable[[], object] | None = None,
        tell: Iterable[Prefix] = (),
    ) -> None:
        """Take bans out of the ledger and the kernel; ``tell``: subjects to take out of the kernel in any case."""
        gone = [subject for subject in subjects if self._ledger.release(subject) is not None]
        self._cell.counters["releases"] += len(gone)
        self.commit([self._diary.release(subject, reason, by) for subject in gone], [*gone, *tell], then)

    def expire(self) -> None:
        """Ends of bans and tolerations. The kernel forgets bans by itself; tolerance has to be told."""
        now = time.time()
        over = self._ledger.expire(now, EXPIRE_AT_ONCE)
        self._cell.counters["bans_expired"] += len(over)
        self._cell.gauges["bans"] = len(self._ledger)
        if self._tolerance.expire(now):
            self._herald.tolerance()
        self.arm(EXPIRE_PAUSE_S if len(over) == EXPIRE_AT_ONCE else 1.0)

    def arm(self, least_s: float = 1.0) -> None:
        """Be there when the next one ends."""
        self._cell.cancel(self._timer)
        ends = [end for end in (self._ledger.next_end(), self._tolerance.next_end()) if end]
        if ends:
            self._timer = self._cell.after(max(least_s, min(ends) - time.time()), self.expire)
