"""Budgets, bans that the program makes by itself, their expiry, tolerance above them, and one event per incident.

Time is the replay clock, so every figure is exact."""

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from bpf import abi
from bpf.dataplane import Ban, Budget, Policy, Stance, Vaccine
from bpf.hashes import fingerprint
from bpf.loader import KernelPlane
from bpf.pcap import Frame
from bpf.program import Build
from bpf.replay import EPOCH_NS, Replayer, replay_plane
from tests.support.packets import (
    ACK,
    ICMP,
    ICMP6,
    NODE4,
    PEER4,
    PEER6,
    SYN,
    UDP,
    ethernet,
    icmp,
    ip4,
    ip6,
    syn4,
    syn6,
    tcp,
    udp4,
    udp6,
)

pytestmark = pytest.mark.kernel

SECOND = 1_000_000_000
MS = 1_000_000
OFF = Budget(0, 0)
QUIET = Policy(syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF, ban_s=0)


class Skin:
    """A plane and its clock."""

    def __init__(self, policy: Policy, plane: KernelPlane | None = None) -> None:
        self.plane = plane or replay_plane(policy, flow_sets=16_384)
        self.now_ns = EPOCH_NS
        self._replayer = Replayer(self.plane)

    def send(self, *frames: bytes) -> list[str]:
        """The reasons of some frames that come at this instant."""
        verdicts = self._replayer.feed(Frame(self.now_ns, len(frame), frame) for frame in frames)
        return [abi.reason_name(int(number)) for number in verdicts.reason]

    def pass_time(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds


@pytest.fixture
def skin() -> Iterator[Callable[[Policy], Skin]]:
    made: list[Skin] = []

    def make(policy: Policy) -> Skin:
        made.append(Skin(policy))
        return made[-1]

    yield make
    for one in made:
        one.plane.close()


def icmp4(source: str = PEER4) -> bytes:
    return ethernet(ip4(icmp(), ICMP, source))


def icmp6(source: str = PEER6) -> bytes:
    return ethernet(ip6(icmp(128), ICMP6, source), 0x86DD)


def fragment4(source: str = PEER4) -> bytes:
    return ethernet(ip4(b"x" * 24, UDP, source, offset=1480))


BUDGETED = {
    "syn over ipv4": ("syn", syn4, PEER4, "203.0.113.8"),
    "syn over ipv6": ("syn", syn6, PEER6, "2001:db8:bbbb:1::7"),
    "udp over ipv4": ("udp", udp4, PEER4, "203.0.113.8"),
    "udp over ipv6": ("udp", udp6, PEER6, "2001:db8:bbbb:1::7"),
    "icmp": ("icmp", icmp4, PEER4, "203.0.113.8"),
    "icmpv6": ("icmp", icmp6, PEER6, "2001:db8:bbbb:1::7"),
    "fragments": ("fragment", fragment4, PEER4, "203.0.113.8"),
    "all packets": ("total", udp4, PEER4, "203.0.113.8"),
}


@pytest.mark.parametrize("name", BUDGETED)
def test_a_burst_passes_the_next_packet_does_not_and_time_refills(name: str, skin: Callable[[Policy], Skin]) -> None:
    budget, frame, source, other = BUDGETED[name]
    node = skin(replace(QUIET, **{budget: Budget(100, 20)}))

    burst = node.send(*[frame(source)] * 21)
    innocent = node.send(frame(other))
    node.pass_time(101 * MS)
    later = node.send(*[frame(source)] * 11)

    assert [reason for reason in burst if reason == f"budget_{budget}"] == [f"budget_{budget}"]
    assert burst[-1] == f"budget_{budget}"
    assert innocent[0] in ("clean", "later_fragment")
    assert later.count(f"budget_{budget}") == 1


def test_the_first_packet_beyond_the_burst_bans_at_once_and_the_ban_ends_by_itself(
    skin: Callable[[Policy], Skin],
) -> None:
    node = skin(replace(QUIET, syn=Budget(10, 5), ban_s=2.0))

    flood = node.send(*[syn4()] * 8)
    other_protocol = node.send(udp4())
    held = node.plane.bans()
    node.pass_time(2 * SECOND - 10 * MS)
    almost = node.send(udp4())
    node.pass_time(20 * MS)
    after = node.send(udp4())

    assert flood == ["clean"] * 5 + ["budget_syn", "ban", "ban"]
    assert other_protocol == ["ban"]
    assert [(b.subject, b.reason, b.by_kernel) for b in held] == [(PEER4, "budget_syn", True)]
    assert held[0].until_ns == EPOCH_NS + 2 * SECOND
    assert almost == ["ban"]
    assert after == ["clean"]
    assert node.plane.bans()[0].packets == 4


def test_an_ipv6_source_is_budgeted_and_banned_with_its_whole_64(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, syn=Budget(10, 5), ban_s=60.0))
    hoppers = [syn6(f"2001:db8:bbbb::{index:x}") for index in range(1, 8)]

    flood = node.send(*hoppers)

    assert flood == ["clean"] * 5 + ["budget_syn", "ban"]
    assert [ban.subject for ban in node.plane.bans()] == ["2001:db8:bbbb::/64"]
    assert node.send(udp6("2001:db8:bbbb:0:ffff::1"), udp6("2001:db8:bbbb:1::1")) == ["ban", "clean"]


