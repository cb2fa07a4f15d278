"""Flow records against meters that other people wrote, TCP states, and payload samples in order."""

import ipaddress
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import abi
from bpf.dataplane import Budget, Policy, Records
from bpf.loader import KernelPlane
from bpf.pcap import Frame, read_capture
from bpf.replay import EPOCH_NS, Replayer, replay_plane
from tests.support.packets import (
    ACK,
    FIN,
    ICMP,
    NODE4,
    PEER4,
    PSH,
    RST,
    SYN,
    UDP,
    ethernet,
    icmp,
    ip4,
    ip6,
    mss,
    tcp,
    udp,
)
from tests.support.shared import shared_data

pytestmark = pytest.mark.kernel

MS = 1_000_000
OFF = Budget(0, 0)
UNLIMITED = Policy(
    syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF, drop_malformed=False, flow_idle_s=1e5
)


@pytest.fixture
def plane() -> Iterator[KernelPlane]:
    plane = replay_plane(UNLIMITED, flow_sets=16_384)
    yield plane
    plane.close()


def feed(plane: KernelPlane, *frames: bytes, gap_ns: int = 10 * MS) -> Records:
    Replayer(plane).feed(Frame(EPOCH_NS + i * gap_ns, len(frame), frame) for i, frame in enumerate(frames))
    return plane.flows.read()[1]


def out(flags: int, payload: bytes = b"", **fields: Any) -> bytes:
    return ethernet(ip4(tcp(flags, payload, sport=40_000, dport=443, **fields)))


def back(flags: int, payload: bytes = b"", **fields: Any) -> bytes:
    return ethernet(ip4(tcp(flags, payload, sport=443, dport=40_000, **fields), source=NODE4, dest=PEER4))


def test_a_whole_conversation_is_one_record_with_both_sides(plane: KernelPlane) -> None:
    (flow,) = feed(
        plane,
        out(SYN, options=mss(1400), seq=100, window=1111),
        back(SYN | ACK, options=mss(1300), window=2222),
        out(ACK),
        out(PSH | ACK, b"x" * 100),
        back(ACK),
        back(PSH | ACK, b"y" * 1300),
        out(FIN | ACK),
        back(FIN | ACK),
        out(ACK),
    )

    first, second = flow["side"]
    assert abi.FLOW_STATES[int(flow["state"])] == "closed"
    assert [str(ipaddress.IPv4Address(flow["key"]["addr"][i].tobytes()[12:])) for i in (0, 1)] == [PEER4, NODE4]
    assert flow["key"]["port"].tolist() == [40_000, 443]
    assert (int(first["packets"]), int(second["packets"])) == (5, 4)
    assert (int(first["payload_bytes"]), int(second["payload_bytes"])) == (100, 1300)
    assert (int(first["payload_sumsq"]), int(second["payload_sumsq"])) == (100**2, 1300**2)
    assert first["sizes"].tolist() == [4, 0, 1, 0, 0, 0, 0]
    assert second["sizes"].tolist() == [3, 0, 0, 0, 0, 1, 0]
    assert first["flags"].tolist() == [1, 1, 0, 1, 4, 0, 0, 0]
    assert (int(first["mss"]), int(second["mss"])) == (1400, 1300)
    assert (int(first["window"]), int(second["window"])) == (1111, 2222)
    assert (int(first["payload_min"]), int(first["payload_max"])) == (0, 100)
    assert int(first["iat_sum_ns"]) == 80 * MS
    assert int(first["iat_max_us"]) == 30_000
    assert int(first["iat_sumsq_us"]) == 20_000**2 + 10_000**2 + 30_000**2 + 20_000**2
    assert int(flow["last_ns"]) == EPOCH_NS + 80 * MS


STATES: dict[str, tuple[list[bytes], str]] = {
    "a SYN alone": ([out(SYN)], "half_open"),
    "SYN and its answer": ([out(SYN), back(SYN | ACK)], "half_open"),
    "the handshake": ([out(SYN), back(SYN | ACK), out(ACK)], "established"),
    "the handshake as the node sees it": ([out(SYN), out(ACK)], "established"),
    "the handshake as the client sees it": ([back(SYN | ACK), back(PSH | ACK, b"x")], "established"),
    "an answer that refuses": ([out(SYN), back(RST | ACK)], "refused"),
    "a reset of what stood": ([out(SYN), back(SYN | ACK), out(ACK), out(RST)], "closed"),
    "one side closed": ([out(SYN), back(SYN | ACK), out(ACK), out(FIN | ACK)], "established"),
    "joined in the middle": ([out(ACK, b"x"), back(ACK)], "new"),
}


