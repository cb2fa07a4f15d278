"""What may become a vaccine and what never may: heads, signatures that vaccinate, and the gate that decides."""

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.core.errors import Refused
from actors.core.messages import HostilePayload, Posture
from actors.core.payloads import HEAD_BYTES, TCP, UDP, name_of, number_of, objection
from actors.dermis.inspection.quarantine import ORDINARY
from actors.dermis.inspection.rulebook import SHIPPED, open_rulebook
from actors.dermis.inspection.signatures import Shelf, read_text
from actors.dermis.inspection.streams import Limits
from actors.dermis.inspection.vaccination import head_of
from actors.hypodermis.gate_vaccines import SPARED_S, VaccineBook, VaccineGate, from_body, to_body
from actors.hypodermis.guard import AutoimmuneGuard
from tests.support.inspection import book_of, datagram, handshake, segment, watch

HEAD = b"WORM/3 spread now to every host "
SIGNATURE = """
- name: worm
  pattern: '{pattern}'
  severity: critical
  action: ban
  protocols: [tcp, udp]
  vaccinate: true
  hit: ['WORM/3 spread now to everybody, at once']
  miss: {miss}
"""


def worm(pattern="WORM/[0-9] spread", miss="['worms']"):
    return book_of(SIGNATURE.format(pattern=pattern, miss=miss))


def heads(book, packets):
    return [hit.head for hit in watch(book, packets)[1]]


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(21)), "TLS"),
        (b"GET / HTTP/1.1\r\nHost: example.or", "HTTP request"),
        (b"OPTIONS * HTTP/1.1\r\nHost: exampl", "HTTP request"),
        (b"GET /favicon.ico HTTP/1.1\r\nHost:", "HTTP request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "SSH"),
        (b"\x1a\x2b\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00", "DNS"),
        (b"\x00\x1d\x1a\x2b\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00", "DNS"),
        (b"\xc3\x00\x00\x00\x01\x08\x83\x94\xc8\xf0\x3e\x51\x57\x08\x00\x00\x44\x9e", "QUIC"),
        (bytes(HEAD_BYTES), "different bytes"),
        (b"abcabcabcabcabcabc", "different bytes"),
        (b"abcdefgh" + b" " * 24, "one byte makes up"),
        (b"hello", "too few"),
        (HEAD + b"x", "too many"),
        (b"", "too few"),
    ],
)
def test_what_ordinary_clients_say_and_what_says_too_little_is_never_a_vaccine(head, word):
    assert word in objection(TCP, 8080, head)


def test_a_specific_head_is_allowed_for_tcp_and_udp_only():
    assert objection(UDP, 7777, HEAD) == objection(TCP, 23, HEAD) == ""
    assert "protocol 1" in objection(1, 7777, HEAD)
    assert "no port" in objection(UDP, 0, HEAD)


@given(st.integers(0, 255), st.integers(0, 65_535), st.binary(max_size=40))
def test_any_bytes_have_a_name_that_fits_the_journal_and_a_number_that_fits_an_event(proto, port, head):
    name = name_of(proto, port, head)

    assert len(name) <= 49
    assert 0 < number_of(name) < 1 << 32
    assert isinstance(objection(proto, port, head), str)


# --- signatures that vaccinate --------------------------------------------------------------------------------------


def test_the_first_bytes_of_a_datagram_become_a_head():
    assert heads(worm(), [datagram(HEAD + b"and more", 7777)]) == [HEAD]


def test_a_segment_has_a_head_only_when_the_whole_pattern_lies_at_its_begin():
    book = worm()

    whole = heads(book, [*handshake(), segment(HEAD + b"and more", 1_001)])
    split = heads(worm(), [*handshake(), segment(HEAD[:8], 1_001), segment(HEAD[8:] + b"more bytes", 1_009)])
    deep = heads(worm(), [*handshake(), segment(b"x" * 30 + HEAD, 1_001)])

    assert whole == [HEAD]
    assert split == deep == [b""]


def test_what_the_server_says_is_no_vaccine():
    said = [*handshake(), segment(b"hello there", 1_001), segment(HEAD, 5_001, answer=True)]

    assert heads(worm(), said) == [b""]


