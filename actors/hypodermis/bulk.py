"""Many bans in one wish: judged, written down and carried out a slice at a time.

All of them or, when one is refused, none: nothing is entered before all are judged. Between two slices the cell does
whatever else has arrived, so that one more ban never waits long behind a hundred thousand.
"""

from collections.abc import Callable, Sequence
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.errors import Refused
from actors.hypodermis.ledger import Ban
from actors.hypodermis.subjects import Prefix

#: Subjects of one slice, a few milliseconds, and the pause in which others have their turn.
SLICE, PAUSE_S = 50, 0.002
#: Slices that may be on their way to the disk: one message to memory, so that a lone ban waits behind no more.
UNDER_WAY = 4


class BulkBan:
    """One wish on its way. ``judge`` raises Refused; ``carry_out`` calls its second argument when it is on disk."""

    def __init__(
        self,
        cell: Cell,
        owed: Deferred,
        subjects: Sequence[Prefix],
        *,
        judge: Callable[[Prefix], Ban],
        carry_out: Callable[[list[Ban], Callable[[], None]], None],
        answer: Callable[[], Any],
    ) -> None:
        self._cell, self._owed, self._subjects = cell, owed, subjects
        self._judge_one, self._carry_out, self._answer = judge, carry_out, answer
        self._bans: list[Ban] = []
        self._begun = self._under_way = 0

    def judge(self) -> None:
        """The first step; the others follow by themselves."""
        judged = len(self._bans)
        try:
            self._bans += [self._judge_one(subject) for subject in self._subjects[judged : judged + SLICE]]
        except Refused as refused:
            self._owed.refuse(refused)
            return
        self._cell.after(PAUSE_S, self.judge if len(self._bans) < len(self._subjects) else self._go_on)

    def _go_on(self) -> None:
        if self._begun >= len(self._bans) or self._under_way >= UNDER_WAY:
            return
        part = self._bans[self._begun : self._begun + SLICE]
        self._begun += len(part)
        self._under_way += 1
        self._carry_out(part, self._written)
        if self._under_way < UNDER_WAY:
            self._cell.after(PAUSE_S, self._go_on)

    def _written(self) -> None:
        full = self._under_way == UNDER_WAY
        self._under_way -= 1
        if self._begun == len(self._bans) and not self._under_way:
            self._owed.reply(self._answer())
        elif full:
            self._cell.after(PAUSE_S, self._go_on)
