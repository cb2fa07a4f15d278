"""What is believed of other nodes, and what changes nothing: signatures, freshness, novelty, quorum."""

import contextlib
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dermis import antigen
from actors.dermis.antigen import TOPIC_ALERTS, TOPIC_ANTIGENS, Antigen, AntigenError, make_id, seal, unseal
from actors.dermis.antigen_keys import KeyRing, KeyRingError, NodeKey, make_key
from actors.dermis.immunity import NODE_LIMIT, SKEW_S, Immunity

NOW = 1_800_000_000.0


@pytest.fixture
def keys(tmp_path):
    """The keys of four nodes, each in a file of its own."""
    made = {}
    for name in ("here", "north", "south", "east"):
        make_key(tmp_path / name / "node.key")
        made[name] = NodeKey(name, tmp_path / name / "node.key")
    return made


@pytest.fixture
def ring(tmp_path, keys):
    known = KeyRing(tmp_path / "keyring")
    for name in ("here", "north", "south"):
        known.add(name, keys[name].public)
    return known


def lesson(subject="203.0.113.7", *, node="north", at=NOW, life=600.0, number=0):
    identity = make_id(node, f"{subject}{number}", at)
    return Antigen(
        id=identity, subject=subject, reason="kernel reflex syn_flood", at_unix_s=at, expires_unix_s=at + life
    )


def told(keys, one, *, node="north", topic=TOPIC_ANTIGENS):
    return seal(one, topic, keys[node])


def test_a_trusted_node_is_believed_at_once_and_by_name(keys, ring):
    immunity = Immunity("here", ring, trusted=["north"])

    found = immunity.take(TOPIC_ANTIGENS, told(keys, lesson()), NOW + 1)

    assert found.applies
    assert found.node == "north"
    assert found.antigen.subject == "203.0.113.7"
    assert not immunity.refused


def test_others_are_believed_when_enough_of_them_say_the_same(keys, ring):
    immunity = Immunity("here", ring, quorum=2)

    first = immunity.take(TOPIC_ANTIGENS, told(keys, lesson()), NOW)
    again = immunity.take(TOPIC_ANTIGENS, told(keys, lesson(number=1)), NOW)
    second = immunity.take(TOPIC_ANTIGENS, told(keys, lesson(node="south"), node="south"), NOW)

    assert not first.applies
    assert not again.applies, "one node twice is one voice"
    assert second.applies
    assert second.nodes == ("north", "south")


def test_a_voice_whose_time_is_over_counts_no_more(keys, ring):
    immunity = Immunity("here", ring, quorum=2)

    immunity.take(TOPIC_ANTIGENS, told(keys, lesson(life=10)), NOW)
    late = lesson(node="south", at=NOW + 11)

    assert not immunity.take(TOPIC_ANTIGENS, told(keys, late, node="south"), NOW + 11).applies


def test_the_own_sight_is_one_voice(keys, ring):
    immunity = Immunity("here", ring, quorum=2)
    immunity.own(lesson(node="here"), NOW)

    assert immunity.take(TOPIC_ANTIGENS, told(keys, lesson()), NOW).applies


def refusal(keys, ring, payload, *, topic=TOPIC_ANTIGENS, now=NOW):
    immunity = Immunity("here", ring, trusted=["north", "south", "east"])
    assert immunity.take(topic, payload, now) is None
    assert immunity.waiting == 0
    assert sum(immunity.refused.values()) == 1
    return next(iter(immunity.refused))


def changed(payload, **fields):
    return msgspec.msgpack.encode(msgspec.msgpack.decode(payload) | fields)


def test_what_changes_nothing_is_counted_by_reason(keys, ring):
    good = told(keys, lesson())
    other = antigen.canonical(lesson("198.51.100.1"))

    assert refusal(keys, ring, changed(good, sig=b"")) == "unsigned"
    assert refusal(keys, ring, changed(good, sig=b"x" * 64)) == "forged"
    assert refusal(keys, ring, changed(good, body=other)) == "forged"
    assert refusal(keys, ring, changed(good, node="south")) == "forged"
    assert refusal(keys, ring, changed(good, node="here")) == "forged"
    assert refusal(keys, ring, told(keys, lesson(node="east"), node="east")) == "unknown_key"
    assert refusal(keys, ring, told(keys, lesson(), topic=TOPIC_ALERTS)) == "forged"
    assert refusal(keys, ring, good, now=NOW + 601) == "expired"
    assert refusal(keys, ring, good, now=NOW - SKEW_S - 1) == "from_the_future"
    assert refusal(keys, ring, told(keys, lesson(life=90_000))) == "too_long_lived"
    assert refusal(keys, ring, told(keys, lesson("203.0.113.7/24"))) == "undecodable"
    assert refusal(keys, ring, changed(good, v=2)) == "other_version"
    assert refusal(keys, ring, b"junk") == "undecodable"
    assert refusal(keys, ring, b"x" * 10_000) == "oversized"