@pytest.mark.parametrize("name", STATES)
def test_tcp_states_follow_what_was_seen(plane: KernelPlane, name: str) -> None:
    frames, state = STATES[name]

    (flow,) = feed(plane, *frames)

    assert abi.FLOW_STATES[int(flow["state"])] == state


def test_the_sender_of_a_syn_and_ack_is_the_responder(plane: KernelPlane) -> None:
    (flow,) = feed(plane, back(SYN | ACK), out(ACK))

    assert flow["key"]["port"].tolist() == [40_000, 443]
    assert flow["side"]["packets"].tolist() == [1, 1]


def test_repeated_syns_are_counted_as_retries_and_a_new_sequence_is_not(plane: KernelPlane) -> None:
    (flow,) = feed(plane, out(SYN, seq=5), out(SYN, seq=5), out(SYN, seq=5), out(SYN, seq=6))

    assert int(flow["side"]["syn_retries"][0]) == 2


def test_ports_that_are_used_again_start_a_new_record_in_the_same_slot(plane: KernelPlane) -> None:
    (before,) = feed(plane, out(SYN), back(RST | ACK))

    (after,) = feed(plane, out(SYN, seq=77))

    assert int(after["incarnation"]) == int(before["incarnation"]) + 1
    assert after["side"]["packets"].tolist() == [1, 0]


def test_families_protocols_and_echo_identifiers_keep_apart(plane: KernelPlane) -> None:
    flows = feed(
        plane,
        ethernet(ip4(udp(sport=1, dport=2), UDP)),
        ethernet(ip6(udp(sport=1, dport=2), UDP), 0x86DD),
        ethernet(ip4(tcp(sport=1, dport=2))),
        ethernet(ip4(icmp(ident=5), ICMP)),
        ethernet(ip4(icmp(0, ident=5), ICMP, NODE4, PEER4)),
        ethernet(ip4(icmp(ident=6), ICMP)),
        ethernet(ip4(udp(sport=1, dport=2), UDP), vlans=(9,)),
    )

    found = Counter((int(f["key"]["family"]), int(f["key"]["proto"]), int(f["key"]["port"][0])) for f in flows)
    assert found == {(4, 17, 1): 1, (6, 17, 1): 1, (4, 6, 1): 1, (4, 1, 5): 1, (4, 1, 6): 1}
    assert sum(int(f["side"]["packets"].sum()) for f in flows) == 7


def test_only_flows_that_moved_since_are_read_when_asked_so(plane: KernelPlane) -> None:
    replayer = Replayer(plane)
    frames = [ethernet(ip4(udp(sport=port), UDP)) for port in (1, 2)]
    replayer.feed([Frame(EPOCH_NS, 60, frames[0])])
    later = EPOCH_NS + 2_000 * MS
    replayer.feed([Frame(later, 60, frames[1])])

    _slots, moved = plane.flows.read(later)

    assert [int(flow["key"]["port"][0]) for flow in moved] == [2]
    assert len(plane.flows.read()[1]) == 2


def test_payload_comes_up_in_order_with_its_place_and_up_to_the_limit(plane: KernelPlane) -> None:
    plane.knobs["sample_bytes"] = 250
    request = b"GET /" + b"a" * 95

    feed(plane, out(SYN), out(ACK), *[out(PSH | ACK, request, seq=1 + 100 * i) for i in range(5)], back(ACK, b"answer"))
    samples = plane.samples.read()

    ours = [(int(head["seq"]), int(head["offset"]), body) for head, body in samples if head["side"] == 0]
    theirs = [body for head, body in samples if head["side"] == 1]
    assert ours == [(1, 0, request), (101, 100, request), (201, 200, request)]
    assert theirs == [b"answer"]
    head = samples[0][0]
    assert (int(head["payload"]), int(head["captured"]), int(head["tcp_flags"])) == (100, 100, PSH | ACK)
    slots, flows = plane.flows.read()
    assert (int(head["slot"]), int(head["incarnation"])) == (int(slots[0]), int(flows[0]["incarnation"]))


def test_large_payloads_are_cut_to_one_sample_and_say_so(plane: KernelPlane) -> None:
    feed(plane, ethernet(ip4(udp(b"z" * 3_000), UDP)))

    ((head, body),) = plane.samples.read()

    assert (int(head["payload"]), int(head["captured"]), len(body)) == (3_000, abi.SAMPLE_MAX, abi.SAMPLE_MAX)


