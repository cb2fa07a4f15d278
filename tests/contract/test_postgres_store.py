"""The journal beyond the node, on a real PostgreSQL that is killed and brought back."""

import asyncio
import time
from pathlib import Path

import pytest

from actors.core.errors import Unavailable
from actors.core.messages import CellState, Record, Recorded
from actors.dermis.memory_cell import MemoryCell
from actors.dermis.store_postgres import PostgresStore
from config.settings import Settings
from tests.support.core import Dish
from tests.support.memory import entry, subject_of
from tests.support.postgres import PASSWORD, a_postgres

DAY_S = 86_400.0


@pytest.fixture(scope="module")
def server():
    with a_postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def _empty(server):
    server.sql("DROP SCHEMA IF EXISTS tegumentar CASCADE")
    server.sql("DROP FUNCTION IF EXISTS create_hypertable, drop_chunks")


def row(seq, *, at=None, key="", kind="ban", **body):
    return {
        "seq": seq, "key": key or f"k{seq}", "kind": kind, "at_unix_s": at or time.time(),
        "subject": subject_of(seq), "cell": "permeability", "body": body,
    }  # fmt: skip


def with_store(server, play, *, node="north", epoch="e1", keep_days=30):
    async def run():
        store = PostgresStore(server.target(), node, epoch, keep_days)
        try:
            return await play(store)
        finally:
            await store.close()

    return asyncio.run(run())


def count(server, where="true"):
    return int(server.sql(f"SELECT count(*) FROM tegumentar.journal WHERE {where}")[0])


def test_what_is_written_twice_is_there_once_and_the_cursor_says_how_far(server):
    async def play(store):
        assert await store.open() == 0
        await store.write([row(1, reason="a"), row(2)], 2)
        await store.close()
        assert await store.open() == 2
        await store.write([row(2, at=5e8), row(3)], 3)

    first = [row(1, at=1e9), row(2, at=1e9)]

    async def again(store):
        await store.open()
        await store.write(first, 2)
        await store.write(first, 2)

    with_store(server, play)
    with_store(server, again, node="south")

    assert count(server, "node = 'south'") == 2
    assert server.sql("SELECT seq FROM tegumentar.cursors ORDER BY node") == ["3", "2"]
    assert server.sql("SELECT reason FROM tegumentar.bans WHERE subject = '11.0.0.1' AND node = 'north'") == ["a"]


def test_nodes_and_lives_of_a_journal_keep_apart(server):
    async def play(store):
        found = await store.open()
        await store.write([row(1, at=1e9)], 1)
        return found

    assert with_store(server, play) == 0
    assert with_store(server, play, node="south") == 0
    assert with_store(server, play, epoch="e2") == 0
    assert count(server) == 2


def test_there_is_a_partition_for_each_day_and_old_ones_go(server):
    now = time.time()
    days = [now, now - DAY_S, now - 20 * DAY_S, now - 400 * DAY_S, now + 90 * DAY_S]

    async def fill(store):
        await store.open()
        await store.write([row(number, at=at) for number, at in enumerate(days)], 9)

    async def retain(store):
        await store.open()
        await store.retain(now)

    with_store(server, fill)
    tables = server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'tegumentar' AND tablename ~ 'journal_2'")
    assert len(tables) == 3
    assert count(server) == 5

    with_store(server, retain, keep_days=10)

    assert count(server) == 3
    assert len(server.sql("SELECT 1 FROM pg_tables WHERE tablename ~ '^journal_[0-9]'")) == 2


def test_where_the_server_has_hypertables_they_are_used(server):
    server.sql("CREATE TABLE IF NOT EXISTS asked (what text); DELETE FROM asked")
    server.sql(
        "CREATE FUNCTION create_hypertable(text, text) RETURNS void LANGUAGE sql AS"
        " $$ INSERT INTO asked VALUES ($1 || ' by ' || $2) $$"
    )
    server.sql(
        "CREATE FUNCTION drop_chunks(t text, older_than timestamptz) RETURNS void LANGUAGE sql AS"
        " $$ INSERT INTO asked VALUES ('drop from ' || t) $$"
    )

    async def play(store):
        await store.open()
        await store.write([row(1)], 1)
        await store.retain(time.time())
        return store.hypertable

    assert with_store(server, play)
    assert server.sql("SELECT what FROM asked") == ["tegumentar.journal by at", "drop from tegumentar.journal"]
    assert count(server) == 1
    assert not server.sql("SELECT 1 FROM pg_tables WHERE schemaname = 'tegumentar' AND tablename ~ 'journal_'")


