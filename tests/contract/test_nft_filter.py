"""What every nftables filter promises: the real one, in a namespace of its own, and the fake."""

import time
from collections.abc import Iterator

import pytest

from actors.core.errors import ToolFailed, Unavailable
from actors.epidermis.nft import Filter, NftFilter
from actors.epidermis.nft_fake import FakeFilter
from actors.epidermis.ruleset import (
    COUNTERS,
    AddElements,
    Command,
    Element,
    Layout,
    PutElements,
    RefillSet,
    RemoveElements,
    RemoveTable,
    ReplaceRules,
    ReplaceTable,
    declaration,
    shape,
)
from tests.support.nft import inside, namespace

T = "teg_contract"
LAYOUT = Layout(T, "balanced", (22,), (80, 443), (), (), 1024)


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.kernel), "fake"])
def filter_(request: pytest.FixtureRequest) -> Iterator[Filter]:
    if request.param == "fake":
        yield FakeFilter(time.monotonic)
        return
    with namespace() as space, inside(space):
        real = NftFilter()
        yield real
        real.close()


@pytest.fixture
def table(filter_: Filter) -> Filter:
    filter_.apply([ReplaceTable(LAYOUT)])
    return filter_


def test_a_table_that_is_not_there_has_no_shape_no_contents_and_no_counters(filter_: Filter) -> None:
    assert filter_.shape(T) is None
    assert filter_.contents(T, "bans4") == []
    assert filter_.held(T, "bans4", "192.0.2.1") is None
    assert filter_.counters(T) == {}


@pytest.mark.parametrize("posture", ["explore", "balanced", "hardened", "lockdown"])
def test_a_table_stands_as_it_was_declared_in_every_posture(filter_: Filter, posture: str) -> None:
    layout = Layout(T, posture, (22, 2222), (443, 80), ("eth0", "eth1"), ("lo",), 1024)  # type: ignore[arg-type]

    filter_.apply([ReplaceTable(LAYOUT), ReplaceTable(layout)])

    assert filter_.shape(T) == shape(declaration(layout))
    assert set(filter_.counters(T)) == set(COUNTERS)


def test_other_rules_leave_the_sets_as_they_are(table: Filter) -> None:
    table.apply([AddElements(T, "bans4", [Element("192.0.2.1")])])

    table.apply([ReplaceRules(Layout(T, "lockdown", (22,), (80, 443), (), (), 1024))])

    assert table.held(T, "bans4", "192.0.2.1") is not None
    assert "counter name closed drop" in (table.shape(T) or ())


def test_an_element_has_its_time_and_ends_by_itself(table: Filter) -> None:
    table.apply(
        [AddElements(T, "bans6", [Element("2001:db8::1", 0.3), Element("2001:db8::2"), Element("2001:db8::3", 50)])]
    )

    short, stays, long = (table.held(T, "bans6", f"2001:db8::{n}") for n in (1, 2, 3))
    assert short is not None
    assert 0 < (short.expires_s or 0) <= 0.3
    assert stays is not None
    assert stays.expires_s is None
    assert long is not None
    assert 45 < (long.expires_s or 0) <= 50

    deadline = time.monotonic() + 3
    while table.held(T, "bans6", "2001:db8::1") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert {held.key for held in table.contents(T, "bans6")} == {"2001:db8::2", "2001:db8::3"}


def test_putting_again_gives_the_new_time_both_ways(table: Filter) -> None:
    table.apply([AddElements(T, "bans4", [Element("192.0.2.1", 10), Element("192.0.2.2")])])

    table.apply([PutElements(T, "bans4", [Element("192.0.2.1"), Element("192.0.2.2", 10), Element("192.0.2.3", 10)])])

    times = {held.key: held.expires_s for held in table.contents(T, "bans4")}
    assert times.keys() == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    assert times["192.0.2.1"] is None
    assert times["192.0.2.2"] is not None


def test_removing_what_is_there_and_what_is_not_both_succeed(table: Filter) -> None:
    table.apply([AddElements(T, "bans4", [Element("192.0.2.1", 10)])])

    table.apply([RemoveElements(T, "bans4", ["192.0.2.1", "192.0.2.99"])])

    assert table.contents(T, "bans4") == []


def test_an_interval_set_answers_for_every_address_inside(table: Filter) -> None:
    prefixes = [Element("198.51.100.0/25"), Element("203.0.113.9"), Element("10.0.0.0/8")]

    table.apply([RefillSet(T, "tolerated4", prefixes)])

    inside_ = ["198.51.100.0", "198.51.100.127", "203.0.113.9", "10.255.255.255"]
    outside = ["198.51.100.128", "203.0.113.10", "11.0.0.0", "9.255.255.255"]
    assert all(table.held(T, "tolerated4", address) for address in inside_)
    assert not any(table.held(T, "tolerated4", address) for address in outside)
    assert {held.key for held in table.contents(T, "tolerated4")} == {"198.51.100.0", "203.0.113.9", "10.0.0.0"}


def test_a_refill_leaves_nothing_of_before(table: Filter) -> None:
    table.apply([RefillSet(T, "feeds4", [Element("192.0.2.1"), Element("192.0.2.2")])])

    table.apply([RefillSet(T, "feeds4", [Element("192.0.2.2"), Element("192.0.2.3")])])

    assert {held.key for held in table.contents(T, "feeds4")} == {"192.0.2.2", "192.0.2.3"}


def test_feed_prefixes_may_overlap(table: Filter) -> None:
    table.apply([RefillSet(T, "feed_nets6", [Element("2001:db8::/32"), Element("2001:db8:1::/48")])])

    assert table.held(T, "feed_nets6", "2001:db8:1::5")


@pytest.mark.parametrize(
    "bad",
    [
        AddElements(T, "bans4", [Element("2001:db8::1")]),
        AddElements(T, "bans6", [Element("192.0.2.1/24")]),
        AddElements(T, "bans4", [Element("192.0.2.0/24")]),
        AddElements(T, "bans4", [Element("300.0.0.1")]),
        AddElements(T, "feeds4", [Element("192.0.2.1", 5)]),
        AddElements(T, "nowhere", [Element("192.0.2.1")]),
        RefillSet("another_table", "bans4", [Element("192.0.2.1")]),
        RefillSet(T, "tolerated4", [Element("10.0.0.0/8"), Element("10.1.0.0/16")]),
        AddElements(T, "bans4", [Element(f"10.0.{i >> 8}.{i & 255}") for i in range(1025)]),
    ],
    ids=["family", "mixed", "prefix in a hash set", "no address", "time", "no set", "no table", "overlap", "full"],
)
def test_a_refused_command_undoes_the_whole_transaction(table: Filter, bad: Command) -> None:
    before = table.generation()

    with pytest.raises(ToolFailed):
        table.apply([AddElements(T, "bans6", [Element("2001:db8::9")]), bad])

    assert table.contents(T, "bans6") == []
    assert table.generation() == before


def test_every_change_has_a_generation_of_its_own(table: Filter) -> None:
    before = table.generation()

    table.apply([AddElements(T, "bans4", [Element("192.0.2.1")])])
    table.apply([RemoveElements(T, "bans4", ["192.0.2.1"])])

    assert table.generation() == before + 2


def test_a_table_can_be_removed_twice(table: Filter) -> None:
    table.apply([RemoveTable(T)])
    table.apply([RemoveTable(T)])

    assert table.shape(T) is None


@pytest.mark.kernel
def test_a_missing_program_is_told_with_the_package_to_install() -> None:
    with pytest.raises(Unavailable) as caught:
        NftFilter("nft-that-is-not-there")

    assert "nftables" in caught.value.remedy