def test_samples_keep_to_their_budget(plane: KernelPlane) -> None:
    plane.knobs.set_budget(abi.BUDGETS.index("samples"), Budget(10, 5))

    feed(plane, *[ethernet(ip4(udp(b"x", sport=port), UDP)) for port in range(1, 21)], gap_ns=1)

    assert len(plane.samples.read()) == 5
    assert plane.counters().tally["samples_over"] == 15


TSHARK = ("ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "tcp.srcport", "udp.srcport", "tcp.dstport", "udp.dstport",
          "ip.proto", "frame.len", "tcp.len", "tcp.flags")  # fmt: skip

Meter = dict[tuple[str, str, int, int, int], list[int]]


def tshark_meter(path: Path) -> Meter:
    """(source, destination, ports, protocol) → packets, wire bytes, TCP payload bytes, SYN, ACK, FIN, RST; unfragmented
    TCP and UDP over IP without tunnels only, which is what tshark can say without doubt."""
    argv = ["tshark", "-n", "-r", str(path), "-o", "tcp.desegment_tcp_streams:FALSE", "-o", "ip.defragment:FALSE",
            "-o", "tcp.check_checksum:FALSE", "-T", "fields", "-E", "occurrence=f",
            "-Y", "(tcp or udp) and not icmp and not icmpv6 and not gre and not teredo and not pppoes "
                  "and not ip.flags.mf==1 "
                  "and not ip.frag_offset>0 and not ipv6.fraghdr and not (ip and ipv6)"]  # fmt: skip
    for name in TSHARK:
        argv += ["-e", name]
    meter: Meter = {}
    for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines():
        row = dict(zip(TSHARK, line.split("\t"), strict=True))
        proto = 6 if row["tcp.srcport"] else 17
        name = "tcp" if proto == 6 else "udp"
        key = (
            row["ip.src"] or row["ipv6.src"],
            row["ip.dst"] or row["ipv6.dst"],
            int(row[f"{name}.srcport"]),
            int(row[f"{name}.dstport"]),
            proto,
        )
        flags = int(row["tcp.flags"] or "0", 16)
        counts = meter.setdefault(key, [0] * 7)
        for at, value in enumerate(
            (1, int(row["frame.len"]), int(row["tcp.len"] or 0), *(flags >> bit & 1 for bit in (1, 4, 0, 2)))
        ):
            counts[at] += value
    return meter


def our_meter(flows: Iterable[Any]) -> Meter:
    meter: Meter = {}
    for flow in flows:
        key = flow["key"]
        if int(key["proto"]) not in (6, 17) or not key["port"].any():
            continue
        four = int(key["family"]) == 4
        ends = [
            str(ipaddress.ip_address(key["addr"][i].tobytes()[12:] if four else key["addr"][i].tobytes()))
            for i in (0, 1)
        ]
        for side in (0, 1):
            record = flow["side"][side]
            if not record["packets"] or record["fragments"]:
                continue
            proto = int(key["proto"])
            row = meter.setdefault(
                (ends[side], ends[1 - side], int(key["port"][side]), int(key["port"][1 - side]), proto), [0] * 7
            )
            flags = record["flags"].tolist()
            payload = int(record["payload_bytes"]) if proto == 6 else 0
            for at, value in enumerate(
                (int(record["packets"]), int(record["wire_bytes"]), payload, flags[1], flags[4], flags[0], flags[2])
            ):
                row[at] += value
    return meter


CAPTURES = (
    "ipfixprobe_http.pcap", "ndpi_http_ipv6.pcap", "ndpi_dns.pcap", "zeek_workshop_2011_browse.pcap",
    "ndpi_quic.pcap", "ndpi_ftp.pcap", "zeek_web.pcap", "ndpi_mqtt.pcap",
)  # fmt: skip


@pytest.mark.shared_data
@pytest.mark.parametrize("name", CAPTURES)
def test_records_equal_the_counts_of_an_independent_meter(name: str, plane: KernelPlane) -> None:
    path = shared_data("benign") / name
    replayer = Replayer(plane)
    seen: dict[tuple[int, int], Any] = {}

    for frame in read_capture(path):
        replayer.feed([frame])
        slots, flows = plane.flows.read(frame.at_ns)
        for slot, flow in zip(slots.tolist(), flows, strict=True):
            seen[slot, int(flow["incarnation"])] = flow

    ours, theirs = our_meter(seen.values()), tshark_meter(path)
    assert plane.counters().tally["flows_evicted"] == plane.counters().tally["flows_refused"] == 0
    assert {key: row for key, row in ours.items() if key in theirs} == theirs