@pytest.mark.parametrize(
    "body",
    [{"evidence": "a\0b"}, {"payload": b"\xff\0"}, {"rate": float("nan")}, {"n": -(2**63), 7: [1, {"x": None}]}],
)
def test_whatever_a_packet_put_into_an_entry_the_database_takes(server, body):
    async def play(store):
        await store.open()
        await store.write([row(1) | {"body": body}], 1)
        return store.refused

    assert with_store(server, play) == 0
    assert count(server) == 1


def test_a_server_that_is_not_there_is_said_without_the_password(server):
    target = server.target()
    object.__setattr__(target, "port", 1)

    with pytest.raises(Unavailable) as refused:
        asyncio.run(PostgresStore(target, "n", "e", 1).open())

    assert PASSWORD not in str(refused.value)
    assert refused.value.remedy


def test_a_database_of_a_newer_version_is_left_alone(server):
    with_store(server, lambda store: store.open())
    server.sql("UPDATE tegumentar.about SET value = '99' WHERE name = 'schema'")

    with pytest.raises(Unavailable, match="newer version"):
        with_store(server, lambda store: store.open())


class Memory:
    """A memory cell that feeds a server, and a cell that records."""

    def __init__(self, server, tmp_path: Path) -> None:
        memory = {"postgres_dsn": server.raw_dsn()}
        self.dish = Dish(MemoryCell, Settings(state_dir=tmp_path / "state", memory=memory), name="memory_cell")
        self.dish.peer("permeability", Recorded)
        self.number = 0

    def record(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            one = entry("ban", f"b{self.number}", subject=subject_of(self.number), at=time.time(), until_unix_s=0.0)
            self.dish.give(Record(id=self.number, entries=[one]), "permeability")

    def until(self, true, limit_s: float = 20.0) -> None:
        assert self.dish.run_until(true, limit_s), self.dish.last_report()


@pytest.fixture
def memory(server, tmp_path):
    memory = Memory(server, tmp_path)
    yield memory
    memory.dish.stop()


def test_a_server_killed_in_the_middle_loses_nothing_and_doubles_nothing(server, memory):
    memory.record(300)
    memory.until(lambda: memory.dish.cell.gauges.get("postgres_connected") == 1.0)

    server.kill()
    memory.record(300)
    memory.until(lambda: memory.dish.cell.state is CellState.DEGRADED)
    assert "PostgreSQL" in memory.dish.last_report().reason
    assert PASSWORD not in memory.dish.last_report().reason
    memory.until(lambda: len(memory.dish.sent(Recorded)) == 600)
    assert all(message.problem == "" for message in memory.dish.sent(Recorded)), "the node's journal is not concerned"
    server.start()
    memory.record(100)
    memory.until(lambda: memory.dish.cell.state is CellState.HEALTHY)
    memory.until(lambda: memory.dish.ask("memory.status")["sinks"].get("postgres") == 0)

    assert count(server) == 700
    assert server.sql("SELECT count(DISTINCT key) FROM tegumentar.journal") == ["700"]


def test_a_database_that_was_emptied_gets_everything_again(server, tmp_path):
    memory = Memory(server, tmp_path)
    memory.record(50)
    memory.until(lambda: memory.dish.ask("memory.status")["sinks"].get("postgres") == 0)
    memory.dish.stop()
    server.sql("DROP SCHEMA tegumentar CASCADE")

    reborn = Memory(server, tmp_path)
    reborn.until(lambda: reborn.dish.cell.gauges.get("postgres_connected") == 1.0)
    reborn.until(lambda: count(server) == 50)
    reborn.dish.stop()


def test_a_server_that_was_never_there_costs_nothing_but_a_word(tmp_path):
    settings = Settings(state_dir=tmp_path / "state", memory={"postgres_dsn": "postgres://skin:x@127.0.0.1:1/skin"})
    dish = Dish(MemoryCell, settings, name="memory_cell")
    dish.peer("permeability", Recorded)

    dish.give(Record(id=1, entries=[entry("ban", "b", subject="11.0.0.1", until_unix_s=0.0)]), "permeability")

    assert dish.run_until(lambda: bool(dish.sent(Recorded)))
    assert dish.run_until(lambda: dish.cell.state is CellState.DEGRADED, 10)
    assert "the journal keeps everything" in dish.last_report().remedy
    dish.stop()
