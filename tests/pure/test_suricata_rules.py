"""Suricata rules: what is understood, what is refused with line and reason, and how often we agree with Suricata."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dermis.inspection.packets import ICMP, Packet, from_frame
from actors.dermis.inspection.suricata_nets import BadRule, addresses, number_of, ports
from actors.dermis.inspection.suricata_options import explosive
from actors.dermis.inspection.suricata_rules import VARIABLES, read_rule, read_rules
from bench.signatures_oracle import measure
from tests.support.inspection import CLIENT, SERVER, book_of, datagram, handshake, segment, sids, spoken, watch
from tests.support.shared import shared_data

REQUEST = (
    b"POST /one/../two/%74hree?a=1 HTTP/1.1\r\nHost: Www.Example.com:8080\r\nUser-Agent: curl/8\r\n"
    b"Cookie: s=42\r\nContent-Length: 10\r\n\r\nthe body!!"
)
RESPONSE = b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 4\r\n\r\ngone"


def rule(options, head="alert tcp any any -> any any"):
    return f"{head} ({options} sid:1;)"


def fires(options, packets, head="alert tcp any any -> any any"):
    return bool(sids(rule(options, head), packets))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('content:"bcd";', True),
        ('content:"BCD";', False),
        ('content:"BCD"; nocase;', True),
        ('content:"|62 63|d";', True),
        ('content:"abc"; startswith;', True),
        ('content:"bcd"; startswith;', False),
        ('content:"hij"; endswith;', True),
        ('content:"ghi"; endswith;', False),
        ('content:"def"; offset:3; depth:3;', True),
        ('content:"def"; offset:4;', False),
        ('content:"def"; depth:5;', False),
        ('content:"ab"; content:"ef"; distance:2; within:2;', True),
        ('content:"ab"; content:"ef"; distance:3;', False),
        ('content:"ab"; content:"ef"; within:3;', False),
        ('content:"ab"; content:!"ef"; distance:0; within:2;', True),
        ('content:"ab"; content:!"zz";', True),
        ('content:"ab"; content:!"ef";', False),
        ('pcre:"/d.f/";', True),
        ('pcre:"/D.F/";', False),
        ('pcre:"/D.F/i";', True),
        ('content:"abc"; pcre:"/^def/R";', True),
        ('content:"abc"; pcre:"/^efg/R";', False),
        ('pcre:!"/xyz/";', True),
        ("dsize:10;", True),
        ("dsize:>10;", False),
        ("dsize:5<>20;", True),
        ("ttl:64;", False),
        ('content:"a"; byte_test:1,=,0x62,0,relative;', True),
        ('content:"a"; byte_test:1,>,0x62,0,relative;', False),
    ],
)
def test_contents_and_numbers_mean_what_suricata_means(options, expected):
    packets = [*handshake(), segment(b"abcdefghij", 1_001)]

    assert fires(options, packets) is expected


def test_a_relative_content_is_tried_behind_every_place_of_the_one_before():
    assert fires('content:"a"; content:"b"; distance:1; within:1;', [*handshake(), segment(b"axcaxb", 1_001)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('http.method; content:"POST";', True),
        ('http.uri; content:"/two/three?a=1";', True),
        ('http.uri.raw; content:"%74hree";', True),
        ('http.host; content:"www.example.com"; startswith; endswith;', True),
        ('http.user_agent; content:"curl/";', True),
        ('http.cookie; content:"42";', True),
        ('http.request_body; content:"the body";', True),
        ("http.request_body; bsize:10;", True),
        ('http.request_body; content:!"the body";', False),
        ('content:"three"; http_uri;', True),
        ('pcre:"/two.three/U";', True),
        ('http.request_header; content:"User-Agent: curl";', True),
        ('http.stat_code; content:"404";', True),
        ('http.response_header; content:"Server: nginx";', True),
        ('file.data; content:"gone";', True),
        ('http.stat_code; content:"404"; http.method; content:"POST";', False),
        ('flow:to_client; http.stat_code; content:"404";', True),
        ('flow:to_server; http.stat_code; content:"404";', False),
        ("urilen:14;", True),
        ("urilen:<5;", False),
    ],
)
@pytest.mark.parametrize("size", [1, 1460])
def test_http_buffers_hold_what_they_say_however_the_stream_was_cut(options, expected, size):
    assert fires(options, spoken(REQUEST, RESPONSE, size=size), "alert http any any -> any any") is expected


def test_names_asked_of_dns_and_the_name_in_a_tls_hello_are_seen():
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\3www\7example\3org\0" + struct.pack("!HH", 1, 1)
    name = b"secret.example"
    extension = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(extension)) + extension
    hello = b"\1" + len(body).to_bytes(3, "big") + body
    record = b"\x16\3\1" + struct.pack("!H", len(hello)) + hello

    assert fires('dns.query; content:"example.org"; endswith;', [datagram(query)], "alert dns any any -> any any")
    assert fires('tls.sni; content:"secret";', spoken(record, port=443, size=7), "alert tls any any -> any any")


def test_flow_direction_flags_and_ends_bound_a_rule():
    packets = list(spoken(b"hello", b"world"))

    assert fires('flow:to_server,established; content:"hello";', packets)
    assert not fires('flow:to_client; content:"hello";', packets)
    assert fires("flags:S;", packets)
    assert not fires("flags:F;", packets)
    assert fires('content:"hello";', packets, "alert tcp 203.0.113.0/24 any -> $HOME_NET [80,443]")
    assert not fires('content:"hello";', packets, "alert tcp !203.0.113.0/24 any -> any any")
    assert fires('content:"world";', packets, "alert tcp any any <> any 80")
    assert not fires('content:"world";', packets, "alert tcp any any -> any 80")


def test_flowbits_carry_from_one_rule_to_another_and_noalert_is_silent():
    rules = (
        'alert tcp any any -> any any (content:"one"; flowbits:set,seen; flowbits:noalert; sid:1;)\n'
        'alert tcp any any -> any any (content:"two"; flowbits:isset,seen; sid:2;)\n'
        'alert tcp any any -> any any (content:"two"; flowbits:isnotset,seen; sid:3;)\n'
    )

    assert sids(rules, [*handshake(), segment(b"one", 1_001), segment(b"two", 1_004)]) == [2]
    assert sids(rules, [*handshake(), segment(b"two", 1_001)]) == [3]


@pytest.mark.parametrize(
    ("option", "alerts"),
    [
        ("threshold:type limit, track by_src, count 2, seconds 60;", 2),
        ("threshold:type threshold, track by_src, count 3, seconds 60;", 3),
        ("threshold:type both, track by_src, count 3, seconds 60;", 1),
        ("detection_filter:track by_src, count 7, seconds 60;", 3),
        ("detection_filter:track by_src, count 10, seconds 60;", 0),
        ("threshold:type limit, track by_src, count 1, seconds 5;", 2),
    ],
)
def test_thresholds_bound_how_often_a_rule_speaks(option, alerts):
    book = book_of(rules=rule(f"itype:8; {option}", "alert icmp any any -> any any"))
    pings = [Packet(float(second), CLIENT, SERVER, ICMP, icmp_type=8, icmp_code=0) for second in range(10)]

    assert len(watch(book, pings)[0]) == alerts


def test_a_pass_rule_silences_the_others():
    rules = 'alert tcp any any -> any any (content:"x"; sid:1;)\npass tcp any any -> any 80 (content:"x"; sid:2;)'

    assert sids(rules, [*handshake(), segment(b"x", 1_001)]) == []
    assert sids(rules, [*handshake(81), segment(b"x", 1_001, port=81)]) == [1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alert tcp any any -> any any (luajit:x; sid:7;)", "the option 'luajit' is not supported"),
        ("alert smb any any -> any any (sid:7;)", "the protocol 'smb' is not supported"),
        ("alert tcp any any => any any (sid:7;)", "the direction '=>' is not supported"),
        ("shout tcp any any -> any any (sid:7;)", "the action 'shout' is not supported"),
        ("alert tcp $NOWHERE any -> any any (sid:7;)", "$NOWHERE is not defined"),
        ("alert tcp any 70000 -> any any (sid:7;)", "is no port"),
        ("alert tcp 300.1.1.1 any -> any any (sid:7;)", "is no address"),
        ('alert tcp any any -> any any (content:"|4|"; sid:7;)', "no row of bytes"),
        ('alert tcp any any -> any any (content:"abc; sid:7;)', "does not end with a semicolon"),
        ('alert tcp any any -> any any (content:"abc"; depth:2; sid:7;)', "does not lie between"),
        ('alert tcp any any -> any any (pcre:"/(/"; sid:7;)', "pcre:"),
        ('alert tcp any any -> any any (pcre:"/(a+)+b/"; sid:7;)', "nested endless repetitions"),
        ("alert tcp any any -> any any (nocase; sid:7;)", "no content is before it"),
        ("alert tcp any any -> any any (http.uri; bsize:x; sid:7;)", "no whole number"),
        ("alert tcp any any -> any any (flow:sideways; sid:7;)", "flow: 'sideways'"),
        ('alert tcp any any -> any any (msg:"x";)', "it has no sid"),
        ("nonsense", "it has not the form"),
    ],
)
def test_what_is_not_understood_is_refused_with_line_and_reason(line, reason):
    book = read_rules(["# a comment", "", line, 'alert tcp any any -> any any (content:"x"; sid:9;)'])

    assert [one.sid for one in book.rules] == [9]
    assert [one.line for one in book.refusals] == [3]
    assert reason in book.refusals[0].reason


@given(st.text(max_size=200), st.sampled_from(["", "alert tcp any any -> any any (content:"]))
@settings(max_examples=300)
def test_no_text_whatever_breaks_the_parser(text, start):
    try:
        read_rule(start + text)
    except BadRule:
        pass


@given(st.binary(max_size=200))
def test_no_frame_whatever_breaks_the_packet_reader(frame):
    from_frame(0.0, frame)
    from_frame(0.0, b"\0" * 12 + b"\x08\0" + frame)
    from_frame(0.0, b"\0" * 12 + b"\x86\xdd" + frame)


def test_groups_variables_and_ranges_hold_what_they_name():
    inside = addresses("[10.0.0.0/8,!10.1.0.0/16,2001:db8::/32]", VARIABLES)
    outside = addresses("$EXTERNAL_NET", VARIABLES)

    assert number_of(bytes([10, 2, 3, 4])) in inside
    assert number_of(bytes([10, 1, 3, 4])) not in inside
    assert number_of(bytes.fromhex("20010db8" + "0" * 24)) in inside
    assert number_of(bytes([192, 168, 1, 1])) not in outside
    assert number_of(bytes([8, 8, 8, 8])) in outside
    assert 443 in ports("[80,400:500,!450]", {})
    assert 450 not in ports("[80,400:500,!450]", {})
    assert 65_535 in ports("1024:", {})


def test_endless_repetition_inside_endless_repetition_is_recognised():
    assert explosive("(a+)+")
    assert explosive("(?:x*y)*")
    assert not explosive("(?:ab){2,4}c+")
    assert not explosive(r"[(]a+[)]+")


@pytest.mark.shared_data
def test_alerts_agree_with_suricata_on_its_own_captures():
    agreement = measure(shared_data("dpi"))

    assert agreement.other.recall >= 0.95
    assert agreement.evasion.recall >= 0.85
    assert agreement.specificity >= 0.95
    assert agreement.naive_evasion.recall < 0.5
    assert len(agreement.refused) < 80
    assert all(refusal.reason for _, refusal in agreement.refused)