def test_a_replayed_lesson_changes_nothing_also_after_a_restart(keys, ring):
    immunity = Immunity("here", ring, trusted=["north"])
    payload = told(keys, lesson())
    assert immunity.take(TOPIC_ANTIGENS, payload, NOW).applies

    assert immunity.take(TOPIC_ANTIGENS, payload, NOW + 5) is None

    reborn = Immunity("here", ring, trusted=["north"])
    reborn.recall(lesson().id)
    assert reborn.take(TOPIC_ANTIGENS, payload, NOW + 5) is None
    assert immunity.refused == reborn.refused == {"replayed": 1}


def test_own_words_that_come_back_are_no_news_and_no_offence(keys, ring):
    immunity = Immunity("here", ring, trusted=["here"])

    assert immunity.take(TOPIC_ANTIGENS, told(keys, lesson(node="here"), node="here"), NOW) is None
    assert not immunity.refused


def test_a_node_that_floods_is_heard_up_to_a_limit(keys, ring):
    immunity = Immunity("here", ring, trusted=["north"])

    for number in range(NODE_LIMIT + 5):
        immunity.take(TOPIC_ANTIGENS, told(keys, lesson(number=number)), NOW)

    assert immunity.refused == {"flooded": 5}
    assert immunity.take(TOPIC_ANTIGENS, told(keys, lesson(number=-1)), NOW + 61).applies


def test_alerts_are_remembered_and_never_applied(keys, ring):
    immunity = Immunity("here", ring, trusted=["north"])

    assert immunity.take(TOPIC_ALERTS, told(keys, lesson(), topic=TOPIC_ALERTS), NOW) is None

    assert [(node, one.subject) for node, one in immunity.alerts] == [("north", "203.0.113.7")]
    assert immunity.waiting == 0


def test_a_node_has_a_name_whatever_its_host_is_called():
    assert antigen.node_name("north", "host") == "north"
    assert antigen.node_name("", "bücher host_1") == "b-cher-host_1"
    assert antigen.node_name("", "") == "node"


def test_one_antigen_has_one_way_to_be_written():
    one = lesson("2001:db8::/64")

    assert antigen.canonical(one) == antigen.canonical(antigen.from_entry_body(antigen.to_entry_body(one)))
    assert antigen.read_body(antigen.canonical(one)) == one


_DIGITS = st.text("0123456789abcdefg", max_size=70)
_HEADS = st.none() | st.fixed_dictionaries(
    {"proto": st.integers(-1, 300), "dest_port": st.integers(-1, 70_000), "head": _DIGITS}
)


@given(_HEADS, st.text(max_size=60), st.sampled_from(["203.0.113.7", "udp/7777/00", "signature/00", "", "::1"]))
def test_a_body_that_teaches_nonsense_is_refused_in_words(payload, signature, subject):
    body = antigen.to_entry_body(lesson()) | {"payload": payload, "signature": signature, "subject": subject}

    with contextlib.suppress(AntigenError):
        assert antigen.read_body(msgspec.msgpack.encode(body)).subject == subject


def test_a_payload_and_a_signature_are_named_by_what_they_are():
    head = b"WORM/3 spread now to every host "
    payload = antigen.Payload(proto=17, dest_port=7777, head=head.hex())
    known = [
        msgspec.structs.replace(lesson(), subject=payload.name, payload=payload),
        msgspec.structs.replace(lesson(), subject=antigen.signature_name("- name: x"), signature="- name: x"),
    ]

    for one in known:
        assert antigen.read_body(antigen.canonical(one)) == antigen.from_entry_body(antigen.to_entry_body(one)) == one
        with pytest.raises(AntigenError, match="canonical"):
            antigen.read_body(antigen.canonical(msgspec.structs.replace(one, subject="203.0.113.7")))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_in_words(payload):
    for decode in (unseal, antigen.read_body):
        with pytest.raises(AntigenError, match=r"\w+ "):
            decode(payload)


def test_the_key_is_made_once_and_is_nobody_elses_business(tmp_path):
    path = tmp_path / "lymph" / "node.key"
    make_key(path)
    first = NodeKey("here", path).public
    make_key(path)

    assert NodeKey("here", path).public == first
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(KeyRingError, match="others may read"):
        NodeKey("here", path)


def test_a_key_that_is_no_key_is_refused_in_words(tmp_path):
    path = tmp_path / "node.key"
    path.write_text("not hex")
    path.chmod(0o600)

    with pytest.raises(KeyRingError, match="cannot be used"):
        NodeKey("here", path)


def test_a_ring_that_changes_is_read_again_and_one_that_others_may_write_is_not(tmp_path, keys, monkeypatch):
    monkeypatch.setattr("actors.dermis.antigen_keys.LOOK_EVERY_S", 0.0)
    path = tmp_path / "keyring"
    ring = KeyRing(path, [f"south={keys['south'].public}"])
    assert ring.knows("south")
    assert not ring.knows("north")

    path.write_text(f"# the fleet\nnorth {keys['north'].public}  # rack 7\nsouth {keys['east'].public}\n")
    path.chmod(0o600)
    assert ring.knows("north")
    assert ring.verify("south", keys["south"].sign(b"x"), b"x"), "the file cannot change what the settings say"

    path.chmod(0o666)
    os.utime(path, ns=(1, 1))
    assert not ring.knows("north")
    assert "others may write" in ring.problem
    path.unlink()
    assert ring.nodes == ("south",)
    assert not ring.knows("north")
