"""Payloads and signatures as lessons: taught when policy agrees, believed when signed, kept in quarantine, let go."""

import time

import pytest

from actors.core.errors import Refused
from actors.core.messages import Answer, Ask, CellState, HostilePayload, Record, SetVaccines, VaccineOrder, Verdict
from actors.core.payloads import UDP, name_of, number_of
from actors.dermis import antigen_signatures
from actors.dermis.antigen import TOPIC_ANTIGENS, Antigen, Payload, make_id, seal, signature_name
from actors.dermis.antigen_signatures import LIMIT
from actors.dermis.lymph import Parcel
from tests.contract.test_langerhans import SOURCE, Skin

HEAD = b"WORM/3 spread now to every host "
NAME = name_of(UDP, 7777, HEAD)
TEXT = "- name: sesame\n  pattern: 'open sesame'\n"


class Node(Skin):
    """With a macrophage and a policy that hear of payloads; the test plays both."""

    def __init__(self, directory, broker=None, **named):
        super().__init__(directory, broker, **named)
        self.dish.peer("permeability", Verdict, HostilePayload)
        self.answered_rules = 0
        self.rules = None
        self.verdict_on_text = {"signatures": 1, "rules": 0, "problems": [], "names": ["sesame"]}
        self.unwanted = {}
        self.macrophage_up()

    def macrophage_up(self, incarnation=1):
        self.dish.peer("macrophage", answers=("rules.check", "rules.learned"), incarnation=incarnation)

    def carry(self):
        super().carry()
        asks = self.dish.sent(Ask, "macrophage")
        for question in asks[self.answered_rules :]:
            if question.verb == "rules.learned":
                self.rules = [row["text"] for row in question.args["signatures"]]
                subjects = [row["subject"] for row in question.args["signatures"]]
                value = {"problems": {s: why for s, why in self.unwanted.items() if s in subjects}}
            else:
                value = self.verdict_on_text
            self.dish.give(Answer(id=question.id, value=value), "macrophage")
        self.answered_rules = len(asks)

    def found(self, head=HEAD):
        """The macrophage has found a hostile payload."""
        self.dish.give(
            HostilePayload(
                proto=UDP, dest_port=7777, head=head, reason="signature worm", evidence="seen", score=1.0,
                seen_from=SOURCE, seen_unix_s=time.time(),
            ),
            "macrophage",
        )  # fmt: skip

    def agreed(self, head=HEAD):
        name = name_of(UDP, 7777, head)
        order = VaccineOrder(
            name=name, number=number_of(name), proto=UDP, dest_port=7777, head=head, until_unix_s=time.time() + 60
        )
        self.dish.give(SetVaccines(vaccines=[order]), "permeability")

    def taught(self, *, payload=None, signature="", subject="", at=None, life=600.0):
        now = time.time() if at is None else at
        subject = subject or (payload.name if payload else signature_name(signature) if signature else SOURCE)
        one = Antigen(
            id=make_id("north", subject, now), subject=subject, reason="x", sensor="macrophage", at_unix_s=now,
            expires_unix_s=now + life, payload=payload, signature=signature,
        )  # fmt: skip
        return Parcel(TOPIC_ANTIGENS, b"", seal(one, TOPIC_ANTIGENS, self.north))

    def ask(self, verb, **args):
        """What the command line would be answered, with everybody at work meanwhile."""
        told = []
        if "basal_layer" not in self.dish._peers:
            self.dish.peer("basal_layer")
        number = 10_000 + len(self.dish.sent(Answer))
        self.dish.give(Ask(id=number, verb=verb, args=args, by="cli"), "basal_layer")
        self.until(lambda: told.extend(m for m in self.dish.sent(Answer) if m.id == number) or bool(told))
        if told[0].problem:
            raise Refused(told[0].problem)
        return told[0].value

    def learned(self):
        return {row["name"]: row for row in self.ask("antigens.list")["signatures"]}


PAYLOAD = Payload(proto=UDP, dest_port=7777, head=HEAD.hex())


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    node.until(lambda: node.dish.cell.state is CellState.HEALTHY)
    yield node
    node.stop()


# --- payloads ------------------------------------------------------------------------------------------------------


