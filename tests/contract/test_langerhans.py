"""The Langerhans cell in this process: what becomes an antigen, what is believed, and what when others are away."""

import time

import pytest

from actors.core.messages import (
    Action,
    CellState,
    Enforce,
    EnforceMany,
    Order,
    Record,
    Recorded,
    ReflexEvent,
    ReflexEvents,
    Verdict,
)
from actors.core.packed import pack
from actors.dermis.antigen import (
    TOPIC_ALERTS,
    TOPIC_ANTIGENS,
    Antigen,
    from_entry_body,
    make_id,
    read_body,
    seal,
    unseal,
)
from actors.dermis.antigen_keys import NodeKey, make_key
from actors.dermis.langerhans import Langerhans
from actors.dermis.lymph import Parcel
from actors.dermis.memory_cell import MemoryCell
from config.settings import Settings
from tests.support.core import Dish
from tests.support.lymph import FakeBroker, FakeLymph

SOURCE = "203.0.113.7"


class Skin:
    """One node: a Langerhans cell and a memory cell that talk, a policy that the test plays, a broker of its own."""

    def __init__(self, directory, broker=None, *, memory=True, **lymph):
        self.broker = broker if broker is not None else FakeBroker()
        for name in ("here", "north"):
            make_key(directory / name / "lymph" / "node.key")
        self.north = NodeKey("north", directory / "north" / "lymph" / "node.key")
        settings = Settings(
            state_dir=directory / "here",
            log_dir=directory,
            kafka={"bootstrap_servers": ["broker:9092"] if broker is not False else []},
            lymph={"node": "here", "keys": [f"north={self.north.public}"], "trusted_nodes": ["north"]} | lymph,
        )
        self.memory = Dish(MemoryCell, settings, name="memory_cell")
        self.memory.peer("langerhans", Recorded)
        self.answered = 0

        class Cell(Langerhans):
            make_lymph = staticmethod(lambda servers, client: FakeLymph(self.broker))

        self.dish = Dish(Cell, settings, name="langerhans")
        self.seen = 0
        self.has_memory = memory
        self.dish.peer("permeability", Verdict)
        self.dish.peer("mast_cell")
        self.dish.peer("reflex_arc")
        if memory:
            self.remember()

    def remember(self):
        self.has_memory = True
        self.dish.peer("memory_cell", Record, answers=("memory.history", "memory.outbox", "memory.sent"))

    def stop(self):
        self.dish.stop()
        self.memory.stop()

    def until(self, true, limit_s=5.0):
        deadline = time.monotonic() + limit_s
        while not true():
            assert time.monotonic() < deadline, self.dish.last_report()
            self.dish.run(0.005)
            self.carry()

    def carry(self):
        """What one cell sent, the other hears."""
        if not self.has_memory:
            return
        for socket, message in self.dish.out[self.seen :]:
            if socket == "memorycell":
                self.memory.give(message, "langerhans")
        self.seen = len(self.dish.out)
        self.memory.run(0.002)
        for socket, message in self.memory.out[self.answered :]:
            if socket == "langerhans":
                self.dish.give(message, "memory_cell")
        self.answered = len(self.memory.out)

    def verdict(self, subject=SOURCE, action=Action.BAN):
        self.dish.give(
            Verdict(
                subject=subject, action=action, reason="slow scan", evidence="143 ports", score=0.9,
                origin="mast_cell", seen_unix_s=time.time(),
            ),
            "mast_cell",
        )  # fmt: skip

    def enforce(self, subject=SOURCE):
        order = Order(subject=subject, action=Action.BAN, until_unix_s=0.0, reason="slow scan")
        self.dish.give(Enforce(orders=[order], generation=1), "permeability")

    def told(self, topic=TOPIC_ANTIGENS):
        return [read_body(unseal(parcel.payload).body) for parcel in self.broker.log if parcel.topic == topic]

    def recorded(self, kind):
        return [e for message in self.dish.sent(Record) for e in message.entries if e.kind == kind]

    def journal(self, kind):
        return self.memory.cell.history({"kind": kind}, "test")["history"]

    def lesson(self, subject=SOURCE, *, life=600.0):
        now = time.time()
        one = Antigen(
            id=make_id("north", subject, now), subject=subject, reason="kernel reflex syn_flood", sensor="reflex_arc",
            at_unix_s=now, expires_unix_s=now + life,
        )  # fmt: skip
        return Parcel(TOPIC_ANTIGENS, b"", seal(one, TOPIC_ANTIGENS, self.north))


@pytest.fixture
def skin(tmp_path):
    skin = Skin(tmp_path)
    skin.until(lambda: skin.dish.cell.state is CellState.HEALTHY)
    yield skin
    skin.stop()


