"""The journal on disk: SQLite in WAL mode, one writer, everything acknowledged is synced.

``SqliteStore.write`` puts a whole batch into one transaction and returns when it is on disk (``synchronous=FULL``), so
one sync serves all who waited. The tables of what is in force are brought up to date in that same transaction; an
entry about many subjects is kept whole at first, and gets its rows a part at a time (``spread``). Times are wall-clock
seconds. Failures of the disk arrive as ``StoreError`` with a remedy; a damaged file is put aside under another name,
never deleted, and a new one begun. Belongs to one thread at a time; readers may open their own.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from actors.core import packed
from actors.core.errors import TegumentarError
from actors.core.messages import Entry
from actors.dermis.schema import MIGRATIONS

FILE_NAME = "journal.sqlite3"
#: How long a writer waits for another process (a backup, an operator's shell) to let go of the file.
BUSY_S = 1.0
WAL_LIMIT = 16 * 1024 * 1024
#: Rows that one round of forgetting takes out: a few milliseconds, so that records wait no longer than that.
FORGET_ROWS = 500
#: Rows made at a time of an entry about many: ten milliseconds, so that a lone ban waits no longer than that.
SPREAD_ROWS = 1_000
#: Damaged files kept aside; the oldest of them go.
KEEP_ASIDE = 3
PAGE_LIMIT = 1_000
#: A file up to this size is read through when it is opened (0.1 s); damage in a larger one shows when it is used.
CHECK_BYTES = 32 * 1024 * 1024


class StoreError(TegumentarError):
    """The disk said no. ``damaged``: the file is no journal any more."""

    def __init__(self, message: str, *, remedy: str = "", damaged: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.damaged = damaged


@dataclass(frozen=True)
class Opened:
    """What was found. aside: where a damaged file was put, empty without one."""

    aside: str = ""
    damage: str = ""


class SqliteStore:
    """The journal and what it adds up to."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._db: sqlite3.Connection | None = None

    def open(self) -> Opened:
        """Open, check and migrate; a damaged file is put aside first. Raises StoreError."""
        try:
            self._connect()
        except StoreError as failure:
            if not failure.damaged:
                raise
            aside = self._put_aside()
            self._connect()
            return Opened(aside=str(aside), damage=str(failure))
        return Opened()

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def open_reader(self) -> None:
        """Open for reading what another connection keeps up to date. Raises StoreError."""
        self._db = self._opened(readonly=True)

    def close(self) -> None:
        """Let go of the file; nothing acknowledged depends on it."""
        if self._db is not None:
            db, self._db = self._db, None
            with suppress(sqlite3.Error):  # a broken file is told of where it is read and written
                db.close()

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, batch: Iterable[tuple[str, Entry]]) -> int:
        """(cell, entry) pairs, all or none. Returns how many were new; on disk when it returns. Raises StoreError."""
        new = 0
        try:
            with self._transaction() as db:
                for cell, entry in batch:
                    new += self._write_one(db, cell, entry)
        except sqlite3.Error as exc:
            raise self._failed("write", exc) from exc
        return new

    def spread(self, limit: int = SPREAD_ROWS) -> Entry | None:
        """Give up to ``limit`` subjects of the oldest entry about many their rows.

        Returns the entry as if it were about those alone; None when there is none. Raises StoreError."""
        try:
            with self._transaction() as db:
                found = db.execute(
                    "SELECT number, key, kind, at, cell, until, body, subjects, done FROM many ORDER BY number LIMIT 1"
                ).fetchone()
                if found is None:
                    return None
                number, key, kind, at, cell, until, body, rows, done = found
                part = rows[done * packed.ROW : (done + limit) * packed.ROW]
                subjects = packed.unpack(part)
                db.executemany(
                    "INSERT OR IGNORE INTO journal (key, kind, at, subject, cell, body) VALUES (?, ?, ?, ?, ?, ?)",
                    [(f"{key}:{n}", kind, at, subject, cell, body) for n, subject in enumerate(subjects, done)],
                )
                if kind == "ban":
                    db.executemany(_PUT[kind] + _NEWEST, [(subject, at, until, body) for subject in subjects])
                done += len(subjects)
                if done < packed.count(rows):
                    db.execute("UPDATE many SET done = ? WHERE number = ?", (done, number))
                else:
                    db.execute("DELETE FROM many WHERE number = ?", (number,))
        except sqlite3.Error as exc:
            raise self._failed("write", exc) from exc
        return Entry(key=key, kind=kind, at_unix_s=at, body=_unpacked(body), subjects=part)

    def to_spread(self) -> int:
        """Entries about many whose subjects do not all have their rows yet. Raises StoreError."""
        return int(self._read("SELECT count(*) FROM many", ())[0][0])

    def sent(self, sink: str, seq: int) -> None:
        """Everything up to ``seq`` has arrived at ``sink``; never goes back. Raises StoreError."""
        try:
            with self._transaction() as db:
                db.execute(
                    "INSERT INTO outbox VALUES (?, ?, ?) ON CONFLICT (sink) DO UPDATE"
                    " SET sent_seq = max(sent_seq, excluded.sent_seq), at = excluded.at",
                    (sink, seq, time.time()),
                )
        except sqlite3.Error as exc:
            raise self._failed("write", exc) from exc

    def keep_sinks(self, sinks: Sequence[str]) -> None:
        """Strike out cursors of servers that are no longer used: nothing waits for them. Raises StoreError."""
        try:
            with self._transaction() as db:
                known = [row[0] for row in db.execute("SELECT sink FROM outbox")]
                db.executemany("DELETE FROM outbox WHERE sink = ?", [(name,) for name in known if name not in sinks])
        except sqlite3.Error as exc:
            raise self._failed("write", exc) from exc

    def forget(self, before_unix_s: float, max_bytes: int, now: float) -> int:
        """One round of retention: rows from before that time, and the oldest while the file is over ``max_bytes``.

        Rows that a sink still waits for stay for their time, but not beyond the size. What is in force stays always.
        Returns how many rows went; call again while it is FORGET_ROWS. Raises StoreError."""
        try:
            with self._transaction() as db:
                too_big = self._used_bytes(db) > max_bytes
                waiting = db.execute("SELECT min(sent_seq) FROM outbox").fetchone()[0]
                reach = db.execute(
                    "SELECT max(seq) FROM (SELECT seq, at FROM journal ORDER BY seq LIMIT ?) WHERE ? OR at < ?",
                    (FORGET_ROWS, too_big, before_unix_s),
                ).fetchone()[0]
                if reach is not None and waiting is not None and not too_big:
                    reach = min(reach, waiting)
                gone = db.execute("DELETE FROM journal WHERE seq <= ?", (reach or 0,)).rowcount
                db.execute("DELETE FROM bans WHERE until > 0 AND until <= ?", (now,))
                db.execute("DELETE FROM tolerance WHERE until > 0 AND until <= ?", (now,))
            if gone:
                self._connection().executescript("PRAGMA incremental_vacuum")  # execute() would take one step
        except sqlite3.Error as exc:
            raise self._failed("clean", exc) from exc
        return gone

    # --- reading -------------------------------------------------------------------------------------------------

    def bans(self, now: float, after: str = "", limit: int = PAGE_LIMIT) -> list[dict[str, Any]]:
        """Bans that still run, by subject, beyond ``after``."""
        return self._in_force("bans", now, after, limit)

    def tolerance(self, now: float, after: str = "", limit: int = PAGE_LIMIT) -> list[dict[str, Any]]:
        """Tolerated prefixes that still are, by subject, beyond ``after``."""
        return self._in_force("tolerance", now, after, limit)

    def posture(self) -> dict[str, Any] | None:
        """The posture last recorded, whether or not its time is over; None when there was none."""
        rows = self._read("SELECT body FROM posture WHERE one = 1", ())
        return _unpacked(rows[0][0]) if rows else None

    def history(self, subject: str = "", limit: int = 100, before: int = 0, kind: str = "") -> list[dict[str, Any]]:
        """The journal, newest first, of one subject, one kind, or all. ``before``: last ``seq`` of the page before."""
        reach = (before or 2**62, min(limit, PAGE_LIMIT))
        if kind:
            rows = self._read(
                "SELECT seq, key, kind, at, subject, cell, body FROM journal INDEXED BY journal_by_kind"
                " WHERE kind = ? AND ? IN ('', subject) AND seq < ? ORDER BY seq DESC LIMIT ?",
                (kind, subject, *reach),
            )
        elif subject:
            rows = self._read(
                "SELECT seq, key, kind, at, subject, cell, body FROM journal INDEXED BY journal_by_subject"
                " WHERE subject = ? AND subject <> '' AND seq < ? ORDER BY seq DESC LIMIT ?",
                (subject, *reach),
            )
        else:
            rows = self._read(
                "SELECT seq, key, kind, at, subject, cell, body FROM journal WHERE seq < ? ORDER BY seq DESC LIMIT ?",
                reach,
            )
        return [_row(found) for found in rows]

    def since(self, seq: int, limit: int = PAGE_LIMIT, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The journal, oldest first, beyond ``seq``: what a sink has yet to get; only of these kinds, when given."""
        wanted = f" AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        rows = self._read(
            f"SELECT seq, key, kind, at, subject, cell, body FROM journal WHERE seq > ?{wanted} ORDER BY seq LIMIT ?",  # noqa: S608 — only question marks are put in
            (seq, *kinds, limit),
        )
        return [_row(found) for found in rows]

    def last_seq(self) -> int:
        """The newest row's number; 0 for an empty journal."""
        return int(self._read("SELECT coalesce(max(seq), 0) FROM journal", ())[0][0])

    def offenders(self, since_unix_s: float, limit: int) -> list[dict[str, Any]]:
        """Sources by how often they were proposed, banned or learned of since then, the worst first."""
        rows = self._read(
            "SELECT subject, count(*) AS times, sum(kind = 'ban'), min(at), max(at)"
            " FROM journal INDEXED BY journal_by_time"
            " WHERE at >= ? AND subject <> '' AND kind IN ('ban', 'verdict', 'antigen', 'vaccine', 'session')"
            " GROUP BY subject ORDER BY times DESC, max(at) DESC LIMIT ?",
            (since_unix_s, min(limit, PAGE_LIMIT)),
        )
        names = ("subject", "times", "bans", "first_unix_s", "last_unix_s")
        return [dict(zip(names, found, strict=True)) for found in rows]

    def sent_to(self, sink: str) -> int:
        """The cursor of a sink; 0 for a new one."""
        rows = self._read("SELECT sent_seq FROM outbox WHERE sink = ?", (sink,))
        return int(rows[0][0]) if rows else 0

    def status(self) -> dict[str, Any]:
        """Figures for ``memory.status``. Raises StoreError."""
        rows, last = self._read("SELECT count(*), coalesce(max(seq), 0) FROM journal", ())[0]
        return {
            "path": str(self.path),
            "epoch": self.epoch(),
            "rows": rows,
            "last_seq": last,
            "bans": self._read("SELECT count(*) FROM bans", ())[0][0],
            "tolerance": self._read("SELECT count(*) FROM tolerance", ())[0][0],
            "bytes": sum(_size(Path(f"{self.path}{suffix}")) for suffix in ("", "-wal")),
            "schema": self._read("PRAGMA user_version", ())[0][0],
            "to_spread": self.to_spread(),
            "sinks": {sink: last - seq for sink, seq in self._read("SELECT sink, sent_seq FROM outbox", ())},
        }

    def epoch(self) -> str:
        """Made with the file: a change tells that a new journal was begun."""
        rows = self._read("SELECT value FROM about WHERE name = 'epoch'", ())
        return str(rows[0][0]) if rows else ""

    # --- inside --------------------------------------------------------------------------------------------------

    def _write_one(self, db: sqlite3.Connection, cell: str, entry: Entry) -> int:
        body = msgspec.msgpack.encode(entry.body)
        if entry.subjects:
            return self._write_many(db, cell, entry, body)
        cursor = db.execute(
            "INSERT OR IGNORE INTO journal (key, kind, at, subject, cell, body) VALUES (?, ?, ?, ?, ?, ?)",
            (entry.key, entry.kind, entry.at_unix_s, entry.subject, cell, body),
        )
        if not cursor.rowcount:
            return 0
        if entry.kind in ("ban", "tolerance") and not entry.body.get("removed"):
            db.execute(_PUT[entry.kind] + _NEWEST, (entry.subject, entry.at_unix_s, _until(entry), body))
        elif entry.kind in ("release", "tolerance"):
            table = _TABLES["ban" if entry.kind == "release" else "tolerance"]
            db.execute(
                f"DELETE FROM {table} WHERE subject = ? AND at <= ?",  # noqa: S608
                (entry.subject, entry.at_unix_s),
            )
        elif entry.kind == "posture":
            db.execute(
                "INSERT INTO posture VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE"
                " SET at = excluded.at, body = excluded.body WHERE excluded.at >= at",
                (entry.at_unix_s, body),
            )
        return 1

    def _write_many(self, db: sqlite3.Connection, cell: str, entry: Entry, body: bytes) -> int:
        """As it came: a hundred thousand rows would keep everybody waiting. ``spread`` makes them."""
        if db.execute("SELECT 1 FROM journal WHERE key = ?", (f"{entry.key}:0",)).fetchone():
            return 0
        cursor = db.execute(
            "INSERT OR IGNORE INTO many (key, kind, at, cell, until, body, subjects) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (entry.key, entry.kind, entry.at_unix_s, cell, _until(entry), body, entry.subjects),
        )
        return packed.count(entry.subjects) if cursor.rowcount else 0

    def _in_force(self, table: str, now: float, after: str, limit: int) -> list[dict[str, Any]]:
        rows = self._read(
            f"SELECT subject, at, body FROM {table}"  # noqa: S608
            " WHERE subject > ? AND (until = 0 OR until > ?) ORDER BY subject LIMIT ?",
            (after, now, min(limit, PAGE_LIMIT)),
        )
        return [{"subject": subject, "at_unix_s": at, **_unpacked(body)} for subject, at, body in rows]

    def _connect(self) -> None:
        self.close()
        db = self._opened(readonly=False)
        try:
            self._check(db)
            self._migrate(db)
        except sqlite3.Error as exc:
            db.close()
            raise self._failed("open", exc) from exc
        except StoreError:
            db.close()
            raise
        self._db = db

    def _opened(self, *, readonly: bool) -> sqlite3.Connection:
        try:
            if not readonly:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as exc:
            raise self._failed("open", exc) from exc
        try:
            if not readonly:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
                self.path.chmod(0o600)
            db.execute("PRAGMA user_version").fetchone()
        except (OSError, sqlite3.Error) as exc:
            db.close()
            raise self._failed("open", exc) from exc
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        if _size(self.path) <= CHECK_BYTES:
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise StoreError(f"the journal {self.path} is damaged: {said}", damaged=True)

    def _migrate(self, db: sqlite3.Connection) -> None:
        done = db.execute("PRAGMA user_version").fetchone()[0]
        if done > len(MIGRATIONS):
            raise StoreError(
                f"the journal {self.path} was written by a newer version: schema {done}, here {len(MIGRATIONS)}",
                remedy="run the newer version, or move the file away to begin a new journal",
            )
        for number, script in enumerate(MIGRATIONS[done:], start=done + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _put_aside(self) -> Path:
        """Move the damaged file and its companions away; only the newest few of them are kept."""
        self.close()
        aside = self.path.with_name(f"{FILE_NAME}.damaged-{time.time_ns()}")
        try:
            for suffix in ("", "-wal", "-shm"):
                part = Path(f"{self.path}{suffix}")
                if part.exists():
                    part.rename(f"{aside}{suffix}")
            older = sorted(self.path.parent.glob(f"{FILE_NAME}.damaged-*[0-9]"))
            for old in older[:-KEEP_ASIDE]:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{old}{suffix}").unlink(missing_ok=True)
        except OSError as exc:
            raise self._failed("put aside", exc) from exc
        return aside

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._connection())

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(f"the journal {self.path} is not open", remedy="see the reason of memory_cell in `cells`")
        return self._db

    def _read(self, query: str, arguments: Sequence[Any]) -> list[Any]:
        try:
            with closing(self._connection().execute(query, arguments)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as exc:
            raise self._failed("read", exc) from exc

    def _used_bytes(self, db: sqlite3.Connection) -> int:
        pages, free, size = (
            db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _failed(self, verb: str, exc: Exception) -> StoreError:
        said = exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
        message = f"the journal {self.path} could not be {_PARTICIPLES[verb]}: {said}"
        text = said.lower()
        if "malformed" in text or "not a database" in text or "disk image" in text:
            return StoreError(message, damaged=True, remedy="the damaged file is put aside and a new one is begun")
        if "full" in text or "no space" in text:
            return StoreError(message, remedy=f"free space on the disk of {self.path.parent}")
        if "readonly" in text or "read-only" in text or "permission" in text or "unable to open" in text:
            return StoreError(message, remedy=f"make {self.path.parent} writable for uid {os.geteuid()}")
        if "locked" in text or "busy" in text:
            return StoreError(message, remedy=f"another process holds {self.path}; end it, or have it let go")
        return StoreError(message, remedy=f"look at the disk of {self.path.parent}")


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when anything is raised."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> sqlite3.Connection:
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


_TABLES = {"ban": "bans", "tolerance": "tolerance"}
#: The newest word about a subject stands in its table, also when an older one arrives late.
_PUT = {
    "ban": "INSERT INTO bans SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS ("
    "SELECT 1 FROM journal INDEXED BY journal_by_subject"
    " WHERE subject = ?1 AND subject <> '' AND kind = 'release' AND at >= ?2)",
    "tolerance": "INSERT INTO tolerance VALUES (?1, ?2, ?3, ?4)",
}
_NEWEST = (
    " ON CONFLICT (subject) DO UPDATE SET at = excluded.at, until = excluded.until, body = excluded.body"
    " WHERE excluded.at >= at"
)
_PARTICIPLES = {
    "open": "opened",
    "read": "read",
    "write": "written",
    "clean": "cleaned of old rows",
    "put aside": "put aside",
}


def _until(entry: Entry) -> float:
    until = entry.body.get("until_unix_s", 0.0)
    return float(until) if isinstance(until, int | float) else 0.0


def _row(found: Sequence[Any]) -> dict[str, Any]:
    seq, key, kind, at, subject, cell, body = found
    return {"seq": seq, "key": key, "kind": kind, "at_unix_s": at, "subject": subject, "cell": cell} | {
        "body": _unpacked(body)
    }


def _unpacked(body: bytes) -> dict[str, Any]:
    """A body from disk; an unreadable one is empty, because one bad row must not hide the others."""
    try:
        found = msgspec.msgpack.decode(body)
    except (ValueError, msgspec.MsgspecError):
        return {}
    return found if isinstance(found, dict) else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