def test_a_pattern_that_looks_beyond_the_head_makes_no_vaccine():
    ends = b"WORM/3 spread to the very end ok"

    assert len(ends) == HEAD_BYTES
    assert heads(worm(pattern="WORM/.*ok\\b|WORM/3 spread now to everybody"), [datagram(ends + b" but", 7777)]) == [b""]
    assert heads(worm(pattern="WORM/.*ok\\b|WORM/3 spread now to everybody"), [datagram(ends, 7777)]) == [ends]


def test_how_an_innocent_sample_begins_is_no_vaccine_whatever_signature_it_is_of():
    other = """
- name: other
  pattern: 'never ever seen'
  severity: low
  action: observe
  protocols: [tcp]
  hit: ['never ever seen']
  miss: ['WORM/3 spread now to every host is a line of a poem']
"""
    book = book_of(SIGNATURE.format(pattern="WORM/[0-9] spread", miss="['worms']") + other)

    assert heads(book, [datagram(HEAD + b"there", 7777)]) == [b""]


def test_a_signature_that_promises_vaccines_must_have_a_sample_that_could_be_one():
    promise = SIGNATURE.format(pattern="at once", miss="['worms']")

    book = book_of(promise)

    assert book.signatures == []
    assert "none of its hit samples could be a vaccine" in book.problems[0].reason


def test_a_signature_without_the_word_never_vaccinates():
    book = book_of(SIGNATURE.format(pattern="WORM/[0-9]", miss="['worms']").replace("vaccinate: true", "ports: []"))

    assert heads(book, [datagram(HEAD, 7777)]) == [b""]


def test_a_word_that_is_neither_true_nor_false_is_refused():
    book = book_of(SIGNATURE.format(pattern="WORM", miss="['worms']").replace("vaccinate: true", "vaccinate: maybe"))

    assert "vaccinate must be true or false" in book.problems[0].reason


def test_a_signature_that_looks_around_may_not_vaccinate():
    book = book_of(SIGNATURE.format(pattern="WORM/[0-9](?! crawls) spread", miss="['worms']"))

    assert "may not look ahead or behind" in book.problems[0].reason


def test_shipped_signatures_keep_their_promise_and_no_innocent_sample_falls_to_them():
    book = open_rulebook([SHIPPED], [], "", Limits())
    misses = [miss for signature in book.signatures for miss in signature.miss]

    assert book.problems == []
    assert sum(signature.vaccinate for signature in book.signatures) >= 5
    for signature in book.signatures:
        if signature.vaccinate:
            assert signature.score >= 0.8, "a less certain one would never pass the gate"
    for number, signature in enumerate(book.signatures):
        for sample in (*ORDINARY, *misses):
            assert not signature.vaccinate or not head_of(number, sample, book.watch._engine.block)


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_VALUES = st.recursive(_PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_PLAIN, inner, max_size=3))
_ENTRIES = st.fixed_dictionaries(
    {
        "name": st.just("x") | _VALUES, "pattern": st.just("a") | _VALUES, "severity": st.just("high") | _VALUES,
        "action": st.just("ban") | _VALUES, "protocols": st.just(["tcp"]) | _VALUES, "hit": st.just(["a"]) | _VALUES,
        "miss": st.just(["b"]) | _VALUES,
    },
    optional={"ports": _VALUES, "vaccinate": _VALUES},
)  # fmt: skip


class _Written(yaml.SafeDumper):
    """Writes everything out: what occurs twice is written twice."""

    def ignore_aliases(self, data):
        return True


@given(_VALUES | st.lists(_ENTRIES, max_size=2))
def test_a_file_of_nonsense_becomes_problems_and_never_an_error(loaded):
    shelf = Shelf()

    read_text(yaml.dump(loaded, Dumper=_Written), "any.yaml", shelf)

    entries = loaded if isinstance(loaded, list) else [loaded]
    assert len(shelf.problems) + len(shelf.signatures) == (len(entries) if isinstance(loaded, list) else 1)


def test_a_file_that_means_more_than_memory_holds_is_a_problem():
    shelf = Shelf()
    levels = "\n".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))

    read_text(f"- &a0 [x]\n{levels}\n- name: *a29\n", "bomb.yaml", shelf)

    assert "aliases" in shelf.problems[0].reason


# --- the gate --------------------------------------------------------------------------------------------------------


