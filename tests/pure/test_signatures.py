"""YAML signatures: what is refused and why, what is found however it was cut, and what the shipped ones do."""

import re
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dermis.inspection import signature_engine
from actors.dermis.inspection.http_view import requests, responses
from actors.dermis.inspection.rulebook import SHIPPED, open_rulebook
from actors.dermis.inspection.signatures import Shelf, read_folders, read_text
from actors.dermis.inspection.streams import Limits
from tests.support.inspection import book_of, datagram, handshake, packets_of, segment, spoken, watch
from tests.support.shared import shared_data

EVIL = """
- name: evil-word
  pattern: 'e[v]il[0-9]word'
  severity: high
  action: ban
  protocols: [tcp, udp]
  ports: [80, 53]
  hit: ['an evil7word']
  miss: ['an evil word']
"""


def names(book, packets):
    return [hit.signature.name for hit in watch(book, packets)[1]]


@pytest.fixture(params=["hyperscan", "re"])
def engine(request, monkeypatch):
    """Both engines keep the same promises."""
    if request.param == "re":
        monkeypatch.setitem(sys.modules, "hyperscan", None)
    return request.param


@pytest.mark.parametrize("size", [1, 3, 1460])
def test_a_pattern_split_over_packets_is_found_once(engine, size):
    book = book_of(EVIL)

    found = names(book, spoken(b"GET / HTTP/1.1\r\nX: evil7word and evil8word\r\n\r\n", size=size))

    assert book.engine == engine
    assert found == ["evil-word"]


def test_reordered_and_overlapping_segments_hide_nothing(engine):
    late = [*handshake(), segment(b"7word", 1_005), segment(b"evil", 1_001)]
    overlapping = [*handshake(), segment(b"evil7x", 1_001), segment(b"word", 1_006)]
    newest = [*handshake(), segment(b"evil7", 1_001), segment(b"....", 1_006), segment(b"word", 1_006)]

    assert names(book_of(EVIL), late) == ["evil-word"]
    assert names(book_of(EVIL), newest) == ["evil-word"]
    assert names(book_of(EVIL), overlapping) == ["evil-word"]


def test_ports_and_protocols_bound_a_signature(engine):
    assert names(book_of(EVIL), [datagram(b"evil7word", 53)]) == ["evil-word"]
    assert names(book_of(EVIL), [datagram(b"evil7word", 54)]) == []
    assert names(book_of(EVIL), spoken(b"evil7word", port=81)) == []


def test_what_is_hidden_by_percent_signs_chunks_and_compression_is_found(engine):
    compressed = zlib.compressobj(wbits=31)
    body = compressed.compress(b"an evil7word") + compressed.flush()
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 5]), body[at : at + 5]) for at in range(0, len(body), 5))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
    form = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\nx=%65vil7w%6frd&y"

    asked = names(book_of(EVIL), spoken(b"GET /%65vil7w%6frd HTTP/1.1\r\nHost: a\r\n\r\n"))
    answered = names(book_of(EVIL), spoken(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", head + chunked + b"0\r\n\r\n"))

    assert asked == ["evil-word"]
    assert names(book_of(EVIL), spoken(form)) == ["evil-word"]
    assert answered == ["evil-word"]


def test_a_sender_of_single_bytes_runs_out_of_our_patience_but_hides_nothing(engine):
    book = book_of(EVIL)
    tiresome = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 600 + b"evil7word"

    packets = list(spoken(tiresome, size=1))
    for packet in packets[:-9]:
        book.detector.see(packet)
    [(talk, _sides)] = [book.detector.flows.find(key) for key in list(book.detector.flows)]

    assert talk.conversation.work.left <= 0
    assert names(book, packets[-9:]) == ["evil-word"]


def test_the_sender_of_the_bytes_is_named_and_what_they_were():
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nevil7word"

    [hit] = watch(book_of(EVIL), spoken(b"GET / HTTP/1.1\r\n\r\n", response))[1]

    assert (hit.source, hit.source_port, hit.dest_port) == (bytes([192, 168, 0, 10]), 80, 40_000)
    assert b"evil7word" in hit.excerpt


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("severity: high", "severity: awful"), "severity must be one of"),
        (("action: ban", "action: nuke"), "action must be one of"),
        (("protocols: [tcp, udp]", "protocols: [sctp]"), "protocols must be"),
        (("ports: [80, 53]", "ports: [0]"), "ports must be"),
        (("hit: ['an evil7word']", "hit: []"), "at least one text"),
        (("hit: ['an evil7word']", "hit: ['nothing']"), "does not find its own sample"),
        (("miss: ['an evil word']", "miss: ['evil1word']"), "which it must not"),
        (("pattern: 'e[v]il[0-9]word'", "pattern: 'e(v'"), "ompile|arenthes|subpattern"),
        (("name: evil-word", "name: Evil Word"), "the name must be"),
        (("severity: high", "severity: high\n  colour: red"), "'colour' is unknown"),
        (("  action: ban\n", ""), "'action' is missing"),
    ],
)
def test_a_bad_signature_is_reported_and_the_others_stay(engine, change, reason):
    good = EVIL.replace("evil-word", "good-one")

    book = book_of(EVIL.replace(*change) + good)

    assert [one.name for one in book.signatures] == ["good-one"]
    [problem] = book.problems
    assert problem.file == "test.yaml"
    assert re.search(reason, problem.reason), problem
    assert names(book, [datagram(b"evil7word")]) == ["good-one"]


