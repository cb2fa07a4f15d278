"""The journal on a real disk: keys, what is in force, retention, damage, a full disk, and kill -9."""

import contextlib
import os
import random
import sqlite3
import stat
import subprocess
import time
from pathlib import Path

import pytest

from actors.core import packed
from actors.dermis import schema
from actors.dermis.outbox import Outbox
from actors.dermis.store_sqlite import KEEP_ASIDE, SqliteStore, StoreError
from tests.support.memory import NOW, ban_entry, ban_of_many, entry, subject_of, writer


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path)
    store.open()
    yield store
    store.close()


def write(store, *entries, cell="permeability"):
    return store.write([(cell, one) for one in entries])


def subjects(rows):
    return [row["subject"] for row in rows]


def test_an_entry_is_there_after_the_file_was_closed_and_opened(tmp_path):
    store = SqliteStore(tmp_path)
    store.open()
    write(store, ban_entry(1))
    store.close()

    again = SqliteStore(tmp_path)
    again.open()

    assert subjects(again.bans(NOW)) == [subject_of(1)]
    again.close()


def test_the_same_key_twice_is_one_row(store):
    assert write(store, ban_entry(1), ban_entry(1)) == 1
    assert write(store, ban_entry(1)) == 0
    assert store.status()["rows"] == 1


def test_a_release_ends_a_ban_and_a_later_ban_begins_again(store):
    write(store, ban_entry(1))
    write(store, entry("release", "r1", subject=subject_of(1), at=NOW + 1))
    assert store.bans(NOW) == []

    write(store, entry("ban", "again", subject=subject_of(1), at=NOW + 2, until_unix_s=0.0))

    assert len(store.bans(NOW)) == 1


def test_a_release_that_arrives_late_does_not_end_a_later_ban(store):
    write(store, ban_entry(1, at=NOW + 5))
    write(store, entry("release", "r1", subject=subject_of(1), at=NOW))

    assert len(store.bans(NOW)) == 1


def test_a_ban_whose_time_is_over_is_not_in_force(store):
    write(store, ban_entry(1, until=NOW + 10), ban_entry(2, until=0.0))

    assert len(store.bans(NOW + 9)) == 2
    assert subjects(store.bans(NOW + 11)) == [subject_of(2)]


def test_bans_are_told_in_pages(store):
    write(store, *(ban_entry(number) for number in range(25)))

    seen, after = [], ""
    while page := store.bans(NOW, after, 10):
        seen += subjects(page)
        after = page[-1]["subject"]

    assert sorted(seen) == sorted(subject_of(number) for number in range(25))
    assert len(seen) == 25


def test_tolerance_is_kept_and_taken_back(store):
    write(store, entry("tolerance", "t1", subject="203.0.113.0/24", comment="office", until_unix_s=NOW + 60))
    assert store.tolerance(NOW)[0]["comment"] == "office"
    assert store.tolerance(NOW + 61) == []

    write(store, entry("tolerance", "t2", subject="203.0.113.0/24", at=NOW + 1, removed=True))

    assert store.tolerance(NOW) == []


def test_the_last_posture_is_kept(store):
    assert store.posture() is None
    write(store, entry("posture", "p1", posture="lockdown"), entry("posture", "p2", at=NOW + 1, posture="balanced"))
    write(store, entry("posture", "p0", at=NOW - 1, posture="explore"))

    assert store.posture()["posture"] == "balanced"


def test_history_is_told_newest_first_of_one_subject_or_of_all(store):
    write(store, ban_entry(1), ban_entry(2), entry("release", "r", subject=subject_of(1), at=NOW + 1))

    assert [row["kind"] for row in store.history(subject_of(1))] == ["release", "ban"]
    assert len(store.history()) == 3
    assert [row["key"] for row in store.history(before=store.history()[0]["seq"], limit=1)] == ["ban-2"]


def test_history_names_the_cell_that_recorded(store):
    write(store, entry("verdict", "v", subject="203.0.113.7"), cell="mast_cell")

    assert store.history()[0]["cell"] == "mast_cell"


def test_old_rows_are_forgotten_and_what_is_in_force_stays(store):
    write(store, *(ban_entry(number, at=NOW - 100) for number in range(5)), ban_entry(9))

    gone = store.forget(NOW - 50, 1 << 40, NOW)

    assert gone == 5
    assert len(store.bans(NOW)) == 6
    assert store.status()["rows"] == 1


