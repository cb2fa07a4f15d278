"""Two nodes with a network each and one broker between them: what one learns, the other drops, and says from whom."""

import os
import signal
import time
from statistics import median

import pytest

from actors.dermis.antigen import TOPIC_ANTIGENS, Antigen, make_id, seal
from tests.support.fleet import a_fleet
from tests.support.service import a_witness, knocking

pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]


@pytest.fixture(scope="module")
def fleet():
    with a_fleet() as fleet:
        yield fleet


def learn(node, source):
    """Have a node ban a source by its own kernel reflex; returns when that was, by the node's own clock."""
    with knocking(node, source, kind="syn", rate=20_000):
        node.until(lambda: source in node.blocks(), 10, step_s=0.005)
    return node.blocks()[source]["since_unix_s"]


def test_what_one_node_learns_the_other_drops_within_half_a_second_and_names_the_teacher(fleet):
    delays = []
    for number in range(1, 4):
        source = f"10.66.7.{number}"
        learned_at = learn(fleet.one, source)
        fleet.two.until(lambda source=source: fleet.two.is_proven(source), 5, step_s=0.005)
        delays.append(time.time() - learned_at)

    with a_witness(fleet.two) as witness, knocking(fleet.two, "10.66.7.1"):
        time.sleep(0.3)
        assert witness.counters()["passed"] == 0
    assert median(delays) < 0.5, delays
    told = fleet.two.json("why", "10.66.7.1")
    assert "learned from node north" in told["block"]["reason"]
    assert any("north" in sentence for sentence in told["sentences"])
    assert "learned from" not in str(fleet.one.json("why", "10.66.7.1")["block"])


def test_an_ipv6_lesson_arrives_too(fleet):
    with knocking(fleet.one, "fd66:0:0:7::1", kind="syn", rate=20_000):
        fleet.two.until(lambda: fleet.two.is_proven("fd66:0:0:7::/64"), 10)


def test_forged_and_replayed_messages_change_nothing_and_are_counted(fleet):
    now = time.time()
    lesson = Antigen(
        id=make_id("north", "x", now), subject="10.66.8.1", reason="x", at_unix_s=now, expires_unix_s=now + 60
    )
    good = seal(lesson, TOPIC_ANTIGENS, fleet.keys["north"])
    forged = good[:-5] + b"xxxxx"

    class Mallory:
        node = "north"

        def sign(self, data):
            return b""

    other = Antigen(
        id=make_id("north", "y", now), subject="10.66.8.2", reason="y", at_unix_s=now, expires_unix_s=now + 60
    )
    unsigned = seal(other, TOPIC_ANTIGENS, Mallory())

    def refused():
        return fleet.two.ask("antigens.list")["refused"]

    before = dict(refused())
    fleet.tell(forged, unsigned)
    fleet.two.until(lambda: refused().get("unsigned", 0) > before.get("unsigned", 0), 10)
    assert sum(refused().values()) - sum(before.values()) == 2
    assert not {"10.66.8.1", "10.66.8.2"} & fleet.two.blocks().keys()

    fleet.tell(good)
    fleet.two.until(lambda: "10.66.8.1" in fleet.two.blocks(), 10)
    fleet.two.ask("release", subjects=["10.66.8.1"])
    fleet.tell(good)
    fleet.two.until(lambda: refused().get("replayed", 0) > before.get("replayed", 0), 10)
    assert "10.66.8.1" not in fleet.two.blocks()


def test_lessons_learned_while_the_broker_was_dead_arrive_when_it_is_back_once_each(fleet):
    fleet.lose_broker()
    sources = [f"10.66.9.{number}" for number in range(1, 4)]
    for source in sources:
        learn(fleet.one, source)
    fleet.one.until(lambda: not fleet.one.ask("antigens.list")["connected"], 20)
    assert fleet.one.cells()["langerhans"]["state"] == "degraded"

    fleet.new_broker()

    fleet.two.until(lambda: all(source in fleet.two.blocks() for source in sources), 40)
    vaccines = [row["subject"] for row in fleet.two.ask("antigens.list", limit=200)["vaccines"]]
    assert sorted(subject for subject in vaccines if subject in sources) == sources


def test_a_killed_cell_forgets_no_lesson_and_repeats_none(fleet):
    pid = fleet.two.cells()["langerhans"]["pid"]

    def lessons():
        return [row["id"] for row in fleet.two.ask("antigens.list", limit=200)["vaccines"]]

    before = lessons()

    os.kill(pid, signal.SIGKILL)
    fleet.two.until(lambda: fleet.two.cells()["langerhans"]["pid"] not in (0, pid), 10)
    learn(fleet.one, "10.66.10.1")
    fleet.two.until(lambda: "10.66.10.1" in fleet.two.blocks(), 20)

    fleet.two.until(lambda: len(lessons()) > len(before), 10)
    assert len(set(lessons())) == len(lessons()) == len(before) + 1


def test_the_command_line_shows_lessons_and_attackers(fleet):
    told = fleet.two.json("antigens")
    assert told["known_nodes"] == told["trusted_nodes"][:1] == ["north"]
    assert "10.66.10.1" in {row["subject"] for row in told["vaccines"]}
    assert "10.66.10.1" in {row["subject"] for row in fleet.one.json("antigens")["antigens"]}
    assert "10.66.10.1" in {row["subject"] for row in fleet.two.json("attackers", "--limit", "100")["attackers"]}
    for verb in ("antigens", "attackers"):
        shown = fleet.two.cli(verb)
        assert shown.returncode == 0, shown.stderr
    assert fleet.keys["south"].public in fleet.two.cli("antigens").stdout