def wish(head=HEAD, *, port=7777, score=1.0, ttl_s=0.0):
    return HostilePayload(
        proto=UDP, dest_port=port, head=head, reason="signature worm", score=score, ttl_s=ttl_s,
        seen_from="203.0.113.7", seen_unix_s=time.time(),
    )  # fmt: skip


class Policy:
    def __init__(self, limit=4, bans=100):
        self.book = VaccineBook(limit)
        self.gate = VaccineGate(self.book, AutoimmuneGuard(bans, 10.0, 60.0), 600.0, (22,))

    def place(self, wished, now=1_000.0, posture=Posture.BALANCED, origin="macrophage"):
        vaccine = self.gate.judge(wished, origin, posture, now, now)
        self.book.place(vaccine)
        return vaccine


def test_a_vaccine_lasts_as_long_as_policy_says_or_its_teacher_and_a_day_at_most():
    policy = Policy()

    assert policy.place(wish()).until_unix_s == 1_600.0
    assert policy.place(wish(ttl_s=60.0)).until_unix_s == 1_600.0, "a renewal never shortens"
    assert policy.place(wish(port=7778, ttl_s=1e6)).until_unix_s == 1_000.0 + 86_400.0


@pytest.mark.parametrize(
    ("wished", "posture", "word"),
    [
        (wish(port=22), Posture.BALANCED, "administer"),
        (wish(head=b"GET / HTTP/1.1\r\nHost: example.or"), Posture.BALANCED, "HTTP"),
        (wish(score=0.7), Posture.BALANCED, "only 70% sure"),
        (wish(), Posture.EXPLORE, "only observes"),
    ],
)
def test_the_gate_refuses_in_words(wished, posture, word):
    policy = Policy()

    with pytest.raises(Refused, match=word):
        policy.place(wished, posture=posture)

    assert len(policy.book) == 0


def test_there_are_never_more_than_the_limit_and_the_guard_stops_a_storm():
    policy, storm = Policy(limit=2), Policy(bans=2)
    for one in (policy, storm):
        one.place(wish(port=1))
        one.place(wish(port=2))

    with pytest.raises(Refused, match="2 vaccines already"):
        policy.place(wish(port=3))
    with pytest.raises(Refused, match="automatic"):
        storm.place(wish(port=3))
    policy.place(wish(port=2))


def test_other_nodes_fill_no_more_than_half_of_the_places():
    policy = Policy(limit=4)
    for port in (1, 2):
        policy.place(wish(port=port), origin="langerhans")

    with pytest.raises(Refused, match="other nodes taught 2"):
        policy.place(wish(port=3), origin="langerhans")
    policy.place(wish(port=2), origin="langerhans")
    policy.place(wish(port=3))
    policy.place(wish(port=4))

    assert (len(policy.book), policy.book.taught) == (4, 2)


def test_what_somebody_released_is_not_placed_again_for_a_day():
    policy = Policy()
    name = policy.place(wish()).name

    policy.book.release(name, 1_000.0)

    with pytest.raises(Refused, match="released by hand"):
        policy.place(wish(), now=1_000.0 + SPARED_S - 1)
    assert policy.place(wish(), now=1_000.0 + SPARED_S + 1).name == name


def test_expired_vaccines_leave_the_book():
    policy = Policy()
    policy.place(wish(ttl_s=10.0))

    assert policy.book.next_end() == 1_010.0
    assert policy.book.expire(1_009.0) == []
    assert len(policy.book.expire(1_010.0)) == 1
    assert (len(policy.book), policy.book.next_end()) == (0, 0.0)


def test_a_vaccine_comes_back_from_the_journal_as_it_was():
    vaccine = Policy().place(wish())

    assert from_body(to_body(vaccine)) == vaccine
    for broken in ({}, {"head": "zz"}, to_body(vaccine) | {"proto": "x"}, to_body(vaccine) | {"head": 5}):
        with pytest.raises(ValueError, match="no vaccine in the journal"):
            from_body(broken)


_WORDS = st.sampled_from(["proto", "dest_port", "head", "since_unix_s", "until_unix_s"])


@settings(max_examples=50)
@given(st.dictionaries(_WORDS, st.none() | st.text() | st.integers() | st.floats()))
def test_nonsense_from_the_journal_is_one_kind_of_error(body):
    good = to_body(Policy().place(wish()))

    for told in (body, good | body):
        try:
            assert from_body(told).name
        except ValueError:
            pass