def test_a_tolerated_source_is_never_banned_whatever_it_sends(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, syn=Budget(10, 5), ban_s=60.0))
    node.plane.tolerate(["203.0.113.0/24"])

    flood = node.send(*[syn4()] * 10)
    malformed = node.send(ethernet(ip4(tcp(0))))

    assert flood == ["clean"] * 5 + ["tolerated"] * 5
    assert malformed == ["tolerated"]
    assert node.plane.bans() == []
    assert len(node.plane.events.read()) == 0


def test_a_hardened_node_halves_every_budget(skin: Callable[[Policy], Skin]) -> None:
    policy = replace(QUIET, syn=Budget(100, 20))
    open_node, hardened = skin(policy), skin(replace(policy, stance=Stance.HARDENED))

    assert open_node.send(*[syn4()] * 30).count("clean") == 20
    assert hardened.send(*[syn4()] * 30).count("clean") == 10


def test_an_observing_node_passes_everything_and_says_what_it_would_have_done(
    skin: Callable[[Policy], Skin],
) -> None:
    node = skin(replace(QUIET, stance=Stance.OBSERVE, syn=Budget(10, 5), ban_s=60.0))
    node.plane.ban([Ban("203.0.113.9")])
    node.plane.tolerate(["203.0.113.10"])

    node.send(*[syn4()] * 8)
    node.send(udp4("203.0.113.9"), ethernet(ip4(tcp(0))), ethernet(ip4(tcp(0), source="203.0.113.10")))
    counters = node.plane.counters()
    events = node.plane.events.read()

    assert counters.dropped == 0
    assert counters.frames == 11
    assert {k: v for k, v in counters.would_packets.items() if v} == {
        "budget_syn": 3,
        "ban": 1,
        "tcp_null": 1,
        "tolerated": 1,
    }
    assert [ban.subject for ban in node.plane.bans()] == ["203.0.113.9"]
    assert all(event["flags"] == abi.EVENT_OBSERVED for event in events)
    assert len(node.plane.flows.read()[1]) >= 2


def test_an_incident_is_told_once_and_again_only_after_its_interval(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, incident_s=5.0))
    null4, null6 = ethernet(ip4(tcp(0))), ethernet(ip6(tcp(0)), 0x86DD)

    node.send(*[null4] * 500, *[null6] * 3)
    first = node.plane.events.read()
    node.pass_time(5 * SECOND + MS)
    node.send(null4, null4)
    second = node.plane.events.read()

    assert [(abi.REASONS[int(e["reason"])], int(e["family"]), int(e["packets"])) for e in first] == [
        ("tcp_null", 4, 1),
        ("tcp_null", 6, 1),
    ]
    assert str(ipaddress.IPv6Address(first[1]["source"].tobytes())) == PEER6
    assert [(int(e["packets"]), int(e["at_ns"])) for e in second] == [(501, node.now_ns)]