def test_a_payload_that_policy_vaccinates_against_is_taught_once(node):
    for _ in range(3):
        node.found()
        node.agreed()

    node.until(lambda: bool(node.told()))
    [one] = node.told()
    assert (one.subject, one.payload, one.sensor) == (NAME, PAYLOAD, "macrophage")
    assert [row["subject"] for row in node.journal("antigen")] == [NAME]


def test_a_payload_that_policy_leaves_alone_is_not_taught(node):
    node.found()
    node.agreed(head=b"quite another thing, not seen ever")

    node.dish.run(0.1)
    node.carry()
    assert node.told() == []


def test_a_taught_payload_is_proposed_in_the_name_of_its_node_and_not_taught_on(node):
    node.broker.log.append(node.taught(payload=PAYLOAD))
    node.until(lambda: bool(node.dish.sent(HostilePayload, "permeability")))
    node.agreed()
    node.until(lambda: bool(node.journal("vaccine")))

    [proposed] = node.dish.sent(HostilePayload, "permeability")
    assert (proposed.head, proposed.dest_port, proposed.proto) == (HEAD, 7777, UDP)
    assert proposed.reason == "learned from node north: x"
    assert 590 < proposed.ttl_s <= 600
    assert node.recorded("antigen") == []
    assert node.dish.sent(Verdict) == []


def test_payloads_that_would_hit_the_innocent_or_lie_about_their_name_change_nothing(node):
    heads = [b"GET / HTTP/1.1\r\nHost: example.or", bytes(32), b"short"]
    node.broker.log += [node.taught(payload=Payload(proto=UDP, dest_port=7777, head=head.hex())) for head in heads]
    node.broker.log.append(node.taught(payload=PAYLOAD, subject="udp/7777/0000000000000000"))
    node.broker.log.append(node.taught(payload=PAYLOAD, subject=SOURCE))
    node.broker.log.append(node.taught(payload=PAYLOAD, signature=TEXT, subject=NAME))

    node.until(lambda: node.dish.cell.counters["refused_undecodable"] == 3)

    assert node.dish.cell.counters["refused_unfit"] == 3
    assert node.dish.sent(HostilePayload) == []
    assert node.recorded("vaccine") == []


# --- signatures ----------------------------------------------------------------------------------------------------


def test_a_signature_is_judged_and_then_taught(node):
    done = node.ask("signatures.share", text=TEXT, for_s=600.0)

    node.until(lambda: bool(node.told()))
    [one] = node.told()
    assert (one.subject, one.signature, one.reason) == (signature_name(TEXT), TEXT, "signature sesame")
    assert done == {"subject": one.subject, "name": "sesame", "expires_unix_s": one.expires_unix_s}
    assert 599 < one.expires_unix_s - one.at_unix_s <= 600


@pytest.mark.parametrize(
    "args",
    [{}, {"text": ""}, {"text": 5}, {"text": "x" * 5_000}, {"text": TEXT, "for_s": 1e6}, {"text": TEXT, "for_s": True}],
)
def test_a_wrong_wish_to_share_is_refused(node, args):
    with pytest.raises(Refused):
        node.ask("signatures.share", **args)

    assert node.recorded("antigen") == []


def test_a_signature_that_does_not_prove_itself_is_not_shared(node):
    node.verdict_on_text = {"signatures": 0, "rules": 0, "problems": [{"reason": "it finds too much"}], "names": []}

    with pytest.raises(Refused, match="it finds too much"):
        node.ask("signatures.share", text=TEXT)

    assert node.recorded("antigen") == []


def test_a_node_alone_shares_nothing(tmp_path):
    node = Node(tmp_path, False)

    with pytest.raises(Refused, match="shares nothing"):
        node.ask("signatures.share", text=TEXT)
    node.stop()


def test_a_taught_signature_is_given_to_the_macrophage_and_written_down_once_it_is_accepted(node):
    node.broker.log.append(node.taught(signature=TEXT))

    node.until(lambda: bool(node.journal("vaccine")))

    assert node.rules == [TEXT]
    assert node.learned()["sesame"]["in_use"]
    assert node.learned()["sesame"]["node"] == "north"
    assert node.dish.cell.counters["vaccines"] == 1