def test_a_verdict_that_policy_enforces_becomes_an_antigen_on_disk_and_is_told(skin):
    skin.verdict()
    skin.enforce()

    skin.until(lambda: bool(skin.told()))
    (one,) = skin.told()
    assert (one.subject, one.reason, one.evidence, one.sensor) == (SOURCE, "slow scan", "143 ports", "mast_cell")
    assert one.expires_unix_s - one.at_unix_s == 3600.0
    (entry,) = skin.recorded("antigen")
    assert from_entry_body(entry.body) == one
    assert [row["key"] for row in skin.journal("antigen")] == [entry.key]


def test_somebody_whom_a_list_names_and_a_sensor_saw_is_taught_and_nobody_else_of_the_list(skin):
    skin.verdict()
    rows = pack(["203.0.113.200", SOURCE, "2001:db8::77"])

    skin.dish.give(EnforceMany(subjects=rows, until_unix_s=0.0, reason="listed", generation=1), "permeability")

    skin.until(lambda: bool(skin.told()))
    assert [one.subject for one in skin.told()] == [SOURCE]


def test_what_policy_does_not_enforce_is_not_taught(skin):
    skin.verdict()
    skin.verdict("198.51.100.1", Action.OBSERVE)
    skin.enforce("198.51.100.1")
    skin.enforce("198.51.100.2")  # by hand: no sensor saw it

    skin.until(lambda: bool(skin.told(TOPIC_ALERTS)))
    skin.dish.run(0.05)
    assert skin.told() == []


def test_an_ipv6_source_is_recognised_in_the_prefix_that_policy_chose(skin):
    skin.verdict("2001:db8::5")
    skin.enforce("2001:db8::/64")

    skin.until(lambda: bool(skin.told()))
    assert skin.told()[0].subject == "2001:db8::/64"


def test_a_source_is_taught_once_however_often_it_is_enforced(skin):
    for _ in range(5):
        skin.verdict()
        skin.enforce()

    skin.until(lambda: bool(skin.told()))
    skin.dish.run(0.05)
    skin.carry()
    assert len(skin.recorded("antigen")) == 1


def test_reflexes_are_told_as_alerts_and_a_storm_only_in_part(skin):
    now = time.time()
    events = [
        ReflexEvent(subject=f"203.0.113.{n}", reflex="syn_flood", banned=True, packets=9, seen_unix_s=now)
        for n in range(200)
    ]

    skin.dish.give(ReflexEvents(events=events), "reflex_arc")
    skin.dish.give(ReflexEvents(events=events), "reflex_arc")

    skin.until(lambda: len(skin.told(TOPIC_ALERTS)) == 10)
    assert skin.dish.cell.counters["alerts_untold"] == 190


def test_a_lesson_is_proposed_to_policy_in_the_name_of_its_node_and_noted(skin):
    skin.broker.log.append(skin.lesson())

    skin.until(lambda: bool(skin.dish.sent(Verdict)))
    (verdict,) = skin.dish.sent(Verdict)
    assert verdict.reason == "learned from node north: kernel reflex syn_flood"
    assert 590 < verdict.ttl_s <= 600
    assert verdict.score == 1.0
    skin.until(lambda: bool(skin.journal("vaccine")))


def test_what_was_learned_elsewhere_is_not_taught_again(skin):
    skin.broker.log.append(skin.lesson())
    skin.until(lambda: bool(skin.dish.sent(Verdict)))

    skin.enforce()
    skin.dish.run(0.05)
    skin.carry()

    assert skin.recorded("antigen") == []


def test_a_forged_and_a_replayed_lesson_change_nothing_and_are_counted(skin):
    lesson = skin.lesson()
    forged = Parcel(lesson.topic, b"", lesson.payload[:-3] + b"abc")
    skin.broker.log += [forged, lesson, lesson]

    skin.until(lambda: skin.dish.cell.counters["refused_replayed"] == 1)
    assert skin.dish.cell.counters["refused_forged"] == 1
    assert len(skin.dish.sent(Verdict)) == 1


def test_a_reborn_cell_does_not_apply_again_what_somebody_may_have_released(tmp_path):
    first = Skin(tmp_path)
    first.broker.log.append(first.lesson())
    first.until(lambda: bool(first.journal("vaccine")))
    first.stop()

    second = Skin(tmp_path, first.broker)
    second.until(lambda: second.dish.cell.counters["refused_replayed"] == 1)

    assert second.dish.sent(Verdict) == []
    second.stop()


