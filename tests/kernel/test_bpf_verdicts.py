"""One frame in, one verdict and one counter out: the whole packet table through the real program, at both hooks."""

from collections.abc import Iterator

import pytest

from bpf import abi
from bpf.dataplane import Ban, Budget, Policy
from bpf.loader import KernelPlane
from bpf.prog_run import Result, Runner
from bpf.program import Build
from bpf.replay import EPOCH_NS
from tests.support.packets import (
    ACK,
    FIN,
    ICMP,
    ICMP6,
    NODE4,
    NODE6,
    PEER4,
    PEER6,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    arp,
    ethernet,
    extension,
    fragment6,
    icmp,
    ip4,
    ip6,
    mss,
    tcp,
    udp,
)  # fmt: skip

pytestmark = pytest.mark.kernel

V6 = 0x86DD
OFF = Budget(0, 0)
UNLIMITED = Policy(syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF)

#: name → (frame, reason). Reasons from ``land`` on are drops.
TABLE: dict[str, tuple[bytes, str]] = {
    "arp": (arp(), "arp"),
    "another ethertype": (ethernet(b"\0" * 40, 0x88CC), "not_ip"),
    "an 802.3 length": (ethernet(b"\0" * 40, 0x0026), "not_ip"),
    "tcp over ipv4": (ethernet(ip4(tcp())), "clean"),
    "tcp over ipv6": (ethernet(ip6(tcp()), V6), "clean"),
    "udp over ipv4": (ethernet(ip4(udp(), UDP)), "clean"),
    "udp over ipv6": (ethernet(ip6(udp(), UDP), V6), "clean"),
    "icmp": (ethernet(ip4(icmp(), ICMP)), "clean"),
    "icmpv6": (ethernet(ip6(icmp(128), ICMP6), V6), "clean"),
    "icmpv6 inside ipv4": (ethernet(ip4(icmp(), ICMP6)), "other_protocol"),
    "gre": (ethernet(ip4(b"\0" * 30, 47)), "other_protocol"),
    "no next header": (ethernet(ip6(b"", 59), V6), "other_protocol"),
    "esp over ipv6": (ethernet(ip6(b"\0" * 40, 50), V6), "other_protocol"),
    "one vlan tag": (ethernet(ip4(tcp()), vlans=(7,)), "clean"),
    "two vlan tags": (ethernet(ip6(tcp()), V6, vlans=(7, 8)), "clean"),
    "three vlan tags": (ethernet(ip4(tcp()), vlans=(7, 8, 9)), "unparsed_link"),
    "ethernet padding": (ethernet(ip4(tcp())) + b"\0" * 6, "clean"),
    "ipv4 options": (ethernet(ip4(tcp(), options=b"\x94\4\0\0" * 10)), "clean"),
    "ipv4 total length zero": (ethernet(ip4(tcp(), total=0)), "clean"),
    "ipv6 payload length zero": (ethernet(ip6(tcp(), length=0), V6), "clean"),
    "version 5 in an ipv4 frame": (ethernet(ip4(tcp(), version=5)), "unparsed_ip"),
    "ipv4 in an ipv6 frame": (ethernet(ip4(tcp()), V6), "unparsed_ip"),
    "header length four words": (ethernet(ip4(tcp(), ihl=4)), "bad_length"),
    "total length below the header": (ethernet(ip4(tcp(), total=19)), "bad_length"),
    "total length beyond the frame": (ethernet(ip4(tcp(), total=41)), "bad_length"),
    "ipv6 payload beyond the frame": (ethernet(ip6(tcp(), length=21), V6), "bad_length"),
    "tcp data offset four words": (ethernet(ip4(tcp(doff=4))), "bad_length"),
    "tcp data offset beyond the packet": (ethernet(ip4(tcp(doff=6))), "bad_length"),
    "less tcp than a header": (ethernet(ip4(tcp()[:19])), "bad_length"),
    "udp length seven": (ethernet(ip4(udp(length=7), UDP)), "bad_length"),
    "udp length beyond the packet": (ethernet(ip4(udp(length=13), UDP)), "bad_length"),
    "udp length zero": (ethernet(ip4(udp(length=0), UDP)), "clean"),
    "less icmp than a header": (ethernet(ip4(icmp()[:7], ICMP)), "bad_length"),
    "land over tcp": (ethernet(ip4(tcp(SYN, sport=80, dport=80), source=NODE4)), "land"),
    "land over udp and ipv6": (ethernet(ip6(udp(sport=9, dport=9), UDP, NODE6), V6), "land"),
    "same address, other port": (ethernet(ip4(tcp(SYN, sport=80, dport=81), source=NODE4)), "clean"),
    "null": (ethernet(ip4(tcp(0))), "tcp_null"),
    "null with only ecn bits": (ethernet(ip6(tcp(0xC0)), V6), "tcp_null"),
    "xmas": (ethernet(ip4(tcp(FIN | PSH | URG))), "tcp_xmas"),
    "all flags": (ethernet(ip4(tcp(0x3F))), "tcp_syn_fin"),
    "syn and fin": (ethernet(ip6(tcp(SYN | FIN)), V6), "tcp_syn_fin"),
    "syn and rst": (ethernet(ip4(tcp(SYN | RST))), "tcp_syn_fin"),
    "syn": (ethernet(ip4(tcp(SYN, options=mss(1460)))), "clean"),
    "fin and ack": (ethernet(ip4(tcp(FIN | ACK))), "clean"),
    "first fragment": (ethernet(ip4(udp(b"x" * 24), UDP, more=True)), "clean"),
    "later fragment": (ethernet(ip4(b"x" * 24, UDP, offset=1480)), "later_fragment"),
    "don't fragment alone": (ethernet(ip4(tcp(), offset=0)), "clean"),
    "fragment off the boundary": (ethernet(ip4(b"x" * 25, UDP, offset=8, more=True)), "bad_fragment"),
    "ping of death": (ethernet(ip4(b"x" * 32, ICMP, offset=65_512)), "bad_fragment"),
    "fragment over the tcp header": (ethernet(ip4(b"x" * 24, TCP, offset=8)), "bad_fragment"),
    "first fragment shorter than tcp": (ethernet(ip4(tcp()[:16], more=True)), "bad_fragment"),
    "ipv6 first fragment": (ethernet(ip6(fragment6(UDP, 0, True) + udp(b"x" * 24), 44), V6), "clean"),
    "ipv6 later fragment": (ethernet(ip6(fragment6(TCP, 1480) + b"x" * 30, 44), V6), "later_fragment"),
    "ipv6 atomic fragment": (ethernet(ip6(fragment6(TCP) + tcp(), 44), V6), "clean"),
    "one extension header": (ethernet(ip6(extension(TCP) + tcp(), 0), V6), "clean"),
    "six extension headers": (ethernet(ip6(extension(60) * 5 + extension(TCP) + tcp(), 60), V6), "clean"),
    "seven extensions": (ethernet(ip6(extension(60) * 6 + extension(TCP) + tcp(), 60), V6), "unparsed_extension"),
    "a long extension header": (ethernet(ip6(extension(TCP, 100) + tcp(), 60), V6), "clean"),
    "extension beyond the payload": (ethernet(ip6(bytes((TCP, 200)) + b"\0" * 22, 60), V6), "bad_length"),
    "neighbour solicitation": (ethernet(ip6(icmp(135), ICMP6, hops=255), V6), "neighbour"),
    "router advertisement": (ethernet(ip6(icmp(134), ICMP6, hops=255), V6), "neighbour"),
    "neighbour from afar": (ethernet(ip6(icmp(135), ICMP6, hops=254), V6), "clean"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plane() -> Iterator[KernelPlane]:
    plane = KernelPlane(None, Build(live=False, replay=True), UNLIMITED)
    plane.knobs["replay_now_ns"] = EPOCH_NS
    yield plane
    plane.close()


@pytest.fixture(params=["xdp", "tc"])
def runner(request: pytest.FixtureRequest, plane: KernelPlane) -> Iterator[Runner]:
    plane.set_policy(UNLIMITED)
    yield Runner(plane.program.entries[request.param], request.param)
    plane.release([ban.subject for ban in plane.bans()])
    plane.tolerate([])


def run(runner: Runner, frame: bytes) -> tuple[bool, str]:
    result: Result = runner.run(frame)
    return result.drop, abi.reason_name(result.reason)


@pytest.mark.parametrize("name", TABLE)
def test_each_frame_gets_its_verdict_and_its_one_counter(name: str, plane: KernelPlane, runner: Runner) -> None:
    frame, reason = TABLE[name]
    before = plane.counters()

    verdict = run(runner, frame)

    after = plane.counters()
    assert verdict == (reason in abi.DROP_REASONS, reason)
    assert after.frames == before.frames + 1
    assert after.did_packets[reason] == before.did_packets[reason] + 1
    assert after.did_bytes[reason] == before.did_bytes[reason] + len(frame)


@pytest.mark.parametrize("name", [name for name, (_, reason) in TABLE.items() if reason in abi.DROP_REASONS])
def test_the_malformed_reflex_can_be_switched_off(name: str, plane: KernelPlane, runner: Runner) -> None:
    plane.set_policy(Policy(drop_malformed=False, syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF))

    drop, reason = run(runner, TABLE[name][0])

    assert not drop
    assert reason not in abi.DROP_REASONS


FROM_PEER = [name for name, (_, reason) in TABLE.items()
             if reason in ("clean", "other_protocol", "later_fragment", "unparsed_extension")
             and "same address" not in name and "land" not in name]  # fmt: skip


@pytest.mark.parametrize("name", FROM_PEER)
def test_a_ban_holds_for_every_shape_of_packet_of_its_source(name: str, plane: KernelPlane, runner: Runner) -> None:
    frame, reason = TABLE[name]
    before = run(runner, frame)

    plane.ban([Ban(PEER4), Ban(PEER6)])
    banned = run(runner, frame)
    plane.tolerate([f"{PEER4}/32", f"{PEER6}/64"])
    tolerated = run(runner, frame)
    plane.tolerate([])
    plane.release([PEER4, PEER6])
    after = run(runner, frame)

    assert before == after == (False, reason)
    assert banned == (True, "ban")
    assert tolerated == (False, "tolerated")


@pytest.mark.parametrize("name", ["arp", "neighbour solicitation", "another ethertype"])
def test_what_keeps_the_node_on_the_net_passes_even_from_a_banned_source(
    name: str, plane: KernelPlane, runner: Runner
) -> None:
    plane.ban([Ban(PEER4), Ban(PEER6)])

    assert run(runner, TABLE[name][0]) == (False, TABLE[name][1])


def test_every_pass_and_malformed_reason_has_a_frame_in_the_table() -> None:
    shown = {reason for _, reason in TABLE.values()}
    elsewhere = {"tolerated", "unparsed_transport", "blocklist", "ban", "ban_prefix", "vaccine", "amplification",
                 "syn_flood", *(r for r in abi.REASONS.values() if r.startswith("budget_"))}  # fmt: skip

    assert shown | elsewhere == set(abi.REASONS.values())