def test_a_journal_over_its_size_forgets_the_oldest_rows_and_shrinks(store):
    for round_ in range(20):
        write(store, *(entry("verdict", f"v{round_}-{n}", evidence="x" * 2000) for n in range(200)))
    before = store.path.stat().st_size

    while store.forget(0.0, 3 * 1024 * 1024, NOW):
        pass
    store._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    assert before > 6 * 1024 * 1024
    assert store.path.stat().st_size < 4 * 1024 * 1024
    assert store.history(limit=1)[0]["key"] == "v19-199"


def test_rows_that_a_sink_waits_for_are_kept_unless_the_disk_runs_out(store):
    write(store, *(ban_entry(number, at=NOW - 100) for number in range(10)))
    store.sent("postgres", 4)

    assert store.forget(NOW - 50, 1 << 40, NOW) == 4
    assert len(store.since(store.sent_to("postgres"))) == 6
    assert store.forget(0.0, 0, NOW) == 6


def test_a_cursor_never_goes_back(store):
    store.sent("kafka", 7)
    store.sent("kafka", 3)

    assert store.sent_to("kafka") == 7


def test_the_outbox_runs_on_the_real_journal(store):
    write(store, *(ban_entry(number) for number in range(7)))
    outbox, arrived = Outbox(store, "postgres"), []

    while (parcel := outbox.due(0.0, limit=3)) is not None:
        arrived += [row["key"] for row in parcel.entries]
        outbox.acknowledged(parcel)

    assert arrived == [f"ban-{number}" for number in range(7)]
    assert store.status()["sinks"] == {"postgres": 0}


def test_a_reader_sees_what_was_written_beside_it(store, tmp_path):
    reader = SqliteStore(tmp_path)
    reader.open_reader()
    write(store, ban_entry(1))

    assert len(reader.bans(NOW)) == 1
    with pytest.raises(StoreError, match="readonly"):
        write(reader, ban_entry(2))
    reader.close()


def test_only_its_owner_may_read_the_file(store):
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("junk", [b"", b"junk", b"SQLite format 3\0" + b"\xff" * 5000, os.urandom(20_000)])
def test_a_file_that_is_no_journal_is_put_aside_and_a_new_one_begun(tmp_path, junk):
    (tmp_path / "journal.sqlite3").write_bytes(junk)
    store = SqliteStore(tmp_path)

    opened = store.open()

    assert bool(opened.aside) == bool(junk)
    if junk:
        assert Path(opened.aside).read_bytes()[:100] == junk[:100]
    assert write(store, ban_entry(1)) == 1
    store.close()


def test_a_damaged_page_is_found_when_the_file_is_opened(tmp_path):
    store = SqliteStore(tmp_path)
    store.open()
    write(store, *(ban_entry(number) for number in range(2000)))
    store.close()
    with store.path.open("r+b") as file:
        file.seek(4096 * 6)
        file.write(os.urandom(4096 * 8))

    opened = store.open()

    assert opened.aside
    assert "damaged" in opened.damage or "malformed" in opened.damage
    assert store.bans(NOW) == []
    store.close()


def test_damaged_files_do_not_pile_up(tmp_path):
    store = SqliteStore(tmp_path)
    for _ in range(KEEP_ASIDE + 3):
        store.path.write_bytes(b"junk" * 1000)
        store.open()
        store.close()

    assert len(list(tmp_path.glob("*.damaged-*"))) <= KEEP_ASIDE * 3
    assert len([p for p in tmp_path.glob("*.damaged-*") if p.name[-1].isdigit()]) == KEEP_ASIDE


def test_a_new_file_has_another_epoch(tmp_path):
    store = SqliteStore(tmp_path)
    store.open()
    first = store.epoch()
    store.close()
    store.open()
    assert store.epoch() == first
    store.close()

    store.path.write_bytes(b"junk" * 1000)
    store.open()

    assert store.epoch() != first
    store.close()


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path):
    store = SqliteStore(tmp_path)
    store.open()
    store._connection().execute("PRAGMA user_version = 99")
    store.close()

    with pytest.raises(StoreError, match="newer version") as failed:
        store.open()

    assert not failed.value.damaged
    assert failed.value.remedy


def test_a_migration_is_applied_once_and_keeps_what_was_there(tmp_path, monkeypatch):
    store = SqliteStore(tmp_path)
    store.open()
    write(store, ban_entry(1))
    store.close()
    monkeypatch.setattr(
        "actors.dermis.store_sqlite.MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE journal ADD COLUMN node TEXT")
    )

    store.open()
    store.close()
    store.open()

    assert store.status()["schema"] == len(schema.MIGRATIONS) + 1
    assert len(store.bans(NOW)) == 1
    store.close()


