"""Rewriting: a journal that was damaged is put aside, and what is in force is written into the new one.

Otherwise the next start would recall nothing of it. Bans of one decision travel together; a slice at a time, so that
the cell stays able to answer. What is released meanwhile is left out.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from actors.core.cell import Cell
from actors.core.messages import BATCH_LIMIT, Action, Entry
from actors.hypodermis.diary import Diary
from actors.hypodermis.journal_line import JournalLine
from actors.hypodermis.ledger import Ban, Ledger, to_body
from actors.hypodermis.tolerance import Tolerance

#: Bans looked at in one go, and the pause behind them.
SLICE, PAUSE_S = 2_000, 0.02


class Rewrite:
    """Belongs to one cell, on its actor thread. ``others``: entries about all else that is in force."""

    def __init__(
        self,
        cell: Cell,
        journal: JournalLine,
        diary: Diary,
        ledger: Ledger,
        tolerance: Tolerance,
        others: Callable[[], list[Entry]],
    ) -> None:
        self._cell, self._journal, self._diary = cell, journal, diary
        self._ledger, self._tolerance, self._others = ledger, tolerance, others
        self._epoch = ""

    def heard(self, epoch: str) -> None:
        """Memory has named its file; another one than before was begun anew."""
        if not epoch or epoch == self._epoch:
            return
        before, self._epoch = self._epoch, epoch
        if before:
            self._begin()

    def _begin(self) -> None:
        self._cell.counters["journal_rewritten"] += 1
        self._cell.log.warning("new_journal", bans=len(self._ledger), tolerated=len(self._tolerance))
        spared = [entry for entry in self._tolerance if entry.origin != "settings"]
        entries = [*self._others(), *(self._diary.tolerance(entry.prefix, entry) for entry in spared)]
        for start in range(0, len(entries), BATCH_LIMIT):
            self._journal.write(entries[start : start + BATCH_LIMIT])
        self._write(list(self._ledger.bans.values()))

    def _write(self, left: list[Ban]) -> None:
        living = (ban for ban in left[:SLICE] if self._ledger.get(ban.subject) is ban)
        alone: list[Entry] = []
        for bans in _alike(living):
            if len(bans) == 1:
                alone.append(self._diary.ban(bans[0]))
            else:
                rows = b"".join(ban.subject.row for ban in bans)
                self._journal.write_many(self._diary.ban_of_many(bans[0], rows))
        if alone:
            self._journal.write(alone)
        if len(left) > SLICE:
            self._cell.after(PAUSE_S, self._write, left[SLICE:])


def _alike(bans: Iterable[Ban]) -> list[list[Ban]]:
    """Bans that differ in nothing but their subject. One that is only noted was no ban and stays in the past."""
    found: dict[Any, list[Ban]] = {}
    for ban in bans:
        if ban.action is not Action.OBSERVE:
            found.setdefault(msgspec.msgpack.encode(to_body(ban)), []).append(ban)
    return list(found.values())
