"""MemoryCell — the persistence cell: the node's journal in SQLite.

What is acknowledged is on disk: a ``Recorded`` without a problem survives ``kill -9`` and power loss. With the disk
full, read-only or gone the node protects on: records are kept in memory, answered with the problem, and written when it
is back. Where a PostgreSQL server is named, the journal is carried there, too (``outbox_delivery.py``). A damaged
journal is put aside and a new one begun. Only policy may record what is in force, and only the Langerhans cell what was
learned; the others may record what they saw, so that a cell which reads attackers' bytes can plant neither.
"""

import os
import socket
import time
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from actors.core import packed
from actors.core.capability import service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused, Unavailable
from actors.core.messages import Anomaly, CellState, Entry, Record, Recorded
from actors.dermis import eve
from actors.dermis.antigen import node_name
from actors.dermis.eve import Records
from actors.dermis.outbox_delivery import Delivery
from actors.dermis.scribe import Letter, Outcome, Scribe
from actors.dermis.store_postgres import PostgresStore
from actors.dermis.store_sqlite import FILE_NAME, FORGET_ROWS, PAGE_LIMIT, SqliteStore, StoreError

#: Rows of one answer, and bytes of them: a message has 128 kB.
ANSWER_ROWS = 500
ANSWER_BYTES = 100_000
RETENTION_EVERY_S = 300.0
#: Kinds of entry that others act on, and the one cell that may write each.
AUTHORITY = dict.fromkeys(("ban", "release", "posture", "tolerance", "fingerprint"), "permeability") | dict.fromkeys(
    ("antigen", "alert", "vaccine"), "langerhans"
)
#: Servers beyond the node that are fed from the journal.
KAFKA, POSTGRES = "kafka", "postgres"
SINKS = (KAFKA, POSTGRES)
#: A delivery that ended by a defect is begun again after so long.
DELIVERY_AGAIN_S = 30.0
_DAY_S = 86_400.0


