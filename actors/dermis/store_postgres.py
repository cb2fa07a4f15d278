"""PostgreSQL beyond the node: every node's journal in one table, each entry once. The only file that imports asyncpg.

A batch and the cursor that says how far this node has come are written in one transaction, and (node, key, time) is
unique, so a batch that is sent again changes nothing. Where TimescaleDB is installed the journal is a hypertable, else
it has one plain partition a day, made when needed and dropped when its time is over. Everything lives in the schema
``tegumentar``. Whatever the server, the network or the account refuses arrives as ``Unavailable`` with a remedy; what a
single entry holds that no database takes is left out and counted.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from actors.core.errors import Unavailable
from config.dsn import Target

CONNECT_S, COMMAND_S = 5.0, 15.0
#: Entries dated further ahead go into the default partition: a wrong clock shall not make a table for each day to come.
AHEAD = timedelta(days=1)
_LOCK = 0x7E9_0001  # one node at a time migrates and makes partitions

_FIRST = """
    CREATE SCHEMA IF NOT EXISTS tegumentar;
    CREATE TABLE IF NOT EXISTS tegumentar.about (name text PRIMARY KEY, value text NOT NULL);
"""
_JOURNAL = """
    CREATE TABLE tegumentar.journal (
        node text NOT NULL, key text NOT NULL, kind text NOT NULL, at timestamptz NOT NULL,
        subject text NOT NULL, cell text NOT NULL, body jsonb NOT NULL, epoch text NOT NULL, seq bigint NOT NULL,
        UNIQUE (node, key, at)
    ) {partitions};
    CREATE INDEX journal_by_subject ON tegumentar.journal (subject, at DESC) WHERE subject <> '';
    CREATE INDEX journal_by_kind ON tegumentar.journal (kind, at DESC);
"""
#: Applied in order, each once; a released one is never changed.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE tegumentar.cursors (
        node text NOT NULL, epoch text NOT NULL, seq bigint NOT NULL, at timestamptz NOT NULL,
        PRIMARY KEY (node, epoch)
    );
    CREATE VIEW tegumentar.antigens AS
        SELECT node, at, subject, body->>'reason' AS reason, body->>'evidence' AS evidence, body->>'id' AS id
        FROM tegumentar.journal WHERE kind = 'antigen';
    CREATE VIEW tegumentar.bans AS
        SELECT node, at, subject, body->>'reason' AS reason, body->>'origin' AS origin, body
        FROM tegumentar.journal WHERE kind = 'ban';
    CREATE VIEW tegumentar.sessions AS
        SELECT node, at, subject, body FROM tegumentar.journal WHERE kind = 'session';
    """,
)
_INSERT = """
    INSERT INTO tegumentar.journal (node, key, kind, at, subject, cell, body, epoch, seq)
    VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9) ON CONFLICT (node, key, at) DO NOTHING
"""
_ADVANCE = """
    INSERT INTO tegumentar.cursors VALUES ($1, $2, $3, now()) ON CONFLICT (node, epoch)
    DO UPDATE SET seq = greatest(tegumentar.cursors.seq, excluded.seq), at = excluded.at
"""


