"""The keratinocyte over the real nftables, in a namespace of its own, with packets on a veth pair."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from actors.core.messages import (
    Action,
    CellState,
    Enforce,
    EnforceAll,
    EnforceMany,
    FeedCompiled,
    HookAnswered,
    HookWanted,
    Order,
    Posture,
    PostureChanged,
    Proved,
    Release,
    SetTolerance,
)
from actors.core.packed import pack
from actors.epidermis.keratinocyte import Keratinocyte
from config.settings import Settings
from tests.support.core import Dish
from tests.support.nft import Wire, inside, nft, nft_listing, wire

pytestmark = pytest.mark.kernel

TABLE = "tegumentar_epiderme"
LISTENS = (Proved, HookAnswered)


@pytest.fixture
def net() -> Iterator[Wire]:
    with wire() as made, inside(made.node):
        yield made


@pytest.fixture
def dish(net: Wire) -> Iterator[Dish]:
    made = start()
    yield made
    made.stop()


def start() -> Dish:
    dish = Dish(Keratinocyte, Settings(interfaces=("node0",)), name="keratinocyte")
    dish.peer("permeability", *LISTENS)
    dish.peer("melanocyte")
    dish.peer("reflex_arc", HookAnswered)
    return dish


def order(subject: str, ttl_s: float = 0.0) -> Order:
    until = time.time() + ttl_s if ttl_s else 0.0
    return Order(subject=subject, action=Action.BAN, until_unix_s=until, reason="test")


def posture(name: str) -> PostureChanged:
    return PostureChanged(posture=Posture(name), previous=Posture.BALANCED, since_unix_s=time.time())


def policy(
    dish: Dish, orders: list[Order], path: Path, name: str = "balanced", tolerated: tuple[str, ...] = ()
) -> None:
    """What permeability says to a cell that has just started."""
    path.write_bytes(msgspec.msgpack.encode(orders))
    dish.give(EnforceAll(path=str(path), count=len(orders), generation=1), "permeability")
    dish.give(SetTolerance(prefixes=[], generation=1), "permeability")
    dish.give(posture(name), "permeability")


def settled(dish: Dish, limit_s: float = 5.0) -> bool:
    cell = dish.cell
    assert isinstance(cell, Keratinocyte)
    return dish.run_until(lambda: cell.plan.idle and not cell._busy and cell.contents_known, limit_s)


def proven(dish: Dish, subject: str) -> bool:
    proofs = [p for m in dish.sent(Proved, "permeability") for p in m.proofs if p.subject == subject]
    return bool(proofs) and proofs[-1].holds


def test_a_ban_drops_the_source_of_either_family_and_a_release_lets_it_pass_again(net: Wire, dish: Dish) -> None:
    sources = [net.peer4, net.peer6]
    assert all(net.reaches_node(source) for source in sources)

    dish.give(Enforce(orders=[order(source, 60) for source in sources], generation=1), "permeability")
    assert dish.run_until(lambda: all(proven(dish, source) for source in sources))

    assert not any(net.reaches_node(source) for source in sources)

    dish.give(Release(subjects=sources, generation=2), "permeability")
    assert settled(dish)
    assert all(net.reaches_node(source) for source in sources)


@pytest.mark.parametrize("prefix", ["10.77.0.0/24", "10.76.0.0/14", "fd77::/64", "fd77::/48"])
def test_a_banned_prefix_drops_what_lies_inside_and_is_proven(net: Wire, dish: Dish, prefix: str) -> None:
    source = net.peer6 if ":" in prefix else net.peer4

    dish.give(Enforce(orders=[order(prefix, 60)], generation=1), "permeability")

    assert dish.run_until(lambda: proven(dish, prefix))
    assert not net.reaches_node(source)


def test_tolerance_passes_even_a_banned_source(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order(net.peer4), order(net.peer6)], generation=1), "permeability")
    dish.give(SetTolerance(prefixes=["10.77.0.0/30", "fd77::2"], generation=2), "permeability")

    assert settled(dish)

    assert net.reaches_node(net.peer4)
    assert net.reaches_node(net.peer6)


def test_a_ban_ends_by_itself_and_a_longer_order_prolongs_it(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order(net.peer4, 1.0), order(net.peer6, 1.0)], generation=1), "permeability")
    assert settled(dish)
    dish.give(Enforce(orders=[order(net.peer6, 60)], generation=2), "permeability")
    assert settled(dish)

    dish.run(1.6)

    assert net.reaches_node(net.peer4)
    assert not net.reaches_node(net.peer6)


def test_lockdown_cuts_new_connections_and_no_established_one(net: Wire, dish: Dish) -> None:
    with net.echo_server(8080), net.connection(net.node4, 8080) as old4, net.connection(net.node6, 8080) as old6:
        assert net.says(old4)
        assert net.says(old6)

        dish.give(posture("lockdown"), "permeability")
        assert dish.run_until(lambda: proven(dish, "posture:lockdown"))

        assert net.says(old4)
        assert net.says(old6)
        assert not net.connects(net.node4, 8080)
        assert not net.connects(net.node6, 8080)

        dish.give(posture("balanced"), "permeability")
        assert settled(dish)
        assert net.connects(net.node4, 8080)
        assert net.connects(net.node6, 8080)


def test_lockdown_leaves_management_and_tolerance_open_and_hardened_the_services(net: Wire, dish: Dish) -> None:
    with net.echo_server(22), net.echo_server(80), net.echo_server(8080):
        ports = (22, 80, 8080)

        dish.give(posture("hardened"), "permeability")
        assert settled(dish)
        assert [net.connects(net.node4, port) for port in ports] == [True, True, False]

        dish.give(posture("lockdown"), "permeability")
        assert settled(dish)
        assert [net.connects(net.node6, port) for port in ports] == [True, False, False]

        dish.give(SetTolerance(prefixes=["fd77::/64"], generation=1), "permeability")
        assert settled(dish)
        assert [net.connects(net.node6, port) for port in ports] == [True, True, True]


def test_explore_drops_nothing_and_counts_what_it_would_have_dropped(net: Wire, dish: Dish) -> None:
    dish.give(posture("explore"), "permeability")
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
    assert settled(dish)

    assert net.reaches_node(net.peer4)

    counters = dish.ask("nft.status")["counters"]
    assert counters["would_ban"] > 0
    assert counters["banned"] == 0


@pytest.mark.parametrize(
    "harm",
    [
        "delete element inet {t} bans4 {{ 10.77.0.2 }}",
        "flush set inet {t} bans4",
        "flush chain inet {t} suspects",
        "delete rule inet {t} convict handle {h}",
        "delete table inet {t}",
        "flush ruleset",
        "add table inet {t} {{ flags dormant; }}",
    ],
)
def test_what_is_deleted_from_outside_is_back_within_five_seconds(net: Wire, dish: Dish, harm: str) -> None:
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
    policy(dish, [order(net.peer4)], net.scratch / "orders")
    assert settled(dish)
    assert not net.reaches_node(net.peer4)

    rules = nft_listing("-a", "chain", "inet", TABLE, "convict").splitlines()
    handle = next(line.split("# handle ")[1] for line in rules if " drop" in line)
    nft(harm.format(t=TABLE, h=handle))
    assert net.reaches_node(net.peer4)

    assert dish.run_until(lambda: dish.cell.counters["repairs"] > 0, 5.0)
    assert settled(dish)
    assert not net.reaches_node(net.peer4)
    assert dish.run_until(lambda: proven(dish, net.peer4), 5.0)
    assert dish.cell.state is CellState.HEALTHY


def test_other_tables_are_left_alone(net: Wire, dish: Dish) -> None:
    nft("table inet somebody {\n chain c {\n type filter hook input priority 0\n }\n}")
    nft("table ip nat {\n chain x {\n }\n}")
    before = nft_listing("table", "inet", "somebody") + nft_listing("table", "ip", "nat")

    dish.give(posture("hardened"), "permeability")
    dish.run(1.2)
    assert settled(dish)

    assert nft_listing("table", "inet", "somebody") + nft_listing("table", "ip", "nat") == before
    assert dish.cell.counters["repairs"] == 0


def test_a_new_life_adopts_the_table_and_makes_only_the_difference(net: Wire, dish: Dish) -> None:
    policy(dish, [order(net.peer4), order("198.51.100.9", 60)], net.scratch / "orders", "hardened")
    assert settled(dish)
    handle = nft_listing("-a", "-t", "table", "inet", TABLE)

    second = start()
    try:
        assert second.cell.state is CellState.HEALTHY
        policy(second, [order(net.peer4), order("198.51.100.7", 60)], net.scratch / "orders", "hardened")
        assert settled(second)
        second.run(0.1)

        assert nft_listing("-a", "-t", "table", "inet", TABLE) == handle
        listed = nft_listing("set", "inet", TABLE, "bans4")
        assert "198.51.100.7" in listed
        assert "198.51.100.9" not in listed
        assert not net.reaches_node(net.peer4)
    finally:
        second.stop()


def test_a_blocklist_is_enforced_and_a_bad_one_leaves_the_last_good(net: Wire, dish: Dish) -> None:
    good, bad = net.scratch / "good", net.scratch / "bad"
    good.write_text("10.77.0.2\nfd77::/32\n198.51.100.0/25\n")
    bad.write_text("10.0.0.1\n1.2.3.4 } ; flush ruleset\n")

    def compiled(path: Path) -> FeedCompiled:
        return FeedCompiled(generation=1, snapshot="", snapshot6="", prefixes=str(path), entries_v4=1, entries_v6=1)

    dish.give(compiled(good), "melanocyte")
    assert settled(dish)
    assert not net.reaches_node(net.peer4)
    assert not net.reaches_node(net.peer6)

    dish.give(compiled(bad), "melanocyte")
    assert settled(dish)
    assert dish.cell.state is CellState.DEGRADED
    assert "line 2" in dish.last_report().reason
    assert not net.reaches_node(net.peer4)


def test_the_ingress_hook_is_set_on_demand_and_a_missing_interface_is_named(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
    dish.give(HookWanted(interfaces=["node0", "absent0"]), "reflex_arc")
    assert dish.run_until(lambda: bool(dish.sent(HookAnswered, "reflex_arc")))

    answer = dish.sent(HookAnswered, "reflex_arc")[-1]
    assert settled(dish)
    assert answer.interfaces == ["node0"]
    assert "absent0" in answer.refused
    assert "hook ingress device" in nft_listing("table", "inet", TABLE)
    assert not net.reaches_node(net.peer4)


def test_explain_names_every_set_that_covers_an_address(net: Wire, dish: Dish) -> None:
    orders = [order("192.0.2.7", 60), order("192.0.2.0/24"), order("192.0.0.0/16")]
    dish.give(Enforce(orders=orders, generation=1), "permeability")
    assert settled(dish)

    held = dish.ask("nft.explain", {"address": "192.0.2.7"})["held"]

    assert {entry["set"] for entry in held} == {"bans4", "bans4_24", "banned_nets4"}
    assert 0 < held[0]["expires_s"] <= 60


def test_many_bans_in_one_message_gather_and_a_lone_one_does_not_wait_for_them(net: Wire, dish: Dish) -> None:
    policy(dish, [], net.scratch / "orders")
    assert settled(dish)
    subjects = [f"100.64.{n >> 8}.{n & 255}" for n in range(2_000)] + ["198.51.100.0/25", "2001:db8::7"]

    dish.give(
        EnforceMany(subjects=pack(subjects), until_unix_s=time.time() + 600, reason="test", generation=2),
        "permeability",
    )
    dish.give(Enforce(orders=[order(net.peer4, 600)], generation=3), "permeability")

    assert dish.run_until(lambda: proven(dish, net.peer4), 5)
    assert not net.reaches_node(net.peer4)
    assert dish.ask("nft.status")["waiting"], "the many have yet to come"
    assert dish.run_until(lambda: all(proven(dish, s) for s in (subjects[0], *subjects[-2:])), 10)
    assert len(dish.cell.plan.applied) == 2_002


def test_ten_thousand_bans_are_enforced_while_one_more_takes_its_turn_first(net: Wire, dish: Dish) -> None:
    many = [order(f"100.{64 + i // 65536}.{i // 256 % 256}.{i % 256}", 600) for i in range(10_000)]
    policy(dish, many, net.scratch / "orders")
    dish.run(0.02)

    dish.give(Enforce(orders=[order(net.peer4, 600)], generation=2), "permeability")

    assert dish.run_until(lambda: proven(dish, net.peer4))
    assert settled(dish)
    cell = dish.cell
    assert isinstance(cell, Keratinocyte)
    assert len(cell.plan.applied) == 10_001
