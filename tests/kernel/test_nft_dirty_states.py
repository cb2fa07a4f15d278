"""Whatever stands under our table's name at the start is replaced in one step, and no banned packet slips through."""

import random
import subprocess
import time
from collections.abc import Iterator

import pytest

from actors.core.messages import CellState
from actors.epidermis.keratinocyte import Keratinocyte
from actors.epidermis.nft import NftFilter
from actors.epidermis.ruleset import Element, Layout, ReplaceTable, declaration, render, shape
from tests.kernel.test_keratinocyte_cell import TABLE, order, policy, settled, start
from tests.support.nft import Wire, inside, nft, nft_listing, wire

pytestmark = pytest.mark.kernel

BANNED = {"bans4": [Element("10.77.0.2")], "bans6": [Element("fd77::2")]}
DROP = "ip saddr 10.77.0.2 drop\nip6 saddr fd77::2 drop"
HOOK = "type filter hook prerouting priority {}; policy accept;"
OURS = Layout(TABLE, "balanced", (22,), (22, 80, 443), ("node0",))


def table(*parts: str) -> str:
    return f"table inet {TABLE} {{\n" + "\n".join(parts) + "\n}\n"


def chain(name: str, *rules: str) -> str:
    return f"chain {name} {{\n" + "\n".join(rules) + "\n}"


def made(layout: Layout) -> str:
    return render([ReplaceTable(layout, BANNED)])


DIRTY = {
    "our own table": made(OURS),
    "our own table at another posture": made(Layout(TABLE, "lockdown", (22,), (22, 80, 443), ("node0",))),
    "our own table with other ports": made(Layout(TABLE, "hardened", (2222,), (8443,), ("node0",))),
    "a chain with another declaration": table(chain("prerouting", HOOK.format("mangle"), DROP)),
    "a plain chain where a hook belongs": table(
        chain("prerouting", DROP), chain("input", HOOK.format("raw - 5"), "jump prerouting")
    ),
    "sets of other types": table(
        "set bans4 {\ntype inet_service\n}",
        "set bans6 {\ntype ether_addr\n}",
        chain("prerouting", HOOK.format("raw - 5"), DROP, "tcp dport @bans4 drop"),
    ),
    "a set where a map was": table(
        "map bans4 {\ntype ipv4_addr : verdict\nelements = { 10.77.0.2 : drop }\n}",
        chain("prerouting", HOOK.format("raw"), "ip saddr vmap @bans4", DROP),
    ),
    "another version's table": table(
        "set blocked {\ntype ipv4_addr\nflags interval\nelements = { 10.77.0.2/32 }\n}",
        chain("old_input", "type filter hook input priority 0; policy accept;", "ip saddr @blocked drop", DROP),
        chain("unused"),
    ),
    "objects of other kinds under our names": table(
        "quota banned {\nover 5 mbytes\n}",
        "limit listed {\nrate 5/second\n}",
        chain("prerouting", HOOK.format("raw - 5"), DROP),
    ),
    "an ingress hook left behind": table(
        chain("ingress", 'type filter hook ingress device "node0" priority -500; policy accept;', DROP)
    ),
    "a full set": table(
        "set bans4 {\ntype ipv4_addr\nsize 1\nelements = { 10.77.0.2 }\n}",
        chain("convict", "drop"),
        chain("prerouting", HOOK.format("raw - 5"), "ip saddr @bans4 goto convict", DROP),
    ),
}


@pytest.fixture
def net() -> Iterator[Wire]:
    with wire() as made_wire, inside(made_wire.node):
        yield made_wire


@pytest.mark.parametrize("state", DIRTY)
def test_no_packet_of_a_banned_source_passes_while_the_table_is_replaced(net: Wire, state: str) -> None:
    nft(f"table ip {TABLE} {{\n}}")
    nft(DIRTY[state])
    assert not net.reaches_node(net.peer4)

    with net.flood(net.peer4) as four, net.flood(net.peer6) as six:
        dish = start()
        try:
            policy(dish, [order(net.peer4), order(net.peer6)], net.scratch / "orders")
            dish.run(0.1)
            assert settled(dish)
            dish.run(0.1)

            assert dish.cell.state is CellState.HEALTHY
            assert (four.heard(), six.heard()) == (0, 0)
            assert four.sent > 100
            assert six.sent > 100
        finally:
            dish.stop()

    assert shape(nft_listing("-s", "-t", "table", "inet", TABLE)) == shape(declaration(OURS))
    assert f"table ip {TABLE}" in nft_listing("tables")


def test_nft_killed_at_random_moments_leaves_the_old_table_or_the_new_one(net: Wire) -> None:
    dice = random.Random(7)
    other = Layout(TABLE, "hardened", (22,), (22, 80, 443), ("node0",))
    scripts = [render([ReplaceTable(layout, BANNED)]) for layout in (OURS, other)]
    allowed = [shape(declaration(layout)) for layout in (OURS, other)]
    nft(scripts[0])

    with net.flood(net.peer4) as ear:
        for turn in range(24):
            running = subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert running.stdin is not None
            running.stdin.write(scripts[turn % 2])
            running.stdin.close()
            time.sleep(dice.uniform(0, 0.02))
            running.kill()
            running.wait()
            assert shape(nft_listing("-s", "-t", "table", "inet", TABLE)) in allowed

        assert ear.heard() == 0
        assert ear.sent > 1000


def test_a_transaction_that_takes_too_long_is_ended_and_changes_nothing(net: Wire) -> None:
    filter_ = NftFilter()
    filter_.apply([ReplaceTable(OURS, BANNED)])
    many = [Element(f"100.{i >> 16}.{i >> 8 & 255}.{i & 255}") for i in range(100_000)]

    with pytest.raises(Exception, match="did not finish"):
        filter_.apply([ReplaceTable(OURS, {"bans4": many})], limit_s=0.02)

    assert not net.reaches_node(net.peer4)
    filter_.close()


def test_a_cell_without_policy_leaves_a_strange_table_in_force(net: Wire) -> None:
    nft(DIRTY["another version's table"])

    dish = start()
    dish.run(1.5)

    assert dish.cell.state is CellState.DEGRADED
    assert not net.reaches_node(net.peer4)
    cell = dish.cell
    assert isinstance(cell, Keratinocyte)
    assert "old_input" in nft_listing("table", "inet", TABLE)
    dish.stop()
