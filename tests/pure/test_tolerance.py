"""The allowlist and what the node protects itself from."""

import pytest

from actors.core.errors import NotFound, Refused
from actors.hypodermis.hostfacts import HostFacts
from actors.hypodermis.subjects import Prefix, parse_prefix
from actors.hypodermis.tolerance import TOLERANCE_LIMIT, SafetySet, Tolerance, Toleration

NOW = 1_800_000_000.0


def p(text):
    return parse_prefix(text)


def tolerance_of(*texts, until=0.0, origin="operator"):
    tolerance = Tolerance()
    for text in texts:
        tolerance.add(Toleration(p(text), "for a test", "me", NOW, until, origin))
    return tolerance


def test_an_entry_covers_what_lies_inside_it_in_both_families():
    tolerance = tolerance_of("203.0.113.0/24", "2001:db8::/32")

    assert tolerance.covering(p("203.0.113.7"), NOW)
    assert tolerance.covering(p("2001:db8:1::/48"), NOW)
    assert tolerance.covering(p("203.0.114.7"), NOW) is None


def test_an_entry_inside_a_prefix_is_found():
    tolerance = tolerance_of("203.0.113.7")

    assert tolerance.inside(p("203.0.113.0/24"), NOW).prefix == p("203.0.113.7")
    assert tolerance.inside(p("203.0.114.0/24"), NOW) is None


def test_an_entry_ends_by_itself():
    tolerance = tolerance_of("203.0.113.7", until=NOW + 60)

    assert tolerance.covering(p("203.0.113.7"), NOW + 59)
    assert tolerance.covering(p("203.0.113.7"), NOW + 60) is None
    assert [entry.prefix for entry in tolerance.expire(NOW + 60)] == [p("203.0.113.7")]
    assert len(tolerance) == 0


def test_a_wider_entry_goes_on_when_a_narrower_one_has_ended():
    tolerance = tolerance_of("203.0.113.7", until=NOW + 60)
    tolerance.add(Toleration(p("203.0.113.0/24")))

    assert tolerance.covering(p("203.0.113.7"), NOW + 61).prefix == p("203.0.113.0/24")


def test_the_next_end_is_known():
    tolerance = tolerance_of("203.0.113.7", until=NOW + 60)
    tolerance.add(Toleration(p("203.0.113.8")))

    assert tolerance.next_end() == NOW + 60
    assert Tolerance().next_end() == 0.0


def test_a_missing_entry_cannot_be_removed_and_the_covering_one_is_named():
    tolerance = tolerance_of("203.0.113.0/24")

    with pytest.raises(NotFound) as refused:
        tolerance.remove(p("203.0.113.7"))

    assert "203.0.113.0/24" in refused.value.remedy


def test_the_remedy_for_a_missing_entry_is_a_command_that_exists():
    with pytest.raises(NotFound) as refused:
        tolerance_of("203.0.113.0/24").remove(p("198.51.100.7"))

    assert "`python run.py tolerate`" in refused.value.remedy


def test_an_entry_of_the_settings_is_removed_in_the_settings():
    tolerance = tolerance_of("203.0.113.0/24", origin="settings")

    with pytest.raises(Refused, match="settings"):
        tolerance.remove(p("203.0.113.0/24"))

    assert len(tolerance) == 1


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "2000::/3"])
def test_half_the_world_is_not_an_exception(text):
    with pytest.raises(Refused, match="too wide"):
        tolerance_of(text)


def test_the_list_is_bounded():
    tolerance = Tolerance()
    for number in range(TOLERANCE_LIMIT):
        tolerance.add(Toleration(Prefix(4, 0xCB000000 + number, 32)))

    with pytest.raises(Refused, match="full"):
        tolerance.add(Toleration(p("198.51.100.1")))

    tolerance.add(Toleration(Prefix(4, 0xCB000000, 32), "renewed"))
    assert len(tolerance) == TOLERANCE_LIMIT


FACTS = HostFacts(
    addresses=(p("192.0.2.10"), p("2001:db8::10")),
    networks=(p("192.0.2.0/24"), p("2001:db8::/64")),
    gateways=(p("192.0.2.1"),),
    resolvers=(p("198.51.100.53"),),
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("192.0.2.10", "this node itself"),
        ("2001:db8::10", "this node itself"),
        ("192.0.2.1", "gateway"),
        ("198.51.100.53", "resolver"),
        ("203.0.113.99", "admin session"),
        ("192.0.0.0/16", "contains 192.0.2."),
        ("2001:db8::/64", "contains 2001:db8::10"),
        ("203.0.113.0/24", "admin session"),
    ],
)
def test_the_node_objects_to_a_ban_that_would_hurt_itself(text, word):
    safety = SafetySet(FACTS, [p("203.0.113.99")])

    assert word in safety.objection(p(text))


def test_the_node_does_not_mind_a_ban_of_a_stranger():
    safety = SafetySet(FACTS)

    assert safety.objection(p("203.0.113.99")) == ""
    assert safety.objection(p("192.0.2.77")) == ""
    assert safety.objection(p("2001:db8:0:1::/64")) == ""


def test_what_is_on_our_link_is_known():
    safety = SafetySet(FACTS)

    assert safety.on_link(p("192.0.2.77"))
    assert safety.on_link(p("2001:db8::/64"))
    assert not safety.on_link(p("203.0.113.0/24"))
