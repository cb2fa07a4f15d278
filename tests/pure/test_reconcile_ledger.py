"""Desired bans: where they go, and what is believed when messages overtake each other."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.messages import Action, Order
from actors.epidermis.reconcile import LOOK_EVERY_S, Ledger, Place, alive, by_family, disjoint, place

NETS = st.one_of(
    st.builds(lambda a, n: str(ipaddress.ip_network((a, n), strict=False)), st.ip_addresses(v=4), st.integers(8, 32)),
    st.builds(lambda a, n: str(ipaddress.ip_network((a, n), strict=False)), st.ip_addresses(v=6), st.integers(16, 128)),
)


def order(subject: str, until: float = 0.0, action: Action = Action.BAN) -> Order:
    return Order(subject=subject, action=action, until_unix_s=until, reason="test")


@pytest.mark.parametrize(
    ("subject", "where"),
    [
        ("192.0.2.7", Place("bans4", "192.0.2.7")),
        ("192.0.2.7/32", Place("bans4", "192.0.2.7")),
        ("192.0.2.0/24", Place("bans4_24", "192.0.2.0")),
        ("192.0.0.0/16", Place("banned_nets4", "192.0.0.0/16")),
        ("2001:db8:0::1", Place("bans6", "2001:db8::1")),
        ("2001:db8::/64", Place("bans6_64", "2001:db8::")),
        ("2001:db8::/48", Place("banned_nets6", "2001:db8::/48")),
    ],
)
def test_each_kind_of_subject_has_its_set(subject: str, where: Place) -> None:
    assert place(subject) == where


@pytest.mark.parametrize(
    "bad", ["", "x", "1.2.3", "1.2.3.4/33", "1.2.3.4/8", "::g", "1.2.3.4 }", "1.2.3.4\n", "fe80::1%eth0"]
)
def test_what_is_no_subject_is_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        place(bad)


@given(st.text(max_size=60))
def test_any_text_is_placed_or_refused(text: str) -> None:
    try:
        where = place(text)
    except ValueError:
        return
    assert set(where.key) <= set("0123456789abcdef.:/")


@given(st.lists(NETS, max_size=30))
def test_disjoint_prefixes_cover_the_same_addresses_and_never_overlap(prefixes: list[str]) -> None:
    kept = [ipaddress.ip_network(net) for net in disjoint(prefixes)]

    for prefix in map(ipaddress.ip_network, prefixes):
        assert any(net.version == prefix.version and prefix.subnet_of(net) for net in kept)  # type: ignore[arg-type]
    assert not any(a.overlaps(b) for i, a in enumerate(kept) for b in kept[:i] if a.version == b.version)
    assert sum(map(len, by_family(map(str, kept)).values())) == len(kept)


def test_an_older_release_does_not_undo_a_newer_ban() -> None:
    ledger = Ledger()
    ledger.enforce([order("192.0.2.1")], generation=5)

    changed = ledger.release(["192.0.2.1"], generation=4)

    assert changed == []
    assert "192.0.2.1" in ledger


def test_an_older_ban_does_not_undo_a_newer_release() -> None:
    ledger = Ledger()
    ledger.release(["192.0.2.1"], generation=5)

    assert ledger.enforce([order("192.0.2.1")], generation=4) == []
    assert len(ledger) == 0


def test_the_whole_state_replaces_what_is_older_and_leaves_what_is_newer() -> None:
    ledger = Ledger()
    ledger.enforce([order("192.0.2.1")], generation=1)
    ledger.enforce([order("192.0.2.9")], generation=9)
    ledger.release(["192.0.2.3"], generation=9)

    changed = ledger.replace([order("192.0.2.2"), order("192.0.2.3")], generation=5)

    assert set(ledger.orders) == {"192.0.2.2", "192.0.2.9"}
    assert set(changed) == {"192.0.2.1", "192.0.2.2"}


def test_the_same_order_twice_changes_nothing_the_second_time() -> None:
    ledger = Ledger()

    assert ledger.enforce([order("192.0.2.1", 5)], 1) == ["192.0.2.1"]
    assert ledger.enforce([order("192.0.2.1", 5)], 2) == []


def test_a_new_source_of_orders_counts_from_the_beginning() -> None:
    ledger = Ledger()
    ledger.enforce([order("192.0.2.1")], generation=900)

    ledger.new_source()
    ledger.replace([], generation=1)

    assert len(ledger) == 0


def test_a_throttle_order_ends_a_ban() -> None:
    ledger = Ledger()
    ledger.enforce([order("192.0.2.1")], 1)

    assert ledger.enforce([order("192.0.2.1", action=Action.THROTTLE)], 2) == ["192.0.2.1"]
    assert not alive(order("192.0.2.1", action=Action.THROTTLE), 0)


def test_what_has_run_out_is_forgotten_and_the_rest_stays() -> None:
    ledger = Ledger()
    ledger.enforce([order("192.0.2.1", 10), order("192.0.2.2", 20), order("192.0.2.3")], 1)

    assert ledger.expire(15) == ["192.0.2.1"]
    assert set(ledger.orders) == {"192.0.2.2", "192.0.2.3"}
    assert ledger.expire(20 + LOOK_EVERY_S) == ["192.0.2.2"]


def test_a_shorter_ban_after_a_look_is_not_kept_for_long() -> None:
    ledger = Ledger()
    ledger.replace([order("192.0.2.1", 1000)], 1)
    ledger.expire(10)

    ledger.enforce([order("192.0.2.2", 12)], 2)

    assert ledger.expire(11) == []
    assert ledger.expire(12) == ["192.0.2.2"]
