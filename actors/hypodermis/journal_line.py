"""The line to memory: what is decided is written down before it is done, but no disk may hold up a ban.

An entry is sent to the memory cell, and what follows from it waits for the acknowledgement at most ``PATIENCE_S``.
While one record is under way the next ones gather and go together. What was never acknowledged is kept, bounded, and
sent again when memory is back; keys make it the same row.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.core.cell import Cell
from actors.core.messages import BATCH_LIMIT, Entry, Record, Recorded

MEMORY = "memory_cell"
#: A ban waits this long for the disk, then it goes ahead and the miss is counted.
PATIENCE_S = 0.05
#: Entries kept for a memory that is away; the oldest go and are counted.
UNSENT_LIMIT = 20_000
RESEND_EVERY_S = 0.1
#: Records that a memory which is there but does not answer may owe us.
UNDER_WAY_LIMIT = 100
#: Many bans in one entry wait longer: nobody sits before them, and a disk that is busy with them is none that hangs.
MANY_PATIENCE_S = 1.0
#: An entry about many counts as one more for each of these bytes when it waits for a memory that is away.
WEIGHT_BYTES = 512

Then = Callable[[], object]


@dataclass
class _Parcel:
    """One ``Record`` under way. timer: the end of patience, 0 when it is over and ``then`` was called. many: it holds
    one entry about many, and nobody else waits for it."""

    entries: list[Entry]
    then: list[Then]
    timer: int = field(default=0)
    many: bool = False


class JournalLine:
    """Belongs to one cell, on its actor thread. ``then`` is called exactly once, never from within ``write``."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.named: Callable[[str], object] = lambda epoch: None  #: is told which journal it is, again and again
        self._number = 0
        self._under_way: dict[int, _Parcel] = {}
        self._gathering = _Parcel([], [])
        self._unsent: deque[Entry] = deque()
        self._weight = 0  # of the unsent
        self._up = False
        self._resending = False

    def write(self, entries: list[Entry], then: Then | None = None) -> None:
        """Have the entries written; ``then`` follows when they are on disk, or when patience ends."""
        self._gathering.entries.extend(entries)
        if then is not None:
            self._gathering.then.append(then)
        if not any(parcel.timer and not parcel.many for parcel in self._under_way.values()):
            self._cell.after(0, self._flush)

    def write_many(self, entry: Entry, then: Then | None = None) -> None:
        """One entry about many subjects: it goes by itself, beside the others, and is waited for longer."""
        self._cell.after(0, self._send, _Parcel([entry], [then] if then is not None else [], many=True))

    def recorded(self, message: Recorded) -> None:
        """The memory cell's answer."""
        self.named(message.epoch)
        parcel = self._under_way.pop(message.id, None)
        if parcel is None:
            return
        if message.problem:
            self._cell.counters["journal_problems"] += 1
        self._go_on(parcel)

    def up(self) -> None:
        """Memory is there: what it never acknowledged goes to it again, a little at a time."""
        self._up = True
        self._number += 1
        self._cell.tell(MEMORY, Record(id=self._number, entries=[]))  # the answer names the journal
        if not self._resending and self._unsent:
            self._resending = True
            self._resend()

    def down(self) -> None:
        """Memory has gone: nothing waits for it."""
        self._up = False
        under_way, self._under_way = self._under_way, {}
        for parcel in under_way.values():
            self._keep(parcel.entries)
            self._go_on(parcel)

    @property
    def unsent(self) -> int:
        """Entries that wait for a memory that is away."""
        return len(self._unsent)

    def _flush(self) -> None:
        while self._gathering.entries or self._gathering.then:
            parcel = _Parcel(self._gathering.entries[:BATCH_LIMIT], [])
            self._gathering.entries = self._gathering.entries[BATCH_LIMIT:]
            if not self._gathering.entries:  # what follows, follows from all of it
                parcel.then, self._gathering.then = self._gathering.then, []
            self._send(parcel)

    def _send(self, parcel: _Parcel) -> None:
        self._number += 1
        able = self._up and len(self._under_way) < UNDER_WAY_LIMIT
        if not able or not self._cell.tell(MEMORY, Record(id=self._number, entries=parcel.entries)):
            self._cell.counters["journal_missed"] += len(parcel.entries)
            self._keep(parcel.entries)
            self._go_on(parcel)
            return
        patience_s = MANY_PATIENCE_S if parcel.many else PATIENCE_S
        parcel.timer = self._cell.after(patience_s, self._impatient, self._number)
        self._under_way[self._number] = parcel

    def _impatient(self, number: int) -> None:
        parcel = self._under_way.get(number)
        if parcel is not None:
            self._cell.counters["journal_late"] += 1
            self._go_on(parcel)

    def _go_on(self, parcel: _Parcel) -> None:
        """Call what waited, once, and let what gathered meanwhile go."""
        if parcel.timer:
            self._cell.cancel(parcel.timer)
            parcel.timer = 0
        then, parcel.then = parcel.then, []
        for call in then:
            call()
        if self._gathering.entries or self._gathering.then:
            self._cell.after(0, self._flush)

    def _keep(self, entries: list[Entry]) -> None:
        self._unsent.extend(entries)
        self._weight += sum(map(_weight, entries))
        while self._weight > UNSENT_LIMIT:
            self._weight -= _weight(self._unsent.popleft())
            self._cell.counters["journal_lost"] += 1

    def _resend(self) -> None:
        batch = self._oldest() if self._up else []
        if batch:
            self._send(_Parcel(batch, [], many=bool(batch[0].subjects)))
        self._resending = self._up and bool(self._unsent)
        if self._resending:
            self._cell.after(RESEND_EVERY_S, self._resend)

    def _oldest(self) -> list[Entry]:
        """What one message carries: an entry about many goes alone."""
        batch: list[Entry] = []
        while self._unsent and len(batch) < BATCH_LIMIT and not (batch and self._unsent[0].subjects):
            batch.append(self._unsent.popleft())
            if batch[0].subjects:
                break
        self._weight -= sum(map(_weight, batch))
        return batch


def _weight(entry: Entry) -> int:
    return 1 + len(entry.subjects) // WEIGHT_BYTES
