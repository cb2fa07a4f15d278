"""The scribe: one thread that writes the journal, so that a slow disk holds up nobody else.

Group commit without a timer: whatever came in while the last transaction was being synced goes into the next one. An
entry about many is on disk as quickly as one about a single subject; its rows are made when nothing else is to be done.
When the disk refuses, records are answered at once with the problem and kept in a bounded buffer, and the file is
tried again every few seconds. A damaged file is put aside and a new one begun.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actors.core.messages import Entry
from actors.dermis.store_sqlite import Opened, StoreError

#: An entry about many gets its rows when no other of its kind has come for so long: those who wait for them go first.
QUIET_S, OVERDUE_S = 0.5, 1.0
NEVER = float("inf")
#: Entries in one transaction: about 20 ms of work besides the sync.
GROUP = 2_000
#: Entries kept in memory while the disk refuses; the oldest of them go and are counted. An entry about many takes the
#: room of one for each of these bytes.
BACKLOG, WEIGHT_BYTES = 20_000, 512
RETRY_S = 2.0


class Store(Protocol):
    """What the scribe needs of the store; raises StoreError and nothing else."""

    def open(self) -> Opened: ...
    def write(self, batch: Sequence[tuple[str, Entry]]) -> int: ...
    def spread(self) -> Entry | None: ...
    def epoch(self) -> str: ...
    def forget(self, before_unix_s: float, max_bytes: int, now: float) -> int: ...
    def sent(self, sink: str, seq: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Letter:
    """One ``Record`` as it waits: whom to answer, and what is to be written."""

    source: str
    id: int
    entries: tuple[Entry, ...]


@dataclass
class Outcome:
    """What became of a group. problem empty: on disk. aside: where a damaged file was put meanwhile. epoch: which
    journal it is now, empty while there is none. spread: a part of an entry about many that has its rows now."""

    letters: list[Letter]
    epoch: str = ""
    spread: list[Entry] = field(default_factory=list)
    written: int = 0
    problem: str = ""
    remedy: str = ""
    aside: str = ""
    damage: str = ""
    forgotten: int = 0
    waiting: int = field(default=0)
    lost: int = 0


class Scribe:
    """Owns the store's writing side. ``report`` is called in the scribe's thread, once for each group."""

    def __init__(
        self, store: Store, report: Callable[[Outcome], None], *, backlog: int = BACKLOG, retry_s: float = RETRY_S
    ) -> None:
        self._store, self._report, self._retry_s = store, report, retry_s
        self._wake = threading.Condition()
        self._letters: deque[Letter] = deque()
        self._wish: tuple[float, int] | None = None
        self._arrived: dict[str, int] = {}
        self._ending = False
        self._backlog: deque[tuple[str, Entry]] = deque()
        self._room = backlog
        self._lost = 0
        self._epoch = ""
        self._spread_at = 0.0  # when the rows of entries about many are made; 0 as soon as there is time
        self._broken: StoreError | None = None
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._main, name="scribe", daemon=True)

    def start(self, broken: StoreError | None = None) -> None:
        """Begin; ``broken`` when the store could not be opened yet."""
        self._broken = broken
        self._retry_at = time.monotonic() + self._retry_s
        self._thread.start()

    def put(self, letter: Letter) -> None:
        """Have it written; the answer comes through ``report``. From any thread."""
        with self._wake:
            self._letters.append(letter)
            self._wake.notify()

    def forget(self, before_unix_s: float, max_bytes: int) -> None:
        """Have old rows taken out, a round at a time between the groups. From any thread."""
        with self._wake:
            self._wish = (before_unix_s, max_bytes)
            self._wake.notify()

    def sent(self, sink: str, seq: int) -> None:
        """Have noted that a sink has everything up to ``seq``; what is lost with the disk is sent again. Any thread."""
        with self._wake:
            self._arrived[sink] = max(seq, self._arrived.get(sink, 0))
            self._wake.notify()

    def end(self, limit_s: float = 1.5) -> None:
        """Write what waits and close the file; gives up after ``limit_s``."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join(limit_s)

    def _main(self) -> None:
        while True:
            with self._wake:
                while not (self._letters or self._wish or self._arrived or self._ending or self._is_time()):
                    self._wake.wait(self._patience())
                letters, wish, ending = self._take(), self._wish, self._ending
                arrived, self._wish, self._arrived = self._arrived, None, {}
            outcome, was_broken = Outcome(letters), self._broken is not None
            self._write(outcome)
            if self._time_to_spread() and not ending and (not letters or self._overdue()):
                self._spread(outcome)
            if wish is not None and not self._broken:
                self._forget(outcome, *wish)
            if arrived and not self._broken:
                self._note(outcome, arrived)
            outcome.waiting, outcome.lost = len(self._backlog), self._lost
            if letters or wish or arrived or outcome.spread or was_broken or self._broken:
                self._report(outcome)
            if ending and not self._letters:
                self._store.close()
                return

    def _take(self) -> list[Letter]:
        taken: list[Letter] = []
        entries = 0
        while self._letters and entries < GROUP:
            taken.append(self._letters.popleft())
            entries += len(taken[-1].entries)
        return taken

    def _due(self) -> bool:
        return self._broken is not None and time.monotonic() >= self._retry_at

    def _time_to_spread(self) -> bool:
        return self._broken is None and time.monotonic() >= self._spread_at

    def _overdue(self) -> bool:
        return time.monotonic() >= self._spread_at + OVERDUE_S

    def _is_time(self) -> bool:
        return self._due() or self._time_to_spread()

    def _patience(self) -> float | None:
        at = self._retry_at if self._broken is not None else self._spread_at
        return max(0.0, at - time.monotonic()) if at < NEVER else None

    def _spread(self, outcome: Outcome) -> None:
        """The next part; a disk that refuses it is asked again later."""
        try:
            part = self._store.spread()
        except StoreError as failure:
            self._broken, self._retry_at = failure, time.monotonic() + self._retry_s
            outcome.problem, outcome.remedy = str(failure), failure.remedy
            return
        if part is None:
            self._spread_at = NEVER
        else:
            outcome.spread.append(part)

    def _write(self, outcome: Outcome) -> None:
        batch = [(letter.source, entry) for letter in outcome.letters for entry in letter.entries]
        if self._broken is None or self._due():
            try:
                if self._broken is not None:
                    self._open(outcome)
                self._write_all(batch, outcome)
            except StoreError as failure:
                self._retry_at = time.monotonic() + self._retry_s
                self._broken = failure
            else:
                self._broken, outcome.epoch = None, self._epoch
                return
        self._keep(batch)
        outcome.problem, outcome.remedy = str(self._broken), self._broken.remedy if self._broken else ""

    def _write_all(self, batch: list[tuple[str, Entry]], outcome: Outcome) -> None:
        whole = [*self._backlog, *batch]
        try:
            self._write_to_file(whole, outcome)
        except StoreError as failure:
            if not failure.damaged:
                raise
            self._open(outcome)  # puts the damaged file aside
            outcome.damage = outcome.damage or str(failure)
            self._write_to_file(whole, outcome)
        self._backlog.clear()

    def _write_to_file(self, whole: list[tuple[str, Entry]], outcome: Outcome) -> None:
        if whole:
            outcome.written = self._store.write(whole)
        if any(entry.subjects for _, entry in whole):
            self._spread_at = time.monotonic() + QUIET_S
        self._epoch = self._epoch or self._store.epoch()

    def _open(self, outcome: Outcome) -> None:
        opened = self._store.open()
        outcome.aside, outcome.damage = opened.aside, opened.damage
        self._epoch, self._spread_at = "", 0.0

    def _keep(self, batch: list[tuple[str, Entry]]) -> None:
        self._backlog.extend(batch)
        over = sum(_weight(entry) for _, entry in self._backlog) - self._room
        while over > 0:
            over -= _weight(self._backlog.popleft()[1])
            self._lost += 1

    def _note(self, outcome: Outcome, arrived: dict[str, int]) -> None:
        try:
            for sink, seq in arrived.items():
                self._store.sent(sink, seq)
        except StoreError as failure:
            outcome.problem, outcome.remedy = str(failure), failure.remedy

    def _forget(self, outcome: Outcome, before_unix_s: float, max_bytes: int) -> None:
        try:
            outcome.forgotten = self._store.forget(before_unix_s, max_bytes, time.time())
        except StoreError as failure:
            outcome.problem, outcome.remedy = str(failure), failure.remedy


def _weight(entry: Entry) -> int:
    return 1 + len(entry.subjects) // WEIGHT_BYTES