def test_a_full_disk_is_said_and_loses_nothing_that_was_acknowledged(store):
    write(store, ban_entry(1))
    db = store._connection()
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")

    with pytest.raises(StoreError, match="full") as failed:
        write(store, *(entry("verdict", f"v{n}", evidence="x" * 4000) for n in range(100)))

    assert "free space" in failed.value.remedy
    assert not failed.value.damaged
    db.execute("PRAGMA max_page_count = 1073741823")
    assert write(store, ban_entry(2)) == 1
    assert len(store.bans(NOW)) == 2


def test_a_directory_that_is_none_is_said(tmp_path):
    (tmp_path / "state").write_text("a file")

    with pytest.raises(StoreError, match="could not be opened") as failed:
        SqliteStore(tmp_path / "state").open()

    assert failed.value.remedy


def test_a_file_that_somebody_else_holds_is_said_and_written_later(store, tmp_path):
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="locked") as failed:
        write(store, ban_entry(1))

    assert "another process" in failed.value.remedy
    other.execute("ROLLBACK")
    assert write(store, ban_entry(1)) == 1
    other.close()


def test_a_closed_store_says_so():
    with pytest.raises(StoreError, match="not open"):
        SqliteStore(Path("nowhere")).bans(NOW)


@pytest.mark.chaos
def test_everything_acknowledged_is_there_after_kill_9(tmp_path):
    """A writer is killed at random moments; what it had said was written must be readable, whole and once."""
    dice = random.Random(7)
    start, acknowledged = 0, -1
    for _ in range(6):
        process = writer(tmp_path, start)
        assert process.stdout is not None
        with contextlib.closing(process.stdout) as said:
            first = said.readline()
            assert first.strip(), "the writer did not begin"
            time.sleep(dice.uniform(0.0, 0.15))
            process.kill()
            lines = [line for line in (first + said.read()).split(b"\n")[:-1] if line]
            process.wait(5)
        acknowledged = int(lines[-1])
        store = SqliteStore(tmp_path)
        assert not store.open().aside
        rows = [row["key"] for row in store.since(0, 1_000_000)]
        bans = set()
        after = ""
        while page := store.bans(NOW, after):
            bans |= set(subjects(page))
            after = page[-1]["subject"]
        store.close()

        assert len(rows) == len(set(rows))
        assert {f"ban-{number}" for number in range(acknowledged + 1)} <= set(rows)
        assert {subject_of(number) for number in range(acknowledged + 1)} <= bans
        start = acknowledged + 1
    assert acknowledged > 50
    assert isinstance(process, subprocess.Popen)


def test_an_entry_about_many_survives_the_end_of_the_process_at_every_part(tmp_path):
    first = SqliteStore(tmp_path)
    first.open()
    assert first.write([("permeability", ban_of_many(range(25)))]) == 25
    assert packed.unpack(first.spread(10).subjects) == [subject_of(number) for number in range(10)]
    first.close()

    second = SqliteStore(tmp_path)
    second.open()
    parts = []
    while (part := second.spread(10)) is not None:
        parts.append(packed.unpack(part.subjects))

    assert [len(part) for part in parts] == [10, 5]
    assert {row["subject"] for row in second.bans(NOW)} == set(map(subject_of, range(25)))
    assert [row["key"].rpartition(":")[2] for row in reversed(second.history(limit=100))] == list(map(str, range(25)))
    assert second.write([("permeability", ban_of_many(range(25)))]) == 0
    assert second.to_spread() == 0


def test_a_ban_that_arrives_after_its_own_release_does_not_come_back(tmp_path):
    store = SqliteStore(tmp_path)
    store.open()

    store.write([("permeability", entry("release", "r", subject=subject_of(1), at=NOW + 1))])
    store.write([("permeability", ban_entry(1)), ("permeability", ban_of_many([1, 2]))])
    while store.spread() is not None:
        pass
    late = [row["subject"] for row in store.bans(NOW)]
    store.write([("permeability", entry("ban", "again", subject=subject_of(1), at=NOW + 2, until_unix_s=0.0))])

    assert late == [subject_of(2)]
    assert [row["subject"] for row in store.bans(NOW)] == [subject_of(1), subject_of(2)]
