"""The reminder: an order about which a standing layer has said nothing after a while is sent again.

A message may be lost on its way to a cell that lives on, without anybody being told. The same order twice is one ban,
so repeating costs little; after a few times the missing proof is left to be seen in `blocks`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from actors.core.cell import Cell
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.subjects import Prefix

LOOK_EVERY_S = 5.0
#: A lone ban is proved in milliseconds; many are proved at some thousands a second.
PATIENCE_S, MANY_PATIENCE_S = 10.0, 120.0
TIMES = 3
#: Lone orders that are kept in mind; the oldest beyond that are trusted. Lists of many: a list is one of these.
LIMIT = 10_000


class Reminder:
    """Belongs to one cell, on its actor thread. ``silent(ban)``: a layer that stands has not said a word about it."""

    def __init__(
        self, cell: Cell, ledger: Ledger, silent: Callable[[Ban], bool], again: Callable[[Iterable[Prefix]], None]
    ) -> None:
        self._cell, self._ledger, self._silent, self._again = cell, ledger, silent, again
        self._lone: deque[tuple[float, Ban]] = deque()
        self._times: dict[int, int] = {}  # serial of each of the lone → how often it was sent again
        self._many: deque[tuple[float, Sequence[Ban]]] = deque(maxlen=LIMIT)
        self._timer = 0

    def told(self, bans: Iterable[Ban]) -> None:
        """The enforcing cells have been told of these; those that are in mind already stay as they are."""
        due_s = time.monotonic() + PATIENCE_S
        for ban in bans:
            if ban.serial not in self._times:
                self._times[ban.serial] = 0
                self._lone.append((due_s, ban))
        while len(self._lone) > LIMIT:
            self._forget(self._lone.popleft()[1])
        self._arm()

    def told_many(self, bans: Sequence[Ban]) -> None:
        """The same of a long list."""
        self._many.append((time.monotonic() + MANY_PATIENCE_S, bans))
        self._arm()

    def look(self, now_s: float | None = None) -> None:
        """Send again what nobody has answered for too long."""
        self._timer = 0
        now_s = time.monotonic() if now_s is None else now_s
        due: list[Ban] = []
        while self._lone and self._lone[0][0] <= now_s:
            ban = self._lone.popleft()[1]
            if self._open(ban) and self._times[ban.serial] < TIMES:
                self._times[ban.serial] += 1
                self._lone.append((now_s + PATIENCE_S, ban))
                due.append(ban)
            else:
                self._forget(ban)
        while self._many and self._many[0][0] <= now_s:
            due += filter(self._open, self._many.popleft()[1])
        if due:
            self._cell.counters["orders_repeated"] += len(due)
            self._again(ban.subject for ban in due)
        self._arm()

    def _open(self, ban: Ban) -> bool:
        return self._ledger.get(ban.subject) is ban and self._silent(ban)

    def _forget(self, ban: Ban) -> None:
        self._times.pop(ban.serial, None)

    def _arm(self) -> None:
        if not self._timer and (self._lone or self._many):
            self._timer = self._cell.after(LOOK_EVERY_S, self.look)
