"""The memory cell in this process, on a real disk, through the real codec."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from actors.core import packed
from actors.core.errors import Refused, Unavailable
from actors.core.messages import CellState, Entry, Record, Recorded
from actors.dermis.memory_cell import MemoryCell
from actors.dermis.scribe import Letter, Scribe
from actors.dermis.store_sqlite import Opened, SqliteStore, StoreError
from config.settings import Settings
from tests.support.core import Dish
from tests.support.memory import NOW, ban_entry, ban_of_many, entry, subject_of


@pytest.fixture
def dish(tmp_path):
    dish = Dish(MemoryCell, Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run"), name="memory_cell")
    dish.peer("permeability", Recorded)
    yield dish
    dish.stop()


def record(dish, number, *entries, source="permeability"):
    dish.give(Record(id=number, entries=list(entries)), source)
    assert dish.run_until(lambda: any(m.id == number for m in dish.sent(Recorded, source)))
    return next(m for m in dish.sent(Recorded, source) if m.id == number)


def journal(dish):
    return Path(dish.cell.settings.state_dir) / "memory" / "journal.sqlite3"


def test_what_is_acknowledged_is_on_disk(dish):
    assert record(dish, 1, ban_entry(1)).problem == ""

    rows = sqlite3.connect(journal(dish)).execute("SELECT subject FROM bans").fetchall()
    assert rows == [(subject_of(1),)]


def test_many_records_are_each_acknowledged(dish):
    for number in range(1, 301):
        dish.give(Record(id=number, entries=[ban_entry(number)]), "permeability")

    assert dish.run_until(lambda: len(dish.sent(Recorded)) == 300)
    assert {message.id for message in dish.sent(Recorded)} == set(range(1, 301))
    assert dish.ask("memory.status")["bans"] == 300


def spread(dish):
    assert dish.run_until(lambda: dish.ask("memory.status")["to_spread"] == 0, 5)


def test_one_entry_about_many_is_a_ban_of_each(dish):
    answer = record(dish, 1, ban_of_many(range(40)))
    spread(dish)

    assert (answer.problem, len(answer.epoch)) == ("", 32)
    assert [row["subject"] for row in dish.ask("memory.bans")["bans"]] == sorted(map(subject_of, range(40)))
    [row] = dish.ask("memory.history", {"subject": subject_of(7)})["history"]
    assert (row["kind"], row["body"]["reason"]) == ("ban", "many")


def test_what_is_in_force_is_not_told_while_some_of_it_has_no_row_yet(dish):
    record(dish, 1, ban_of_many(range(40)))

    with pytest.raises(Unavailable, match="put in order"):
        dish.ask("memory.bans")

    spread(dish)
    assert len(dish.ask("memory.bans")["bans"]) == 40


def test_the_same_entry_about_many_twice_is_written_once_and_undoes_no_release(dish):
    record(dish, 1, ban_of_many(range(5)))
    record(dish, 2, entry("release", "r", subject=subject_of(3), at=NOW + 1))

    assert record(dish, 3, ban_of_many(range(5))).problem == ""

    spread(dish)
    assert dish.ask("memory.status")["rows"] == 6
    assert subject_of(3) not in [row["subject"] for row in dish.ask("memory.bans")["bans"]]


def test_a_later_ban_of_one_among_many_stands(dish):
    record(dish, 1, ban_of_many(range(5)))
    record(dish, 2, ban_entry(3, until=NOW * 2, at=NOW + 1))

    spread(dish)

    assert {row["subject"]: row["until_unix_s"] for row in dish.ask("memory.bans")["bans"]} == {
        subject_of(number): NOW * 2 if number == 3 else 0.0 for number in range(5)
    }


@pytest.mark.parametrize(
    ("kind", "rows", "source"),
    [
        ("ban", packed.pack(["11.0.0.1"]), "merkel"),
        ("session", packed.pack(["11.0.0.1"]), "merkel"),
        ("release", packed.pack(["11.0.0.1"]), "permeability"),
        ("ban", b"no row", "permeability"),
        ("ban", packed.MAPPED + bytes((1, 2, 3, 4, 110)), "permeability"),
    ],
)
def test_many_subjects_are_taken_of_policy_for_bans_alone_and_only_when_they_can_be_read(dish, kind, rows, source):
    dish.peer("merkel", Recorded)
    strange = Entry(key="many", kind=kind, at_unix_s=NOW, subjects=rows)

    assert record(dish, 1, strange, source=source).problem

    assert dish.ask("memory.status")["rows"] == 0


def test_bans_are_told_in_pages(dish):
    record(dish, 1, *(ban_entry(number) for number in range(30)))

    first = dish.ask("memory.bans", {"limit": 20})
    second = dish.ask("memory.bans", {"limit": 20, "after": first["next"]})

    assert len(first["bans"]) == 20
    assert len(second["bans"]) == 10
    assert second["next"] == ""


def test_a_page_never_outgrows_a_message(dish):
    entries = [
        entry("ban", f"b{n}", subject=subject_of(n), until_unix_s=0.0, action="ban", evidence="x" * 1800)
        for n in range(150)
    ]
    for start in range(0, 150, 50):
        record(dish, start + 1, *entries[start : start + 50])

    seen, after = [], ""
    while True:
        page = dish.ask("memory.bans", {"after": after})
        seen += [row["subject"] for row in page["bans"]]
        after = page["next"]
        if not after:
            break

    assert len(seen) == len(set(seen)) == 150
    assert len(dish.ask("memory.history", {"limit": 500})["history"]) < 150


def test_history_posture_and_tolerance_are_told(dish):
    record(
        dish,
        1,
        ban_entry(1),
        entry("posture", "p", posture="lockdown"),
        entry("tolerance", "t", subject="203.0.113.0/24", comment="office"),
    )

    assert dish.ask("memory.history", {"subject": subject_of(1)})["history"][0]["kind"] == "ban"
    assert dish.ask("memory.posture")["posture"] == "lockdown"
    assert dish.ask("memory.tolerance")["tolerance"][0]["comment"] == "office"


@pytest.mark.parametrize("kind", ["ban", "release", "posture", "tolerance", "antigen", "alert", "vaccine"])
def test_only_their_own_cell_may_record_what_others_act_on(dish, kind):
    dish.peer("macrophage", Recorded)

    answer = record(dish, 1, entry(kind, "evil", subject="203.0.113.7"), source="macrophage")

    assert "may not" in answer.problem
    assert dish.ask("memory.status")["rows"] == 0


def test_any_cell_may_record_what_it_saw(dish):
    dish.peer("macrophage", Recorded)

    assert record(dish, 1, entry("verdict", "seen", subject="203.0.113.7"), source="macrophage").problem == ""


@pytest.mark.parametrize(
    "args", [{"limit": -1}, {"limit": "x"}, {"limit": True}, {"subject": 7}, {"subject": "x" * 99}]
)
def test_nonsense_in_a_question_is_refused(dish, args):
    with pytest.raises(Refused):
        dish.ask("memory.history", args)


def test_a_restart_begins_with_what_was_there(tmp_path):
    settings = Settings(state_dir=tmp_path / "state")
    first = Dish(MemoryCell, settings, name="memory_cell")
    first.peer("permeability", Recorded)
    record(first, 1, ban_entry(1))
    first.stop()

    second = Dish(MemoryCell, settings, name="memory_cell")

    assert len(second.ask("memory.bans")["bans"]) == 1
    assert second.cell.state is CellState.HEALTHY
    second.stop()


def test_a_damaged_journal_is_put_aside_and_said(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "journal.sqlite3").write_bytes(b"junk" * 5000)

    dish = Dish(MemoryCell, Settings(state_dir=tmp_path), name="memory_cell")
    dish.peer("permeability", Recorded)

    assert dish.cell.state is CellState.HEALTHY
    assert "damaged" in dish.last_report().reason
    assert record(dish, 1, ban_entry(1)).problem == ""
    assert list((tmp_path / "memory").glob("*.damaged-*"))
    dish.stop()


def test_a_state_directory_that_cannot_be_made_degrades_and_answers(tmp_path):
    (tmp_path / "state").write_text("a file where a directory should be")

    dish = Dish(MemoryCell, Settings(state_dir=tmp_path / "state"), name="memory_cell")
    dish.peer("permeability", Recorded)
    answer = record(dish, 1, ban_entry(1))

    assert "could not be opened" in answer.problem
    assert dish.cell.state is CellState.DEGRADED
    assert dish.last_report().remedy
    with pytest.raises(Unavailable):
        dish.ask("memory.bans")
    dish.stop()


class MoodyStore:
    """A store that refuses as often as it is told to, and otherwise is the real one."""

    def __init__(self, directory):
        self.real = SqliteStore(directory)
        self.refusals = 0
        self.damaged = False

    def open(self):
        if self.refusals:
            self._refuse()
        return self.real.open() if not self.damaged else Opened(aside="aside", damage="it was damaged")

    def write(self, batch):
        if self.refusals:
            self._refuse()
        return self.real.write(batch)

    def spread(self):
        return self.real.spread()

    def epoch(self):
        return self.real.epoch()

    def forget(self, *args):
        return self.real.forget(*args)

    def close(self):
        self.real.close()

    def _refuse(self):
        self.refusals -= 1
        raise StoreError("the disk is full", remedy="free space", damaged=self.damaged)


def scribe_with(store, outcomes, **more):
    store.real.open()
    scribe = Scribe(store, outcomes.append, retry_s=0.05, **more)
    scribe.start()
    return scribe


def until(true, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


@pytest.mark.parametrize("refusals", [1, 2, 3, 5])
def test_whatever_the_disk_refused_is_written_when_it_is_back(tmp_path, refusals):
    store, outcomes = MoodyStore(tmp_path), []
    store.refusals = refusals
    scribe = scribe_with(store, outcomes)

    scribe.put(Letter("permeability", 1, (ban_entry(1),)))
    until(lambda: sum(outcome.written for outcome in outcomes) == 1)

    assert outcomes[0].problem == "the disk is full"
    assert outcomes[0].letters[0].id == 1
    assert outcomes[-1].problem == ""
    assert outcomes[-1].waiting == 0
    scribe.end()


def test_what_waits_for_a_full_disk_is_bounded_and_the_loss_counted(tmp_path):
    store, outcomes = MoodyStore(tmp_path), []
    store.refusals = 1000
    scribe = scribe_with(store, outcomes, backlog=10)

    for number in range(30):
        scribe.put(Letter("permeability", number + 1, (ban_entry(number),)))
    until(lambda: sum(len(outcome.letters) for outcome in outcomes) == 30)
    store.refusals = 0
    until(lambda: outcomes[-1].problem == "" and outcomes[-1].waiting == 0)

    assert outcomes[-1].lost == 20
    scribe.end()
    store.real.open()
    assert len(store.real.bans(0.0)) == 10
    store.real.close()


def test_a_journal_damaged_while_in_use_is_replaced_and_the_record_written(tmp_path):
    store, outcomes = MoodyStore(tmp_path), []
    store.refusals, store.damaged = 1, True
    scribe = scribe_with(store, outcomes)

    scribe.put(Letter("permeability", 1, (ban_entry(1),)))
    until(lambda: bool(outcomes))

    assert outcomes[0].problem == ""
    assert outcomes[0].aside == "aside"
    assert outcomes[0].written == 1
    scribe.end()


def test_the_end_writes_what_waits(tmp_path):
    store, outcomes = MoodyStore(tmp_path), []
    scribe = scribe_with(store, outcomes)

    for number in range(500):
        scribe.put(Letter("permeability", number + 1, (ban_entry(number),)))
    scribe.end(5.0)

    store.real.open()
    assert store.real.status()["rows"] == 500
    store.real.close()


def test_the_directory_belongs_to_the_service_user(tmp_path):
    dish = Dish(MemoryCell, Settings(state_dir=tmp_path, user="64321"), name="memory_cell")

    expected = 64321 if os.geteuid() == 0 else os.geteuid()
    assert (tmp_path / "memory").stat().st_uid == expected
    dish.stop()
