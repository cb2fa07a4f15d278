"""Every format of feeds, against the slow and certain ``ipaddress`` module; and whatever else may come in."""

import contextlib
import gzip
import ipaddress
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.epidermis import feed_formats, prefixes
from actors.epidermis.feed_formats import FeedError, Format, Parsed, detect, parse
from tests.support.shared import shared_data

GOLDEN = Path(__file__).parents[1] / "golden" / "feeds"
ENTRY = re.compile(r"[0-9a-fA-F:.]+(?:/\d+)?")


def listed(parsed: Parsed) -> set[str]:
    return set(prefixes.to_text(parsed.v4)) | set(prefixes.to_text(parsed.v6))


def slow(texts: list[str]) -> set[str]:
    """The same in the standard library's words."""
    hosts = {str(ipaddress.ip_address(text)) for text in texts if "/" not in text}
    networks = [ipaddress.ip_network(text, strict=False) for text in texts if "/" in text]
    return hosts | {str(n.network_address) if n.prefixlen == n.max_prefixlen else str(n) for n in networks}


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("firehol.netset", Format.PLAIN, {"192.0.2.0/24", "198.51.100.0/23", "203.0.113.7", "203.0.113.9"}),
        ("drop.txt", Format.PLAIN, {"192.0.2.0/24", "198.51.100.0/25"}),
        ("drop_v6.json", Format.JSON, {"2001:db8:1::/48", "2001:db8:2::/48"}),
        ("c2.csv", Format.CSV, {"192.0.2.61", "192.0.2.62"}),
        (
            "ranges.p2p.txt",
            Format.PLAIN,
            {"192.0.2.5", "192.0.2.6/31", "192.0.2.8/29", "192.0.2.16/30", "192.0.2.20", "198.51.100.0/24"}
            | {"2001:db8::10/124"},
        ),
        (
            "hosts_with_ports.txt",
            Format.PLAIN,
            {"192.0.2.10", "192.0.2.11", "192.0.2.12", "2001:db8::7", "2001:db8::8"},
        ),
        ("reputation.csv", Format.CSV, {"192.0.2.1", "192.0.2.64/26", "2001:db8::/64"}),
        ("decisions.json", Format.JSON, {"192.0.2.33", "198.51.100.0/24"}),
        ("plain.txt", Format.PLAIN, {"192.0.2.1", "192.0.2.0/24", "2001:db8::1", "2001:db8:5::/48", "192.0.2.200"}),
    ],
)
def test_each_format_is_recognised_and_read_exactly(name: str, format: Format, expected: set[str]) -> None:
    data = (GOLDEN / name).read_bytes()

    guessed, told, packed = parse(data), parse(data, format), parse(gzip.compress(data))

    assert guessed.format is format
    assert listed(guessed) == listed(told) == listed(packed) == expected
    assert guessed.skipped == 0


@pytest.mark.shared_data
def test_published_lists_are_read_to_the_exact_set() -> None:
    files = [path for path in sorted(shared_data("blocklists").iterdir()) if path.name != "manifest.csv"]
    assert len(files) == 20
    for path in files:
        text = path.read_text()
        if path.suffix == ".json":
            entries = re.findall(r'"cidr":"([^"]+)"', text)
        elif path.suffix == ".csv":
            entries = re.findall(r'(?m)^"[^"]+","([0-9.]+)"', text)
        else:
            entries = [line for line in text.splitlines() if line and not line.startswith("#")]

        parsed = parse(path.read_bytes())

        assert listed(parsed) == slow(entries), path.name
        assert parsed.skipped == 0


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        (b"<!DOCTYPE html><html>rate limited</html>", "web page", 1),
        (b"\x7fELF\0\0\0", "binary", 1),
        (b"192.0.2.1\n" + b"9" * 5_000, "5000 characters", 2),
        (b"one\ntwo\nthree\n", "no address", 1),
        (b"192.0.2.1\n192.0.2.256\n192.0.2.300\n1.2.3\n01.2.3.4\n0x1.2.3.4\n", "no address", 2),
        (b"\x1f\x8b\x08\0garbage", "gzip", 0),
        (b'{"cidr": "192.0.2.0/24"}\n{"cidr": ', "no JSON", 2),
        (b'{"cidr":"192.0.2.0/24"}\n{"type":"metadata","records":1000}', "records", 0),
        (b'{"new": 5}', "no list", 0),
        (b"[" * 100_000, "no JSON", 1),
        (b"name,colour\nred,blue\n", "no column", 1),
        (b"192.0.2.9-192.0.2.1\n", "ends before", 1),
        (b"192.0.2.9/33\n", "prefix length", 1),
    ],
)
def test_what_is_no_feed_is_refused_with_line_and_reason(text: bytes, reason: str, line: int) -> None:
    with pytest.raises(FeedError, match=reason) as refused:
        parse(text)

    assert refused.value.line == line


