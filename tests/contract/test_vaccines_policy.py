"""Vaccines in the policy cell: written down, told, listed, released, remembered, refused in words."""

import time

import pytest

from actors.core.errors import Refused
from actors.core.messages import Answer, Ask, HostilePayload, ReflexEvent, ReflexEvents, SetVaccines
from actors.core.payloads import UDP, name_of, number_of
from tests.support.policy import ENFORCING, Skin

HEAD = b"WORM/3 spread now to every host "
NAME = name_of(UDP, 7777, HEAD)


def hostile(*, port=7777, head=HEAD, ttl_s=0.0, score=1.0, reason="signature worm (critical)"):
    return HostilePayload(
        proto=UDP, dest_port=port, head=head, reason=reason, evidence="seen", score=score, ttl_s=ttl_s,
        seen_from="203.0.113.7", seen_unix_s=time.time(),
    )  # fmt: skip


class VaccineSkin(Skin):
    """With a macrophage, and a reflex arc that hears of vaccines and tells what it holds."""

    def __init__(self, directory, **named):
        super().__init__(directory, **named)
        for sensor in ("macrophage", "langerhans"):
            self.dish.peer(sensor)
        self.arc_up()

    def arc_up(self, incarnation=2):
        self.dish.peer("reflex_arc", *ENFORCING, SetVaccines, answers=("reflex.vaccines",), incarnation=incarnation)

    def told(self):
        """The names of the vaccines that the reflex arc was told last."""
        messages = self.dish.sent(SetVaccines, "reflex_arc")
        return [one.name for one in messages[-1].vaccines] if messages else None

    def listed(self):
        """The list, with the reflex arc proving everything that it was told."""
        self.dish._asked += 1
        number = self.dish._asked
        if "basal_layer" not in self.dish._peers:
            self.dish.peer("basal_layer")
        self.dish.give(Ask(id=number, verb="vaccines.list", args={}, by="cli"), "basal_layer")
        rows = [{"name": name, "packets": 3, "proven": True, "detail": "drops"} for name in self.told() or ()]
        for question in self.dish.sent(Ask, "reflex_arc"):
            if question.verb == "reflex.vaccines":
                self.dish.give(Answer(id=question.id, value={"vaccines": rows}), "reflex_arc")
        return next(m for m in self.dish.sent(Answer) if m.id == number).value


@pytest.fixture
def skin(tmp_path):
    skin = VaccineSkin(tmp_path, memory={})
    yield skin
    skin.stop()


def test_a_hostile_payload_is_written_down_then_told_then_listed_with_everything_about_it(skin):
    skin.dish.give(hostile(), "macrophage")
    skin.until(lambda: skin.told() == [NAME])

    [order] = skin.dish.sent(SetVaccines, "reflex_arc")[-1].vaccines
    assert (order.number, order.head, order.dest_port, order.proto) == (number_of(NAME), HEAD, 7777, UDP)
    [entry] = skin.entries("fingerprint")
    assert (entry.subject, entry.body["head"]) == (NAME, HEAD.hex())
    kinds = [type(m).__name__ for _, m in skin.dish.out]
    assert kinds.index("Record") < len(kinds) - kinds[::-1].index("SetVaccines")
    [row] = skin.listed()["vaccines"]
    assert (row["name"], row["hits"], row["proven"], row["seen_from"]) == (NAME, 3, True, "203.0.113.7")
    assert row["begins_with"] == HEAD.decode()
    assert 3590 < row["left_s"] <= 3600


def test_nobody_else_may_propose_one(skin):
    skin.dish.give(hostile(), "mast_cell")
    skin.play(0.1)

    assert not skin.entries()
    assert skin.cell.counters["wrong_speaker"] == 1


TLS = b"\x16\x03\x01" + bytes(range(29))


@pytest.mark.parametrize("wished", [hostile(port=22), hostile(head=TLS), hostile(score=0.5)])
def test_what_is_refused_changes_nothing_is_counted_and_written_down_once(skin, wished):
    for _ in range(5):
        skin.dish.give(wished, "macrophage")
    skin.until(lambda: bool(skin.entries("verdict")))

    assert skin.cell.counters["vaccines_refused"] == 5
    [entry] = skin.entries("verdict")
    assert "not dropped from everybody" in entry.body["refused"]
    assert not skin.entries("fingerprint")
    assert not skin.told()