class MemoryCell(Cell):
    """Writes what others ask to have written, and tells what was."""

    section = "memory"

    uses_asyncio = True

    def before_drop(self) -> None:
        """The directory belongs to whoever this cell becomes; without root it is made later or not at all."""
        directory = self._directory()
        if os.geteuid() != 0:
            return
        identity = service_identity(self.settings.user)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (directory, *directory.glob(f"{FILE_NAME}*")):
                if not path.is_symlink():
                    os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
            logs = Path(self.settings.log_dir)
            logs.mkdir(mode=0o755, parents=True, exist_ok=True)
            for path in (logs, *(logs / name for name in (eve.EVE, eve.JOURNAL))):
                if path.exists() and not path.is_symlink():
                    os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
        except OSError as exc:
            self.log.warning("journal_directory", path=str(directory), problem=exc.strerror)

    def on_start(self) -> None:
        self._store = SqliteStore(self._directory())
        self._reader = SqliteStore(self._directory())
        self._scribe = Scribe(self._store, self._scribed)
        records = self.settings.records
        self._records = Records(Path(self.settings.log_dir), records.max_megabytes << 20) if records.enabled else None
        self._told_aside = ""
        self._delivery: Delivery | None = None
        self._beyond = ("", "")  # why PostgreSQL is not fed, and what to do
        self._sent: dict[str, int] = {}  # cursors that may not be on disk yet
        broken: StoreError | None = None
        try:
            opened = self._store.open()
        except StoreError as failure:
            broken = failure
            self._trouble(str(failure), failure.remedy)
        else:
            self._damaged(opened.aside, opened.damage)
            self._well()
            self._strike_out_sinks()
        self._scribe.start(broken)
        self.every(RETENTION_EVERY_S, self._retain)
        self._carry_beyond()

    def on_stop(self) -> None:
        self._scribe.end()
        self._reader.close()
        if self._records is not None:
            self._records.close()

    def on_peer_up(self, name: str) -> None:
        self._tell_others(eve.cell_line(time.time(), name, "up"))

    def on_peer_down(self, name: str) -> None:
        self._tell_others(eve.cell_line(time.time(), name, "down"))

    # --- writing -------------------------------------------------------------------------------------------------

    @receives(Record)
    def on_record(self, message: Record, source: str) -> None:
        problem = _objection(message.entries, source)
        if problem:
            self.counters["entries_refused"] += len(message.entries)
            self.tell(source, Recorded(id=message.id, problem=problem[:2000]))
            return
        self._scribe.put(Letter(source, message.id, tuple(message.entries)))

    @receives(Anomaly)
    def on_anomaly(self, message: Anomaly, source: str) -> None:
        if message.strange or message.sieged:
            self._tell_others(eve.anomaly_line(time.time(), message))

    def _tell_others(self, *told: eve.Line) -> None:
        if self._records is not None:
            self._records.write(told)

    def _scribed(self, outcome: Outcome) -> None:
        """In the scribe's thread: who waits is answered first. Other tools learn of it too, whatever the disk says."""
        self.post(self._written, outcome)
        if self._records is not None:
            entries = [entry for letter in outcome.letters for entry in letter.entries if not entry.subjects]
            self._records.write([line for entry in entries for line in eve.lines(entry)])
            for part in outcome.spread:
                self._records.write_many(part)

    def _written(self, outcome: Outcome) -> None:
        """The scribe has been at work."""
        problem = outcome.problem[:2000]
        for letter in outcome.letters:
            if letter.id:
                self.tell(letter.source, Recorded(id=letter.id, problem=problem, epoch=outcome.epoch))
        self.counters["entries_written"] += outcome.written
        if (outcome.written or outcome.spread) and self._delivery is not None:
            self.call(self._delivery.wake)
        self.counters["entries_forgotten"] += outcome.forgotten
        self.counters["entries_lost"] = outcome.lost
        self.gauges["entries_waiting"] = outcome.waiting
        if self._records is not None:
            self.counters["record_lines_lost"] = self._records.lost
        self._damaged(outcome.aside, outcome.damage)
        if outcome.problem:
            self._trouble(outcome.problem, outcome.remedy)
        else:
            self._well()
        if outcome.forgotten >= FORGET_ROWS:
            self._retain()

    def _retain(self) -> None:
        memory = self.settings.memory
        self._scribe.forget(time.time() - memory.keep_days * _DAY_S, memory.max_megabytes * 1024 * 1024)

    # --- telling -------------------------------------------------------------------------------------------------

    @answers("memory.bans")
    def bans(self, args: dict[str, Any], by: str) -> Any:
        """Bans that still run. ``after``: the last subject of the page before. Not while some have yet to be listed."""
        if self._asked(lambda: self._reading().to_spread()):
            raise Unavailable("a long list of bans is being put in order", remedy="ask again in a moment")
        return self._page("bans", args)

    @answers("memory.tolerance")
    def tolerance(self, args: dict[str, Any], by: str) -> Any:
        return self._page("tolerance", args)

    @answers("memory.posture")
    def posture(self, args: dict[str, Any], by: str) -> Any:
        """The posture last recorded; None for a new node."""
        return self._asked(lambda: self._reading().posture())

    @answers("memory.history")
    def history(self, args: dict[str, Any], by: str) -> Any:
        """The journal, newest first; of one ``subject`` or of one ``kind`` when they are given."""
        subject, kind = _text(args, "subject"), _text(args, "kind")
        limit, before = _number(args, "limit", 100, ANSWER_ROWS), _number(args, "before", 0, 2**62)
        return {"history": _fitting(self._asked(lambda: self._reading().history(subject, limit, before, kind)))}

    @answers("memory.attackers")
    def attackers(self, args: dict[str, Any], by: str) -> Any:
        """Sources by how often the journal names them in the last ``hours`` (24), the worst first."""
        hours, limit = _number(args, "hours", 24, 24 * 366), _number(args, "limit", 20, ANSWER_ROWS)
        since = time.time() - hours * 3600.0
        return {"attackers": self._asked(lambda: self._reading().offenders(since, limit)), "hours": hours}

    # --- the outbox ----------------------------------------------------------------------------------------------

    @answers("memory.outbox")
    def outbox(self, args: dict[str, Any], by: str) -> Any:
        """What ``sink`` has yet to get of these ``kinds``, oldest first, and the cursor once it has it."""
        sink, limit = _sink(args), _number(args, "limit", 100, ANSWER_ROWS)
        kinds = args.get("kinds")
        if not isinstance(kinds, list) or not 1 <= len(kinds) <= 8 or not all(isinstance(kind, str) for kind in kinds):
            raise Refused("kinds must be a list of kinds of entries")

        def read() -> dict[str, Any]:
            last, sent = self._reading().last_seq(), max(self._reading().sent_to(sink), self._sent.get(sink, 0))
            found = self._reading().since(sent, limit, kinds)
            entries = _fitting(found)
            whole = len(entries) == len(found) < limit
            return {"entries": entries, "sent": sent, "up_to": last if whole else entries[-1]["seq"]}

        return self._asked(read)

    @answers("memory.sent")
    def sent(self, args: dict[str, Any], by: str) -> Any:
        """``sink`` has everything up to the cursor ``up_to``."""
        sink, up_to = _sink(args), _number(args, "up_to", 0, 2**62)
        self._sent[sink] = max(up_to, self._sent.get(sink, 0))
        self._scribe.sent(sink, up_to)
        return {"sent": self._sent[sink]}

    def _strike_out_sinks(self) -> None:
        """A server that the settings no longer name shall not hold up forgetting."""
        used = {
            KAFKA: bool(self.settings.kafka.bootstrap_servers),
            POSTGRES: self.settings.memory.postgres() is not None,
        }
        try:
            self._store.keep_sinks([sink for sink in SINKS if used[sink]])
        except StoreError as failure:
            self._trouble(str(failure), failure.remedy)

    @answers("memory.status")
    def status(self, args: dict[str, Any], by: str) -> Any:
        return self._asked(lambda: self._reading().status()) | {
            "waiting": int(self.gauges.get("entries_waiting", 0)),
            "lost": self.counters["entries_lost"],
            "keep_days": self.settings.memory.keep_days,
            "max_megabytes": self.settings.memory.max_megabytes,
        }

    def _page(self, table: str, args: dict[str, Any]) -> dict[str, Any]:
        after, limit = _text(args, "after"), _number(args, "limit", ANSWER_ROWS, PAGE_LIMIT)
        now = time.time()
        found = self._asked(lambda: getattr(self._reading(), table)(now, after, limit))
        rows = _fitting(found)
        more = len(rows) < len(found) or len(found) == limit
        return {table: rows, "next": rows[-1]["subject"] if rows and more else ""}

    def _reading(self) -> SqliteStore:
        if not self._reader.is_open:
            self._reader.open_reader()
        return self._reader

    def _asked(self, read: Any) -> Any:
        try:
            return read()
        except StoreError as failure:
            self._reader.close()
            raise Unavailable(str(failure), remedy=failure.remedy) from failure

    # --- beyond the node -----------------------------------------------------------------------------------------

    def _carry_beyond(self) -> None:
        target, memory = self.settings.memory.postgres(), self.settings.memory
        if target is None:
            return
        if find_spec("asyncpg") is None:
            self._beyond = ("asyncpg cannot be imported: PostgreSQL is not fed", "install the extra `postgres`")
            self._well()
            return
        node = node_name(self.settings.lymph.node, socket.gethostname())
        self._delivery = Delivery(
            SqliteStore(self._directory()),
            lambda epoch: PostgresStore(target, node, epoch, memory.postgres_keep_days),
            noted=lambda seq: self._scribe.sent(POSTGRES, seq),
            mode=lambda reason, remedy: self.post(self._mode_beyond, reason, remedy),
        )
        self.call(self._delivery.run, then=self._delivery_ended)

    def _mode_beyond(self, reason: str, remedy: str) -> None:
        self.gauges["postgres_connected"] = float(not reason)
        self.counters["postgres_failures"] += bool(reason)
        was, self._beyond = self._beyond, (reason, remedy)
        if was != self._beyond and (self.state is CellState.HEALTHY or was[0]):
            self._well()

    def _delivery_ended(self, future: "Future[Any]") -> None:
        """It never ends by itself. The journal goes on whatever happens to it."""
        if future.cancelled():
            return
        self.log.error("delivery_ended", exc_info=future.exception())
        self._mode_beyond(f"feeding PostgreSQL failed: {future.exception()!r}"[:300], "see the log; it is begun again")
        self.after(DELIVERY_AGAIN_S, self._carry_beyond)

    # --- mode ----------------------------------------------------------------------------------------------------

    def _well(self) -> None:
        if self._beyond[0]:
            self.degraded(*self._beyond)
        else:
            self.healthy(f"began a new journal; the damaged one is {self._told_aside}" if self._told_aside else "")

    def _trouble(self, problem: str, remedy: str) -> None:
        self.counters["failures"] += 1
        self.degraded(f"{problem}; bans and postures of now would not survive a reboot", remedy)

    def _damaged(self, aside: str, damage: str) -> None:
        if aside:
            self.counters["journals_put_aside"] += 1
            self.log.error("journal_damaged", problem=damage, aside=aside)
            self._told_aside = aside
            self._sent.clear()
            if self._delivery is not None:
                self.call(self._delivery.begin_anew)
            self._reader.close()

    def _directory(self) -> Path:
        return Path(self.settings.state_dir) / "memory"


