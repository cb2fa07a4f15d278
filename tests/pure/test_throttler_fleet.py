"""Heavy sources of the fleet: what is read from the flow table, and what is charged for the others."""

import socket
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.codec import decode, encode
from actors.core.messages import BATCH_LIMIT, SpentElsewhere
from actors.hypodermis.throttler_fleet import REMEMBERED, SOURCES_MAX, Fleet, FlowUsage
from bpf import abi

LEAST = {"total": 10.0, "udp": 10.0}


class Table:
    """A flow table that a test fills."""

    capacity = 1024

    def __init__(self):
        self.records = np.zeros(self.capacity, abi.FLOW)

    def put(self, slot, source, packets, *, proto=6, incarnation=1):
        row = self.records[slot]
        mapped = socket.inet_pton(socket.AF_INET6, source if ":" in source else f"::ffff:{source}")
        row["key"]["addr"][0] = np.frombuffer(mapped, np.uint8)
        row["key"]["proto"], row["incarnation"] = proto, incarnation
        row["side"]["packets"][0] = packets

    def read(self, since_ns=0):
        slots = np.flatnonzero(self.records["incarnation"]).astype(np.uint32)
        return slots, self.records[slots].copy()


def test_packets_are_added_up_over_the_flows_of_a_source_and_counted_once():
    table = Table()
    usage = FlowUsage(table)
    table.put(1, "203.0.113.7", 1_000)
    first = usage.look(1, LEAST)
    table.put(1, "203.0.113.7", 1_030)
    table.put(2, "203.0.113.7", 20, proto=17)
    table.put(3, "198.51.100.1", 5)

    second = usage.look(2, LEAST)
    third = usage.look(3, LEAST)

    assert first == {}
    assert second == {"total 203.0.113.7": 50, "udp 203.0.113.7": 20}
    assert third == {}


def test_a_flow_that_took_another_ones_place_counts_from_its_own_beginning():
    table = Table()
    usage = FlowUsage(table)
    table.put(1, "203.0.113.7", 1_000)
    usage.look(1, LEAST)
    table.put(1, "203.0.113.8", 40, incarnation=2)

    assert usage.look(2, LEAST) == {"total 203.0.113.8": 40}


def test_ip6_is_counted_by_the_64_that_shares_a_budget():
    table = Table()
    usage = FlowUsage(table)
    usage.look(1, LEAST)
    table.put(1, "2001:db8:1:2::1", 15)
    table.put(2, "2001:db8:1:2:ffff::9", 15)

    assert usage.look(2, LEAST) == {"total 2001:db8:1:2::": 30}


def test_only_the_heaviest_are_told_and_they_fit_one_message():
    table = Table()
    usage = FlowUsage(table)
    usage.look(1, LEAST)
    for number in range(1_000):
        table.put(number, f"10.0.{number // 250}.{number % 250}", 20 + number, proto=17)

    told = usage.look(2, LEAST)
    spent = Fleet()
    spent.charges(told, told)
    message = SpentElsewhere(sources=spent.charges({}, {name: 2 * count for name, count in told.items()}))

    assert Counter(name.split()[0] for name in told) == {"total": SOURCES_MAX, "udp": SOURCES_MAX}
    assert max(told.values()) == 1_019
    assert decode(encode(message, "throttler", 1)).message == message


def test_what_others_saw_is_charged_and_what_we_saw_is_not():
    fleet = Fleet()
    name = "total 203.0.113.7"

    first = fleet.charges({name: 500}, {name: 90_000})
    second = fleet.charges({name: 500}, {name: 92_000})
    alone = fleet.charges({name: 500}, {name: 92_500})

    assert first == []
    assert [(spent.subject, spent.budget, spent.packets) for spent in second] == [("203.0.113.7", "total", 1_500)]
    assert alone == []


def test_a_heavy_source_that_pauses_stays_in_view_for_a_while():
    fleet = Fleet()
    name = "udp 203.0.113.7"

    told = [fleet.tell({name: 500}), *(fleet.tell({}) for _ in range(REMEMBERED))]

    assert told == [{name: 500}, *[{name: 0}] * (REMEMBERED - 1), {}]


def test_however_many_come_and_go_one_message_holds_what_is_told():
    fleet = Fleet()

    for number in range(5):
        told = fleet.tell({f"udp 10.0.{number}.{host}": 1 for host in range(150)})

    assert len(told) == BATCH_LIMIT
    assert all(told[f"udp 10.0.4.{host}"] == 1 for host in range(150))


def test_a_total_that_was_forgotten_is_charged_to_nobody():
    fleet = Fleet()
    fleet.charges({"total 203.0.113.7": 500}, {"total 203.0.113.7": 90_000})

    assert fleet.charges({"total 203.0.113.7": 500}, {"total 203.0.113.7": 500}) == []


@given(st.lists(st.lists(st.integers(0, 5_000), min_size=3, max_size=3), min_size=1, max_size=30))
def test_over_three_nodes_each_is_charged_what_the_two_others_sent(seconds):
    name = "total 203.0.113.7"
    total, fleets, charged = 0, [Fleet() for _ in range(3)], [0, 0, 0]
    own_sums = [0, 0, 0]

    for second in [[1, 1, 1], *seconds]:
        for node, packets in enumerate(second):
            total += packets
            own_sums[node] += packets
            charged[node] += sum(spent.packets for spent in fleets[node].charges({name: packets}, {name: total}))

    first_heard = [1, 2, 3]
    seen_last = [total - sum(seconds[-1][node + 1 :]) for node in range(3)]
    for node in range(3):
        assert charged[node] == seen_last[node] - first_heard[node] - (own_sums[node] - 1)


@pytest.mark.parametrize("budget", ["total", "udp"])
def test_the_names_are_budgets_of_the_kernel_program(budget):
    assert budget in abi.BUDGETS