def test_a_released_vaccine_leaves_the_kernel_is_written_down_and_not_placed_again(skin):
    skin.dish.give(hostile(), "macrophage")
    skin.until(lambda: skin.told() == [NAME])

    assert skin.ask("vaccines.release", names=[NAME]) == {"released": [NAME]}
    skin.dish.give(hostile(), "macrophage")
    skin.play(0.1)

    assert skin.told() == []
    assert skin.entries("fingerprint")[-1].body["released"] is True
    assert "released by hand" in skin.entries("verdict")[-1].body["refused"]


@pytest.mark.parametrize("names", [None, [], [7], ["udp/1/none"], "udp", ["x"] * 1_000])
def test_a_wrong_release_is_refused_and_nothing_changes(skin, names):
    skin.dish.give(hostile(), "macrophage")
    skin.until(lambda: skin.told() == [NAME])

    with pytest.raises(Refused):
        skin.ask("vaccines.release", names=names)

    assert skin.told() == [NAME]


def test_a_vaccine_ends_by_itself(skin):
    skin.dish.give(hostile(ttl_s=1.0), "langerhans")
    skin.until(lambda: skin.told() == [NAME])

    skin.until(lambda: skin.told() == [], 4)

    assert skin.listed()["total"] == 0


def test_a_cell_that_starts_anew_is_told_all_and_a_proposal_again_tells_nothing_new(skin):
    skin.dish.give(hostile(), "macrophage")
    skin.until(lambda: skin.told() == [NAME])
    before = len(skin.dish.sent(SetVaccines))
    skin.dish.give(hostile(), "macrophage")
    skin.play(0.1)
    assert len(skin.dish.sent(SetVaccines)) == before

    skin.dish.peer("reflex_arc", up=False)
    skin.arc_up(incarnation=3)

    assert skin.dish.sent(SetVaccines, "reflex_arc")[-1].whole
    assert skin.told() == [NAME]


def row_of(at, **body):
    whole = {
        "proto": UDP, "dest_port": 7777, "head": HEAD.hex(), "origin": "langerhans", "reason": "learned from north",
        "since_unix_s": at, "until_unix_s": time.time() + 600,
    }  # fmt: skip
    return {"seq": int(at), "at_unix_s": at, "subject": NAME, "body": whole | body}


@pytest.mark.parametrize(
    ("rows", "stands"),
    [
        ([{}], [NAME]),
        ([{"until_unix_s": 5.0}], []),
        ([{"released": True}, {}], []),
        ([{}, {"released": True}], [NAME]),
        ([{"head": "zz"}, {"dest_port": 22}, {"proto": 1}], []),
    ],
)
def test_what_stood_before_is_remembered_by_the_newest_word_about_it(tmp_path, rows, stands):
    now = time.time()
    history = [row_of(now - 100 - number, **body) for number, body in enumerate(rows)]
    pages = iter([history, []])

    class Memory(dict):
        def get(self, verb):
            return {"history": next(pages, [])} if verb == "memory.history" else None

    skin = VaccineSkin(tmp_path, memory=Memory())
    skin.until(lambda: skin.told() is not None)

    assert skin.told() == stands
    assert skin.dish.sent(SetVaccines, "reflex_arc")[-1].whole
    skin.stop()


def test_without_an_answer_from_memory_new_ones_are_told_as_additions_only(tmp_path):
    skin = VaccineSkin(tmp_path, memory=None)
    skin.dish.give(hostile(), "macrophage")
    skin.until(lambda: skin.told() == [NAME])

    assert not skin.dish.sent(SetVaccines, "reflex_arc")[-1].whole
    skin.stop()


def test_why_tells_whose_packets_were_dropped_by_which_vaccine(skin):
    skin.dish.give(hostile(reason="learned from node north: signature worm"), "langerhans")
    skin.until(lambda: skin.told() == [NAME])
    event = ReflexEvent(
        subject="203.0.113.9", reflex="vaccine", banned=False, packets=1, dest_port=7777, detail=number_of(NAME),
        seen_unix_s=time.time(),
    )  # fmt: skip

    skin.dish.give(ReflexEvents(events=[event]), "reflex_arc")

    assert "learned from node north" in " ".join(skin.cell.vaccines.account("203.0.113.9"))
    assert skin.cell.vaccines.account("203.0.113.10") == []
    assert len(skin.cell.ledger) == 0, "nobody is banned for what anybody could have sent in his name"