def test_a_ban_by_the_program_is_one_event_with_its_end(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, udp=Budget(10, 5), ban_s=30.0))

    node.send(*[udp4(dport=9999)] * 50)
    events = node.plane.events.read()

    assert len(events) == 1
    assert events[0]["flags"] == abi.EVENT_BANNED
    assert int(events[0]["until_ns"]) == node.now_ns + 30 * SECOND
    assert (int(events[0]["dest_port"]), int(events[0]["proto"])) == (9999, UDP)


def test_forged_sources_cannot_flood_the_event_stream(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, events=Budget(100, 50)))

    node.send(*[ethernet(ip4(tcp(0), source=f"10.{i >> 8}.{i & 255}.9")) for i in range(500)])

    counters = node.plane.counters()
    assert len(node.plane.events.read()) == 50
    assert counters.tally["events_sent"] == 50
    assert counters.tally["events_suppressed"] == 450
    assert counters.did_packets["tcp_null"] == 500


def test_a_full_ban_table_still_drops_the_excess_and_says_so(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, udp=Budget(1, 1), ban_s=60.0))
    size = 131_072
    node.plane.ban(
        [Ban(str(ipaddress.IPv4Address(0x0A000000 + number)), EPOCH_NS + 90 * SECOND) for number in range(size)]
    )

    found = node.send(*[udp4()] * 3)

    counters = node.plane.counters()
    assert found == ["clean", "budget_udp", "budget_udp"]
    assert counters.tally["bans_full"] == 2
    assert node.plane.events.read()[0]["flags"] == abi.EVENT_FULL
    assert node.send(udp4("10.0.0.9")) == ["ban"]


def test_random_sources_that_flood_one_port_are_seen_at_the_destination(skin: Callable[[Policy], Skin]) -> None:
    policy = replace(QUIET, syn=Budget(200, 400), syn_dest=Budget(100, 50))
    telling, dropping = skin(policy), skin(replace(policy, syn_flood_drops=True))
    flood = [syn4(f"198.18.{i >> 8}.{i & 255}", dport=443) for i in range(300)]
    elsewhere = syn4("198.18.9.9", dport=22)

    told, dropped = telling.send(*flood), dropping.send(*flood)

    assert set(told) == {"clean"}
    assert telling.plane.counters().tally["syn_over"] == 250
    event = telling.plane.events.read()[0]
    assert abi.REASONS[int(event["reason"])] == "syn_flood"
    assert event["dest"].tobytes()[12:] == ipaddress.IPv4Address(NODE4).packed
    assert dropped.count("syn_flood") == 250
    assert dropping.send(elsewhere) == ["clean"]
    assert dropping.plane.bans() == []


def test_neighbours_that_stay_under_their_own_budget_meet_the_budget_of_their_prefix(
    skin: Callable[[Policy], Skin],
) -> None:
    node = skin(replace(QUIET, udp=Budget(100, 100), prefix=Budget(50, 40)))
    v4 = [udp4(f"203.0.113.{index}") for index in range(1, 61)]
    v6 = [udp6(f"2001:db8:cccc:{index:x}::1") for index in range(1, 61)]

    assert node.send(*v4).count("budget_prefix") == 20
    assert node.send(*v6).count("budget_prefix") == 20
    assert node.send(udp4("203.0.114.1"), udp6("2001:db8:cccd::1")) == ["clean", "clean"]


def test_large_answers_of_amplifiers_have_a_budget_per_destination(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, amplified=Budget(10, 5), amplified_bytes=400))
    large = [udp4(f"198.18.0.{i}", b"x" * 480, sport=53) for i in range(1, 21)]
    small = [udp4(f"198.18.1.{i}", b"x" * 80, sport=53) for i in range(1, 21)]
    ordinary = [udp4(f"198.18.2.{i}", b"x" * 480, sport=40_000) for i in range(1, 21)]

    assert node.send(*large).count("amplification") == 15
    assert set(node.send(*small, *ordinary)) == {"clean"}


