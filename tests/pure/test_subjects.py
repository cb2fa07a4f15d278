"""Addresses and prefixes: one spelling each, and a sentence for everything else."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.errors import Refused
from actors.hypodermis.prefix_table import PrefixTable
from actors.hypodermis.subjects import Prefix, objection, of_source, parse_address, parse_prefix


@pytest.mark.parametrize(
    ("spoken", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7/32 ", "203.0.113.7"),
        ("198.51.100.0/24", "198.51.100.0/24"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8::/64", "2001:db8::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("::102:304", "::102:304"),
    ],
)
def test_an_address_has_one_spelling(spoken, canonical):
    assert parse_prefix(spoken).text == canonical


@pytest.mark.parametrize(
    ("spoken", "word"),
    [
        ("", "no IPv4 or IPv6 address"),
        ("example.org", "no IPv4 or IPv6 address"),
        ("1.2.3", "no IPv4 or IPv6 address"),
        ("1.2.3.04", "no IPv4 or IPv6 address"),
        ("1.2.3.4\0", "no IPv4 or IPv6 address"),
        ("1.2.3.4/33", "no prefix length"),
        ("1.2.3.4/", "no prefix length"),
        ("1.2.3.4/08", "no prefix length"),
        ("1.2.3.4/255.255.255.0", "no prefix length"),
        ("203.0.113.7/24", "bits beyond its length"),
        ("fe80::1%eth0", "zone id"),
        ("9" * 200, "too long"),
        (None, "no address"),
        (7, "no address"),
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence_and_a_remedy(spoken, word):
    with pytest.raises(Refused, match=word) as refused:
        parse_prefix(spoken)

    assert refused.value.remedy


def test_bits_beyond_the_length_are_refused_with_both_readings():
    with pytest.raises(Refused) as refused:
        parse_prefix("203.0.113.7/24")

    assert "203.0.113.0/24" in refused.value.remedy
    assert "203.0.113.7 " in refused.value.remedy


def test_one_address_is_wanted_where_one_address_is_meant():
    with pytest.raises(Refused, match="range"):
        parse_address("203.0.113.0/24")


@given(st.ip_addresses())
def test_every_address_reads_as_the_standard_library_writes_it(address):
    prefix = parse_prefix(str(address))

    mapped = getattr(address, "ipv4_mapped", None)
    assert prefix.text == str(mapped or address)


@given(st.text(max_size=70))
def test_any_text_is_a_prefix_or_a_refusal(text):
    try:
        prefix = parse_prefix(text)
    except Refused:
        return

    assert parse_prefix(prefix.text) == prefix


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_containment_agrees_with_the_standard_library(first, length, second):
    outer = ipaddress.ip_network((first, min(length, first.max_prefixlen)), strict=False)
    prefix = Prefix(outer.version, int(outer.network_address), outer.prefixlen)

    inner = Prefix(second.version, int(second), second.max_prefixlen)

    assert prefix.contains(inner) == (second.version == outer.version and second in outer)


def test_an_ipv6_source_is_its_64_and_an_ipv4_source_itself():
    assert of_source(parse_prefix("2001:db8:1:2:3::4")).text == "2001:db8:1:2::/64"
    assert of_source(parse_prefix("203.0.113.7")).text == "203.0.113.7"
    assert of_source(parse_prefix("2001:db8::/48")).text == "2001:db8::/48"


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.0.0.0/8", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "fe80::1", "::/16"],
)
def test_what_is_nobodys_address_can_never_be_banned(text):
    assert objection(parse_prefix(text))


@pytest.mark.parametrize("text", ["0.0.0.0/0", "8.0.0.0/7", "::/0", "2000::/15"])
def test_a_prefix_that_is_a_share_of_the_net_can_never_be_banned(text):
    assert "too wide" in objection(parse_prefix(text))


@pytest.mark.parametrize("text", ["203.0.113.7", "10.0.0.0/8", "2001:db8::/32", "2001:db8::1", "fd00::/16"])
def test_an_ordinary_source_can_be_banned(text):
    assert objection(parse_prefix(text)) == ""


def table_of(*texts):
    table = PrefixTable()
    for text in texts:
        table.put(parse_prefix(text), text)
    return table


def test_the_narrowest_cover_is_found():
    table = table_of("203.0.0.0/16", "203.0.113.0/24", "203.0.113.7", "2001:db8::/64")

    assert table.covering(parse_prefix("203.0.113.7")) == "203.0.113.7"
    assert table.covering(parse_prefix("203.0.113.8")) == "203.0.113.0/24"
    assert table.covering(parse_prefix("203.0.1.0/24")) == "203.0.0.0/16"
    assert table.covering(parse_prefix("203.0.0.0/15")) is None
    assert table.covering(parse_prefix("2001:db8::9")) == "2001:db8::/64"


def test_what_was_taken_out_covers_nothing():
    table = table_of("203.0.113.0/24")

    assert table.pop(parse_prefix("203.0.113.0/24")) == "203.0.113.0/24"

    assert table.covering(parse_prefix("203.0.113.7")) is None
    assert table.pop(parse_prefix("203.0.113.0/24")) is None


def test_entries_within_a_prefix_are_listed():
    table = table_of("203.0.113.7", "203.0.114.7", "2001:db8::1")

    assert [p.text for p in table.within(parse_prefix("203.0.113.0/24"))] == ["203.0.113.7"]
    assert [p.text for p in table.within(parse_prefix("203.0.114.7"))] == ["203.0.114.7"]
    assert table.within(parse_prefix("203.0.115.7")) == []
