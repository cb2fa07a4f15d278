"""Many bans in one wish: admitted together, then written down and carried out a slice at a time.

All of them or, when one is refused, none: nothing is entered before all are admitted. A slice is one entry of the
journal and one message to the enforcing cells. Between two slices the cell does whatever else has arrived, so that one
more ban never waits long behind a hundred thousand.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.messages import Action
from actors.hypodermis.diary import Diary
from actors.hypodermis.gate import Wish
from actors.hypodermis.herald import Herald
from actors.hypodermis.journal_line import JournalLine
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.subjects import Prefix

#: Subjects of one slice: about seven milliseconds here, and as much in each cell that hears of it.
SLICE = 1_500
#: The pause between two slices in which others have their turn.
PAUSE_S = 0.001
#: Slices that may be on their way to the disk.
UNDER_WAY = 3


@dataclass(eq=False)
class ManyWishes:
    """What one person wishes of many. ``wish`` holds for each of the subjects; its own subject means nothing."""

    wish: Wish
    left: list[Prefix]
    owed: Deferred
    answer: Callable[[], Any]
    unwritten: int = 0

    def bans(self, subjects: Iterable[Prefix]) -> list[Ban]:
        """The same ban of each, from now on."""
        wish, now = self.wish, time.time()
        until = now + wish.ttl_s if wish.ttl_s else 0.0
        return [Ban(s, Action.BAN, wish.origin, wish.reason, now, until, "", wish.evidence, wish.by) for s in subjects]


class BulkBans:
    """Belongs to one cell, on its actor thread. ``entered`` is called after each slice is in the ledger."""

    def __init__(
        self,
        cell: Cell,
        ledger: Ledger,
        journal: JournalLine,
        diary: Diary,
        herald: Herald,
        entered: Callable[[], None],
    ) -> None:
        self._cell, self._ledger, self._journal, self._diary, self._herald = cell, ledger, journal, diary, herald
        self._entered = entered
        self._waiting: deque[ManyWishes] = deque()
        self._under_way = 0
        self._timer = 0

    @property
    def to_come(self) -> int:
        """Subjects that were admitted and have yet to take their room in the ledger."""
        return sum(len(wishes.left) for wishes in self._waiting)

    def take(self, wishes: ManyWishes) -> None:
        """Carry out what the gate has admitted; the answer follows when all of it is written down."""
        self._waiting.append(wishes)
        self._later()

    def _later(self) -> None:
        if self._waiting and self._under_way < UNDER_WAY and not self._timer:
            self._timer = self._cell.after(PAUSE_S, self._next_slice)

    def _next_slice(self) -> None:
        """Those that are banned already are renewed, and their entries differ from each other."""
        self._timer = 0
        wishes = self._waiting[0]
        part, wishes.left = wishes.left[:SLICE], wishes.left[SLICE:]
        if not wishes.left:
            self._waiting.popleft()
        standing = self._ledger.bans
        new = [subject for subject in part if subject not in standing]
        if len(new) < len(part):
            self._renew(wishes, [subject for subject in part if subject in standing])
        if new:
            self._place(wishes, new)
        self._cell.counters["bans_by_hand"] += len(part)
        self._entered()
        self._later()

    def _place(self, wishes: ManyWishes, subjects: list[Prefix]) -> None:
        placed = [self._ledger.place(ban) for ban in wishes.bans(subjects)]
        rows = b"".join(subject.row for subject in subjects)
        then = self._began(wishes, lambda: self._herald.many(placed, rows))
        self._journal.write_many(self._diary.ban_of_many(placed[0], rows), then)

    def _renew(self, wishes: ManyWishes, subjects: list[Prefix]) -> None:
        placed = [self._ledger.place(ban) for ban in wishes.bans(subjects)]
        then = self._began(wishes, lambda: self._herald.changed(subjects))
        self._journal.write([self._diary.ban(ban) for ban in placed], then)

    def _began(self, wishes: ManyWishes, enforce: Callable[[], None]) -> Callable[[], None]:
        """What follows once a part is on disk."""
        self._under_way += 1
        wishes.unwritten += 1

        def written() -> None:
            self._under_way -= 1
            wishes.unwritten -= 1
            enforce()
            if not wishes.left and not wishes.unwritten:
                wishes.owed.reply(wishes.answer())
            self._later()

        return written