def _objection(entries: list[Entry], source: str) -> str:
    """Why this cell may not have these written; empty when it may."""
    foreign = {entry.kind for entry in entries if AUTHORITY.get(entry.kind, source) != source}
    if foreign:
        return f"{source} may not record {', '.join(sorted(foreign))}"
    try:
        for entry in entries:
            if entry.subjects and (entry.kind != "ban" or not packed.unpack(entry.subjects)):
                return f"an entry of the kind {entry.kind} is about one subject"
    except ValueError as exc:
        return f"the subjects of an entry cannot be read: {exc}"
    return ""


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the first rows as one message carries; at least one."""
    room = ANSWER_BYTES
    for count, row in enumerate(rows):
        room -= len(msgspec.msgpack.encode(row))
        if room < 0 and count:
            return rows[:count]
    return rows


def _text(args: dict[str, Any], name: str) -> str:
    value = args.get(name) or ""
    if not isinstance(value, str) or len(value) > 64:
        raise Refused(f"{name} is no address or prefix")
    return value


def _sink(args: dict[str, Any]) -> str:
    sink = _text(args, "sink")
    if sink != KAFKA:
        raise Refused(f"nobody carries entries to {sink!r}; only {KAFKA} is carried by another cell")
    return sink


def _number(args: dict[str, Any], name: str, usual: int, most: int) -> int:
    value = args.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not value >= 0:
        raise Refused(f"{name} must be a whole number from 0")
    return min(value, most)