def test_the_second_of_two_equal_names_is_left_out():
    book = book_of(EVIL + EVIL)

    assert len(book.signatures) == 1
    assert "another signature has this name" in book.problems[0].reason


@given(st.text(max_size=300))
@settings(max_examples=60)
def test_no_text_whatever_breaks_the_reader(text):
    shelf = Shelf()

    read_text(text, "any.yaml", shelf)

    assert shelf.signatures == []


def test_a_missing_folder_is_a_problem_and_not_an_error(tmp_path):
    shelf = read_folders([tmp_path / "nowhere"])

    assert "cannot be read" in shelf.problems[0].reason


def test_the_compiled_database_is_kept_and_a_broken_copy_is_made_anew(tmp_path):
    patterns = [b"abc", b"x.z"]

    first = signature_engine.build(patterns, tmp_path)
    second = signature_engine.build(patterns, tmp_path)
    for copy in tmp_path.glob("*.hsdb"):
        copy.write_bytes(b"nonsense")
    third = signature_engine.build(patterns, tmp_path)

    assert [first.cached, second.cached, third.cached] == [False, True, False]
    assert [number for number, _ in third.engine.block(b"__xyz__")] == [1]


def test_patterns_that_may_take_for_ever_are_refused_without_hyperscan(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperscan", None)

    built = signature_engine.build([b"(a+)+b", b"fine"])

    assert list(built.refused) == [0]
    assert [number for number, _ in built.engine.block(b"fine")] == [1]


def test_every_shipped_signature_has_samples_that_bear_it_out(engine):
    book = open_rulebook([SHIPPED], [], "", Limits())

    assert book.problems == []
    assert len(book.signatures) >= 30
    assert all(one.hit and one.miss for one in book.signatures)


@pytest.mark.shared_data
def test_no_shipped_signature_fires_on_the_benign_captures_and_some_do_on_attacks():
    book = open_rulebook([SHIPPED], [], "", Limits())
    benign = [*sorted(shared_data("benign").rglob("*.pcap*")), shared_data("lab", "benign_60s_full.pcap")]

    false = {capture.name: names(book, packets_of(capture)) for capture in benign}
    attacks = {path.name: names(book, packets_of(path)) for path in shared_data("attacks").glob("*.pcap")}

    assert len(benign) > 80
    assert {name: found for name, found in false.items() if found} == {}
    assert "log4shell-lookup" in attacks["log4shell__log4j-webapp-exploit.pcap"]
    assert "nmap-script-probe" in attacks["service_scan__nmap_80_all.pcap"]


@given(st.binary(max_size=600), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n"]), st.booleans())
@settings(max_examples=300)
def test_no_bytes_whatever_break_the_http_reader(data, start, closed):
    for message in requests(start + data, closed) + responses(start + data, closed):
        assert all(isinstance(one, bytes) for instances in message.buffers.values() for one in instances)