class PostgresStore:
    """One connection; belongs to one asyncio loop. ``refused`` counts entries that the database does not take."""

    def __init__(self, target: Target, node: str, epoch: str, keep_days: int) -> None:
        """epoch: of the journal on this node; another one means that its numbers began anew."""
        self._target, self._node, self._epoch, self._keep = target, node, epoch, timedelta(days=keep_days)
        self._db: Any = None
        self._days: set[str] = set()
        self.hypertable = False
        self.refused = 0

    async def open(self) -> int:
        """Connect and migrate. Returns the cursor: up to where this node's journal is there. Raises Unavailable."""
        import asyncpg

        try:
            self._db = await asyncpg.connect(
                self._target.url(), timeout=CONNECT_S, command_timeout=COMMAND_S, statement_cache_size=0
            )
            await self._migrate()
            query = "SELECT seq FROM tegumentar.cursors WHERE node = $1 AND epoch = $2"
            return int(await self._db.fetchval(query, self._node, self._epoch) or 0)
        except self._failures() as exc:
            raise self._unavailable(exc) from exc

    async def write(self, entries: Sequence[dict[str, Any]], up_to: int) -> None:
        """Entries of the journal and the cursor behind them, all or nothing. Raises Unavailable."""
        import asyncpg

        rows = [self._row(entry) for entry in entries]
        try:
            await self._make_partitions({row[3].date() for row in rows})
            try:
                async with self._db.transaction():
                    await self._db.executemany(_INSERT, rows)
                    await self._db.execute(_ADVANCE, self._node, self._epoch, up_to)
            except asyncpg.DataError:
                await self._write_singly(rows, up_to)
        except self._failures() as exc:
            raise self._unavailable(exc) from exc

    async def retain(self, now: float) -> None:
        """Take out what is older than it shall be kept. Raises Unavailable."""
        cutoff = datetime.fromtimestamp(now, UTC) - self._keep
        try:
            if self.hypertable:
                await self._db.execute(
                    "SELECT drop_chunks('tegumentar.journal', older_than => $1::timestamptz)", cutoff
                )
                return
            for name in await self._partitions():
                if name < f"journal_{cutoff:%Y%m%d}":
                    await self._db.execute(f'DROP TABLE IF EXISTS tegumentar."{name}"')
                    self._days.discard(name)
            await self._db.execute("DELETE FROM tegumentar.journal_other WHERE at < $1", cutoff)
        except self._failures() as exc:
            raise self._unavailable(exc) from exc

    async def close(self) -> None:
        """Let go of the connection, without a word to a server that may not listen."""
        if self._db is not None:
            db, self._db = self._db, None
            db.terminate()

    # --- inside --------------------------------------------------------------------------------------------------

    async def _migrate(self) -> None:
        async with self._db.transaction():
            await self._db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            if await self._db.fetchval("SELECT to_regclass('tegumentar.about')") is None:
                await self._db.execute(_FIRST)
            about = dict(await self._db.fetch("SELECT name, value FROM tegumentar.about"))
            if "layout" not in about:
                about["layout"] = await self._lay_out()
                await self._note("layout", about["layout"])
            done = int(about.get("schema", 0))
            if done > len(MIGRATIONS):
                raise Unavailable(
                    f"the database was written by a newer version: schema {done}, here {len(MIGRATIONS)}",
                    remedy="run the newer version on this node, too",
                )
            for script in MIGRATIONS[done:]:
                await self._db.execute(script)
            await self._note("schema", str(len(MIGRATIONS)))
        self.hypertable = about["layout"] == "hypertable"
        self._days = set(await self._partitions())

    async def _lay_out(self) -> str:
        """Make the journal: a hypertable where the server knows such things. Asked for is the function itself."""
        if await self._db.fetchval("SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'create_hypertable')"):
            await self._db.execute(_JOURNAL.format(partitions=""))
            await self._db.execute("SELECT create_hypertable('tegumentar.journal', 'at')")
            return "hypertable"
        await self._db.execute(_JOURNAL.format(partitions="PARTITION BY RANGE (at)"))
        await self._db.execute("CREATE TABLE tegumentar.journal_other PARTITION OF tegumentar.journal DEFAULT")
        return "partitions"

    async def _note(self, name: str, value: str) -> None:
        query = "INSERT INTO tegumentar.about VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        await self._db.execute(query, name, value)

    async def _partitions(self) -> list[str]:
        rows = await self._db.fetch(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = 'tegumentar.journal'::regclass AND relname ~ '^journal_[0-9]{8}$'"
        )
        return [str(row["relname"]) for row in rows]

    async def _make_partitions(self, days: set[Any]) -> None:
        """One partition for each day within the time that is kept; what else there is goes into the default one."""
        import asyncpg

        if self.hypertable:
            return
        now = datetime.now(UTC)
        for day in sorted(days):
            name = f"journal_{day:%Y%m%d}"
            if name in self._days or not (now - self._keep).date() <= day <= (now + AHEAD).date():
                continue
            with suppress(asyncpg.CheckViolationError):  # the default partition holds entries of that day, and keeps it
                async with self._db.transaction():
                    await self._db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                    await self._db.execute(
                        f'CREATE TABLE IF NOT EXISTS tegumentar."{name}" PARTITION OF tegumentar.journal'
                        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
                    )
            self._days.add(name)

    async def _write_singly(self, rows: list[tuple[Any, ...]], up_to: int) -> None:
        """Something in this batch is beyond the database: everything else goes in."""
        import asyncpg

        async with self._db.transaction():
            for row in rows:
                try:
                    async with self._db.transaction():
                        await self._db.execute(_INSERT, *row)
                except asyncpg.DataError:
                    self.refused += 1
            await self._db.execute(_ADVANCE, self._node, self._epoch, up_to)

    def _row(self, entry: dict[str, Any]) -> tuple[Any, ...]:
        text = [_clean(entry[name]) for name in ("key", "kind", "subject", "cell")]
        at = datetime.fromtimestamp(min(max(entry["at_unix_s"], 0.0), 1e11), UTC)
        body = orjson.dumps(_clean(entry["body"]), option=orjson.OPT_NON_STR_KEYS).decode()
        return (self._node, text[0], text[1], at, text[2], text[3], body, self._epoch, entry["seq"])

    def _unavailable(self, exc: BaseException) -> Unavailable:
        if isinstance(exc, Unavailable):
            return exc
        said = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        return Unavailable(
            f"PostgreSQL at {self._target.masked()}: {said}",
            remedy="start the server or correct memory.postgres_*; until then the journal keeps everything",
        )

    @staticmethod
    def _failures() -> tuple[type[Exception], ...]:
        import asyncpg

        # the last of asyncpg's is what a server that dies in the middle of a batch may look like
        known = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        return (*known, OSError, TimeoutError, Unavailable)


def _clean(value: Any) -> Any:
    """As JSON in PostgreSQL may hold it: text without NUL, bytes as hex, no number beyond numbers."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