def test_a_few_bad_lines_are_skipped_and_the_first_is_named() -> None:
    good = "\n".join(f"192.0.2.{i}" for i in range(100))

    parsed = parse(f"# list\n{good}\n999.0.0.1\n10.0.0.1 extra words\n".encode())

    assert len(parsed.v4) == 100
    assert parsed.skipped == 2
    assert parsed.first_skipped.startswith("line 102: '999.0.0.1'")


def test_a_gzip_bomb_is_stopped_at_the_limit() -> None:
    bomb = gzip.compress(b"0" * 30_000_000)

    with pytest.raises(FeedError, match="unpacks to more than 1000000"):
        parse(bomb, max_bytes=1_000_000)


def test_a_cut_gzip_is_refused() -> None:
    whole = gzip.compress("\n".join(f"192.0.2.{i}" for i in range(200)).encode())

    with pytest.raises(FeedError, match="end early"):
        parse(whole[:-9])


def test_too_many_lines_are_refused_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_formats, "MAX_LINES", 10)

    with pytest.raises(FeedError, match="lines"):
        parse(b"192.0.2.1\n" * 20)


def test_an_empty_feed_lists_nothing() -> None:
    assert len(parse(b"")) == len(parse(b"# nothing today\n")) == 0


def test_ten_thousand_bad_lines_do_not_take_long_to_refuse() -> None:
    with pytest.raises(FeedError):
        parse(b"not.an.address.at.all\n" * 500_000)


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
entries = st.one_of(
    addresses,
    st.ip_addresses(v=4).flatmap(lambda a: st.integers(0, 32).map(lambda n: f"{a}/{n}")),
    st.ip_addresses(v=6).flatmap(lambda a: st.integers(0, 128).map(lambda n: f"{a}/{n}")),
)


@given(st.lists(entries, min_size=1, max_size=60))
def test_any_list_of_prefixes_is_the_set_that_ipaddress_reads(texts: list[str]) -> None:
    parsed = parse("\n".join(texts).encode(), Format.PLAIN)

    expected = set()
    for text in texts:
        network = ipaddress.ip_network(text, strict=False)
        if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
            network = ipaddress.ip_network(f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}")
        expected |= slow([str(network)])
    assert listed(parsed) == expected


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_range_is_covered_exactly_and_with_fewest_prefixes(one: int, other: int) -> None:
    first, last = sorted((ipaddress.IPv4Address(one), ipaddress.IPv4Address(other)))

    parsed = parse(f"{first}-{last}".encode())

    assert listed(parsed) == slow([str(n) for n in ipaddress.summarize_address_range(first, last)])


json_names = st.sampled_from(["cidr", "ip", "new", "type", "records", "scope", "value"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | entries,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_names, inner, max_size=4),
    max_leaves=12,
)
broken = st.one_of(
    st.binary(max_size=400),
    st.text(alphabet='0123456789.:/-[]{}",;# \t\r\nabcdefx\0é', max_size=400).map(str.encode),
    st.lists(st.one_of(entries, st.text(max_size=20)), max_size=20).map(
        lambda parts: "\n".join(parts).encode("utf-8", "ignore")
    ),
    st.binary(max_size=200).map(gzip.compress),
    json_values.map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=600, deadline=1_000)
@given(broken, st.sampled_from(Format))
def test_whatever_comes_in_the_answer_is_a_feed_or_a_feed_error(data: bytes, format: Format) -> None:
    with contextlib.suppress(FeedError):
        parsed = parse(data, format)
        assert len(parsed) <= len(data) * 64


def test_the_format_of_a_bracketed_ipv6_host_is_plain() -> None:
    assert detect("[2001:db8::1]:443\n") is Format.PLAIN
    assert detect('["192.0.2.1"]') is Format.JSON
