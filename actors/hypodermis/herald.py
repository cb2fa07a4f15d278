"""The herald: carries decisions to the cells that hold the kernel, at the pace they can take.

A lone change goes at once, a storm of them in batches twenty times a second. A cell that has just started gets the
whole desired state as a file. Every message carries a generation that grows, over restarts too, so that a receiver can
tell old from new.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

from actors.core.cell import Cell
from actors.core.errors import ToolFailed
from actors.core.messages import (
    BATCH_LIMIT,
    Enforce,
    EnforceAll,
    EnforceMany,
    Message,
    Order,
    PostureChanged,
    Release,
    SetTolerance,
)
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.orders import OrdersDirectory, order_of
from actors.hypodermis.posture import PostureState
from actors.hypodermis.reminder import Reminder
from actors.hypodermis.subjects import Prefix
from actors.hypodermis.tolerance import Tolerance

#: At most 20 messages a second towards the enforcing cells.
SEND_EVERY_S = 0.05
#: Pause between the batches of one storm.
NEXT_BATCH_S = 0.01
#: Orders that one slice of a whole desired state makes: a few milliseconds.
SLICE = 5_000


class Herald:
    """Speaks for one cell, on its actor thread. ``problem(name, reason, remedy)`` is told what cannot be written;
    ``silent(ban)``: a layer that stands has not said a word about it."""

    def __init__(
        self,
        cell: Cell,
        ledger: Ledger,
        tolerance: Tolerance,
        problem: Callable[[str, str, str], None],
        silent: Callable[[Ban], bool],
    ) -> None:
        self._cell, self._ledger, self._tolerance, self._problem = cell, ledger, tolerance, problem
        self.reminder = Reminder(cell, ledger, silent, self.changed)
        self.directory = OrdersDirectory(Path(cell.settings.run_dir))
        self.generation = int(time.time() * 1_000_000)
        self._changed: dict[Prefix, None] = {}
        self._sent_at = 0.0
        self._timer = 0

    def changed(self, subjects: Iterable[Prefix], *, at_once: bool = False) -> None:
        """Tell of these subjects what the ledger says: enforce, or release what is not (or not any more) in it.

        Those that shall go ``at_once`` pass the ones that wait."""
        if at_once:
            lone = list(dict.fromkeys(subjects))
            for subject in lone:
                self._changed.pop(subject, None)
            for start in range(0, len(lone), BATCH_LIMIT):
                self._send(lone[start : start + BATCH_LIMIT])
            return
        self._changed.update(dict.fromkeys(subjects))
        if self._changed and not self._timer:
            wait = self._sent_at + SEND_EVERY_S - time.monotonic()
            if wait <= 0:
                self._send_waiting()
            else:
                self._timer = self._cell.after(wait, self._send_waiting)

    def many(self, bans: Sequence[Ban], rows: bytes) -> None:
        """New bans of one decision in one message; ``rows`` are their subjects. When one of them is another by now, all
        go the usual way, which looks at each."""
        standing = self._ledger.get
        if not all(standing(ban.subject) is ban for ban in bans):
            self.changed(ban.subject for ban in bans)
            return
        first = bans[0]
        self.generation += 1
        self._cell.publish(
            EnforceMany(
                subjects=rows,
                until_unix_s=first.until_unix_s,
                reason=first.reason[:200],
                generation=self.generation,
            )
        )
        self.reminder.told_many(bans)
        self._cell.gauges["bans"] = len(self._ledger)

    def posture(self, state: PostureState, to: str = "") -> None:
        """The posture in force, to one cell or to everybody."""
        message = PostureChanged(
            posture=state.posture,
            previous=state.previous,
            reason=state.reason[:200],
            by=state.by[:200],
            since_unix_s=state.since_unix_s,
            until_unix_s=state.until_unix_s,
            confirm_by_unix_s=state.confirm_by_unix_s,
        )
        self._say(message, to)

    def tolerance(self, to: str = "") -> None:
        """The whole allowlist, to one cell; to everybody when it has changed."""
        self.generation += not to
        now = time.time()
        self._cell.gauges["tolerated"] = len(self._tolerance)
        prefixes = [entry.prefix.text for entry in self._tolerance if entry.in_force(now)]
        self._say(SetTolerance(prefixes=prefixes, generation=self.generation), to)

    def bans(self, to: str, *, whole: bool) -> None:
        """All bans to one cell. Unless they are the ``whole`` truth only as additions, so that nothing is released."""
        if not self._listens(to, EnforceAll):
            return
        if whole:
            self.generation += 1
            self._write(to, self.generation, list(self._ledger.enforced()), [])
        elif len(self._ledger):
            self.changed(ban.subject for ban in self._ledger.enforced())

    def _send_waiting(self) -> None:
        self._timer = 0
        batch = list(islice(self._changed, BATCH_LIMIT))
        for subject in batch:
            del self._changed[subject]
        self._send(batch)
        if self._changed:
            self._timer = self._cell.after(NEXT_BATCH_S, self._send_waiting)

    def _send(self, batch: list[Prefix]) -> None:
        bans = [(subject, self._ledger.get(subject)) for subject in batch]
        enforced = [ban for _, ban in bans if ban is not None and ban.enforced]
        orders = [order_of(ban) for ban in enforced]
        gone = [subject.text for subject, ban in bans if ban is None or not ban.enforced]
        self.generation += 1
        if orders:
            self._cell.publish(Enforce(orders=orders, generation=self.generation))
            self.reminder.told(enforced)
        if gone:
            self._cell.publish(Release(subjects=gone, generation=self.generation))
        self._sent_at = time.monotonic()
        self._cell.gauges["bans"] = len(self._ledger)

    def _write(self, to: str, generation: int, left: list[Ban], orders: list[Order]) -> None:
        """A slice at a time: the cell stays able to answer while a hundred thousand orders are made."""
        orders.extend(order_of(ban) for ban in left[:SLICE] if self._ledger.get(ban.subject) is ban)
        if len(left) > SLICE:
            self._cell.after(0, self._write, to, generation, left[SLICE:], orders)
            return
        try:
            path, count = self.directory.write(orders, generation)
        except ToolFailed as failed:
            self._problem("orders", f"{failed}; {to} keeps what the kernel holds", failed.remedy)
            return
        self._problem("orders", "", "")
        self._cell.tell(to, EnforceAll(path=str(path), count=count, generation=generation))

    def _say(self, message: Message, to: str) -> None:
        if not to:
            self._cell.publish(message)
        elif self._listens(to, type(message)):
            self._cell.tell(to, message)

    def _listens(self, name: str, kind: type[Message]) -> bool:
        row = self._cell.peers.living(name)
        return row is not None and kind.__name__ in row.receives
