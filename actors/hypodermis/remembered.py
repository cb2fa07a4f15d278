"""What memory tells after a start: bans and tolerance are taken back, and questions about them wait until then."""

import time
from collections.abc import Callable
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.errors import TegumentarError
from actors.hypodermis import ledger, wishes
from actors.hypodermis.gate import Gate
from actors.hypodermis.ledger import Ledger
from actors.hypodermis.subjects import parse_prefix
from actors.hypodermis.tolerance import Tolerance

_NONSENSE = (TegumentarError, KeyError, TypeError, ValueError)


class Remembered:
    """Belongs to one cell, on its actor thread. ``look_around`` reads who the node is and who administers it."""

    def __init__(
        self, cell: Cell, gate: Gate, ledger: Ledger, tolerance: Tolerance, look_around: Callable[[bool], None]
    ) -> None:
        self._cell, self._gate, self._ledger, self._tolerance = cell, gate, ledger, tolerance
        self._look_around = look_around
        self._known = False
        self._waiting: list[tuple[Deferred, Callable[[], Any]]] = []

    def tolerance(self, rows: Any) -> None:
        """Entries of the allowlist; one that somebody has set since stays."""
        for body in rows:
            try:
                prefix = parse_prefix(body["subject"])
                if self._tolerance.get(prefix) is None:
                    self._tolerance.add(wishes.toleration(prefix, body))
            except _NONSENSE:
                self._cell.counters["bad_memories"] += 1

    def bans(self, rows: Any) -> None:
        """What was banned stays banned, unless it would now be refused: addresses of the node may have changed."""
        self._look_around(False)
        now = time.time()
        for body in rows:
            try:
                ban = ledger.from_body(parse_prefix(body["subject"]), body)
            except _NONSENSE:
                self._cell.counters["bad_memories"] += 1
                continue
            if ban.subject in self._ledger.bans or not ban.in_force(now):
                continue
            if self._ledger.full or self._gate.objection(ban.subject, now)[0]:
                self._cell.counters["bans_not_recalled"] += 1
                continue
            self._ledger.place(ban)
            if not ban.by:
                self._ledger.offences.set(ban.subject, ban.repeats + 1, ban.since_unix_s)

    def then(self, owed: Deferred, answer: Callable[[], Any]) -> Deferred:
        """A question about what is in force is answered once that is remembered, or given up on."""
        if self._known:
            owed.reply(answer())
        else:
            self._waiting.append((owed, answer))
        return owed

    def all_is_known(self) -> None:
        """Nobody waits any longer."""
        self._known = True
        waiting, self._waiting = self._waiting, []
        for owed, answer in waiting:
            owed.reply(answer())