def test_one_that_the_macrophage_refuses_is_counted_and_nowhere_written_down(node):
    node.unwanted = {signature_name(TEXT): "it finds too much"}
    node.broker.log.append(node.taught(signature=TEXT))

    node.until(lambda: node.ask("antigens.list")["refused"].get("signature") == 1)

    assert node.learned() == {}
    assert node.recorded("vaccine") == []


def test_signatures_of_others_are_few_and_end_by_themselves(node):
    node.broker.log += [node.taught(signature=f"- name: number-{n}\n") for n in range(LIMIT // 2 + 3)]
    node.until(lambda: node.rules is not None and len(node.rules) == LIMIT // 2)
    assert node.dish.cell._signatures.refused == 3

    node.dish.cell._signatures._learned[signature_name("- name: number-0\n")].until_unix_s = time.time()
    node.macrophage_up(incarnation=2)

    node.until(lambda: len(node.rules) == LIMIT // 2 - 1)


def test_a_released_signature_is_taken_out_written_down_and_not_learned_again(node):
    node.broker.log.append(node.taught(signature=TEXT))
    node.until(lambda: bool(node.journal("vaccine")))

    assert node.ask("signatures.release", names=["sesame"]) == {"released": [signature_name(TEXT)]}
    node.until(lambda: node.rules == [])
    node.broker.log.append(node.taught(signature=TEXT, life=601.0))
    node.until(lambda: node.dish.cell._signatures.refused == 1)

    assert node.learned() == {}
    assert node.journal("vaccine")[0]["body"]["released"] is True
    with pytest.raises(Refused, match="no signature"):
        node.ask("signatures.release", names=["sesame"])


def test_a_reborn_cell_gives_the_macrophage_what_was_learned_and_not_what_was_released(tmp_path):
    first = Node(tmp_path)
    first.broker.log += [first.taught(signature=text) for text in (TEXT, TEXT.replace("sesame", "barley"))]
    first.until(lambda: len(first.journal("vaccine")) == 2)
    first.ask("signatures.release", names=["barley"])
    first.until(lambda: len(first.journal("vaccine")) == 3)
    first.stop()

    second = Node(tmp_path, first.broker)
    second.until(lambda: second.rules == [TEXT])

    assert list(second.learned()) == ["sesame"]
    assert second.dish.cell.counters["vaccines"] == 0
    second.stop()


def test_a_signature_under_which_the_macrophage_ends_is_tried_twice(node, monkeypatch):
    monkeypatch.setattr(antigen_signatures, "AGAIN_S", 0.05)
    node.until(lambda: node.dish.cell._remembered)
    cell = node.dish.cell._signatures
    node.broker.log.append(node.taught(signature=TEXT))
    for incarnation in (2, 3):
        node.carry = lambda: None
        node.until(lambda: cell._asking, 8)
        node.macrophage_up(incarnation)  # ends before it answers, and comes again
        node.dish.run(0.01)
    del node.carry

    node.until(lambda: cell.refused == 1)

    assert node.learned() == {}


# --- lessons of an earlier life --------------------------------------------------------------------------------------


def test_with_memory_late_old_lessons_wait_for_it_and_new_ones_do_not(tmp_path):
    first = Node(tmp_path)
    first.broker.log.append(first.taught())
    first.until(lambda: bool(first.journal("vaccine")))
    first.stop()

    second = Node(tmp_path, first.broker, memory=False)
    second.broker.log.append(second.taught(subject="203.0.113.8"))
    second.broker.log.append(second.taught(subject="203.0.113.9", at=time.time() - 100))
    second.until(lambda: bool(second.dish.sent(Verdict)), 8)
    assert [verdict.subject for verdict in second.dish.sent(Verdict)] == ["203.0.113.8"]
    second.remember()

    second.until(lambda: len(second.dish.sent(Verdict)) == 2, 8)
    second.dish.run(0.1)
    second.carry()

    assert [verdict.subject for verdict in second.dish.sent(Verdict)] == ["203.0.113.8", "203.0.113.9"]
    written = [entry.subject for message in second.dish.sent(Record) for entry in message.entries]
    assert SOURCE not in written, "it was applied in the first life, and somebody may have released it"
    second.stop()