def test_a_vaccine_drops_its_payload_from_anybody_and_nothing_else(skin: Callable[[Policy], Skin]) -> None:
    node = skin(QUIET)
    long, short = b"EVIL" * 20, b"evil"
    hostile = [
        udp4(payload=long, dport=5060),
        udp6("2001:db8:9::9", payload=long + b"and more", dport=5060),
        ethernet(ip4(tcp(ACK, short, dport=80))),
    ]
    harmless = [
        udp4(payload=long, dport=5061),
        udp4(payload=b"EVIL" * 7 + b"EVIX", dport=5060),
        ethernet(ip4(tcp(ACK, short + b"!", dport=80))),
        ethernet(ip4(tcp(ACK, dport=80))),
    ]
    before = node.send(*hostile)

    node.plane.vaccinate([Vaccine(17, 5060, fingerprint(long), 0, 42), Vaccine(6, 80, fingerprint(short))])
    during, others = node.send(*hostile), node.send(*harmless)
    event = node.plane.events.read()[0]
    node.plane.unvaccinate([Vaccine(17, 5060, fingerprint(long)), Vaccine(6, 80, fingerprint(short))])

    assert before == ["clean"] * 3
    assert during == ["vaccine"] * 3
    assert others == ["clean"] * 4
    assert int(event["detail"]) == 42
    assert node.send(*hostile) == ["clean"] * 3


def test_established_sources_and_flows_survive_a_flood_of_forged_addresses(skin: Callable[[Policy], Skin]) -> None:
    """1,000 conversations that have spoken twice, then 120,000 forged sources against tables of 262,144 and 65,536."""
    node = skin(replace(QUIET, udp=Budget(1, 3)))
    known = [udp4(f"100.64.{i >> 8}.{i & 255}", sport=1_000 + i) for i in range(1_000)]
    node.send(*known, *known)
    rng = np.random.default_rng(7)

    for number in rng.integers(0x0B000000, 0x5F000000, 120_000).tolist():
        node.send(udp4(str(ipaddress.IPv4Address(number)), sport=number & 0xFFFF))
    node.pass_time(100 * MS)
    third, fourth = node.send(*known), node.send(*known)

    assert set(third) == {"clean"}
    assert set(fourth) == {"budget_udp"}, "a source that had lost its state would have had a fresh burst"
    flows = node.plane.flows.read()[1]
    ours = flows["side"]["packets"][:, 0] >= 3
    assert int(ours.sum()) == 1_000
    assert node.plane.counters().tally["sources_evicted"] == 0


def test_who_takes_the_place_of_a_passer_by_inherits_none_of_its_spending() -> None:
    policy = replace(QUIET, udp=Budget(1, 3), total=Budget(1, 5))
    node = Skin(policy, KernelPlane(None, Build(live=False, replay=True, source_sets=1, flow_sets=64), policy))
    node.send(*[udp4(f"203.0.113.{index}") for index in range(1, 5)])
    node.pass_time(10 * MS)

    newcomer = node.send(*[udp4("203.0.113.9")] * 4)

    assert newcomer == ["clean"] * 3 + ["budget_udp"]
    node.plane.close()


def test_packets_of_other_kinds_spend_from_the_total_alone(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, udp=Budget(1, 3), total=Budget(1, 5)))
    ack = ethernet(ip4(tcp(ACK)))

    assert node.send(ack, ack, ack) == ["clean"] * 3
    assert node.send(udp4(), udp4(), udp4()) == ["clean"] * 2 + ["budget_total"]


def test_the_rate_of_refill_is_exact_over_a_minute(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, syn=Budget(7, 3)))
    passed = 0

    for _step in range(600):
        node.pass_time(100 * MS)
        passed += node.send(syn4()).count("clean")

    assert 7 * 60 - 1 <= passed <= 7 * 60 + 3


def test_syn_and_ack_is_no_syn(skin: Callable[[Policy], Skin]) -> None:
    node = skin(replace(QUIET, syn=Budget(1, 1)))

    assert set(node.send(*[ethernet(ip4(tcp(SYN | ACK)))] * 5)) == {"clean"}