def test_a_reborn_cell_remembers_more_lessons_than_one_answer_holds(tmp_path):
    first = Skin(tmp_path)
    first.broker.log += [first.lesson(f"203.0.{n >> 8}.{n & 255}") for n in range(700)]
    first.until(lambda: first.memory.cell.counters["entries_written"] >= 700, 20)
    first.stop()

    second = Skin(tmp_path, first.broker)
    second.until(lambda: second.dish.cell.counters["refused_replayed"] == 700, 20)

    assert second.dish.sent(Verdict) == []
    second.stop()


def test_with_the_broker_away_lessons_wait_in_the_journal_and_arrive_once(skin):
    skin.broker.away = True
    skin.until(lambda: skin.dish.cell.state is CellState.DEGRADED)
    for number in range(5):
        skin.verdict(f"203.0.113.{number}")
        skin.enforce(f"203.0.113.{number}")
    skin.until(lambda: len(skin.recorded("antigen")) == 5)
    assert skin.told() == []

    skin.broker.away = False

    skin.until(lambda: len(skin.told()) == 5)
    skin.until(lambda: skin.memory.cell.status({}, "test")["sinks"].get("kafka") == 0)
    assert len({one.id for one in skin.told()}) == 5


def test_with_memory_away_lessons_of_others_are_still_applied(tmp_path):
    skin = Skin(tmp_path, memory=False)
    skin.broker.log.append(skin.lesson())

    skin.until(lambda: bool(skin.dish.sent(Verdict)), 8)
    skin.verdict("203.0.113.9")
    skin.enforce("203.0.113.9")
    skin.remember()
    skin.verdict("203.0.113.10")
    skin.enforce("203.0.113.10")
    skin.until(lambda: "203.0.113.10" in {one.subject for one in skin.told()}, 8)
    skin.stop()


def test_a_node_that_does_not_share_learns_all_the_same(tmp_path):
    skin = Skin(tmp_path, share=False)
    skin.until(lambda: skin.dish.cell.state is CellState.HEALTHY)
    skin.verdict("203.0.113.9")
    skin.enforce("203.0.113.9")
    skin.broker.log.append(skin.lesson())

    skin.until(lambda: bool(skin.dish.sent(Verdict)))
    skin.dish.run(0.05)
    skin.carry()

    assert [one.subject for one in skin.told()] == [SOURCE], "only the lesson of the other node"
    assert len(skin.recorded("antigen")) == 1
    skin.stop()


def test_without_a_broker_the_node_keeps_its_lessons_and_says_so(tmp_path):
    skin = Skin(tmp_path, False)
    skin.verdict()
    skin.enforce()

    assert skin.dish.cell.state is CellState.HEALTHY
    assert "no Kafka broker" in skin.dish.last_report().reason
    assert len(skin.recorded("antigen")) == 1
    skin.stop()


def test_a_key_that_others_may_read_is_not_used(tmp_path):
    make_key(tmp_path / "here" / "lymph" / "node.key")
    (tmp_path / "here" / "lymph" / "node.key").chmod(0o644)

    skin = Skin(tmp_path)

    assert skin.dish.cell.state is CellState.DEGRADED
    assert "others may read the key" in skin.dish.last_report().reason
    skin.verdict()
    skin.enforce()
    skin.stop()


def test_a_flood_of_lessons_is_taken_in_parts_and_up_to_a_limit(skin):
    skin.broker.log += [skin.lesson(f"203.0.{n >> 8}.{n & 255}") for n in range(1500)]

    skin.until(lambda: skin.dish.cell.counters["refused_flooded"] == 300, 20)

    assert len(skin.dish.sent(Verdict)) == 1200
    assert len(skin.recorded("vaccine")) == 1200
    assert max(len(message.entries) for message in skin.dish.sent(Record)) <= 50


def test_the_account_names_the_node_its_key_its_friends_and_what_was_learned(skin):
    skin.broker.log.append(skin.lesson())
    skin.until(lambda: bool(skin.dish.sent(Verdict)))
    skin.until(lambda: bool(skin.journal("vaccine")))
    shown = {}

    skin.dish.cell.ask("antigens.list", {"limit": 5}, lambda answer: shown.update(answer.value))
    skin.until(lambda: bool(shown))

    assert shown["node"] == "here"
    assert len(shown["public_key"]) == 64
    assert shown["known_nodes"] == shown["trusted_nodes"] == ["north"]
    assert [row["subject"] for row in shown["vaccines"]] == [SOURCE]
    assert shown["vaccines"][0]["nodes"] == ["north"]
    assert abs(shown["vaccines"][0]["learned_unix_s"] - time.time()) < 60
    assert shown["connected"] is True
