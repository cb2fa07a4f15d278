"""Which records a leaving packet may begin, keep and renew: frame by frame, with a clock that the test sets."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bpf import abi
from bpf.dataplane import Budget, Policy, Records
from bpf.loader import KernelPlane
from bpf.prog_run import MIN_FRAME, Runner
from bpf.replay import EPOCH_NS, replay_plane
from tests.support.packets import (
    ACK,
    FIN,
    ICMP,
    NODE4,
    PEER4,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    ethernet,
    extension,
    icmp,
    ip4,
    ip6,
    tcp,
    udp,
)

pytestmark = pytest.mark.kernel

MS, SECOND = 1_000_000, 1_000_000_000
OFF = Budget(0, 0)
UNLIMITED = Policy(syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF, flow_idle_s=30.0)


class Gate:
    """Both entry points of one private program and its clock."""

    def __init__(self, flow_sets: int) -> None:
        self.plane: KernelPlane = replay_plane(UNLIMITED, flow_sets=flow_sets)
        self._come = Runner(self.plane.program.entries["xdp"])
        self._leave = Runner(self.plane.program.entries["egress"], "tc")
        self.now_ns = EPOCH_NS

    def come(self, *frames: bytes) -> None:
        for frame in frames:
            self._run(self._come, frame)

    def leave(self, *frames: bytes) -> None:
        for frame in frames:
            assert not self._run(self._leave, frame).drop

    def _run(self, runner: Runner, frame: bytes) -> Any:
        self.now_ns += MS
        self.plane.knobs["replay_now_ns"] = self.now_ns
        return runner.run(frame.ljust(MIN_FRAME, b"\0"))

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def flows(self) -> Records:
        return self.plane.flows.read()[1]


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate(1_024)
    yield made
    made.plane.close()


@pytest.fixture
def crowded() -> Iterator[Gate]:
    """Room for four conversations."""
    made = Gate(1)
    yield made
    made.plane.close()


def from_peer(flags: int, payload: bytes = b"", *, source: str = PEER4, sport: int = 40_000) -> bytes:
    return ethernet(ip4(tcp(flags, payload, sport=sport, dport=443), source=source))


def from_node(flags: int, payload: bytes = b"", *, dest: str = PEER4, dport: int = 40_000) -> bytes:
    return ethernet(ip4(tcp(flags, payload, sport=443, dport=dport), source=NODE4, dest=dest))


ANSWERS = {
    "SYN and ACK": from_node(SYN | ACK),
    "a reset": from_node(RST | ACK),
    "data": from_node(PSH | ACK, b"data"),
    "an end": from_node(FIN | ACK),
    "an echo reply": ethernet(ip4(icmp(0), ICMP, NODE4, PEER4)),
    "an ICMP error": ethernet(ip4(icmp(3, 3), ICMP, NODE4, PEER4)),
    "a later fragment": ethernet(ip4(b"x" * 64, UDP, NODE4, PEER4, offset=1480)),
    "no IP": ethernet(b"\0" * 50, 0x88CC),
    "a stump": ethernet(ip4(udp(), UDP, NODE4, PEER4)[:20]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_without_a_record_begins_none(gate: Gate, name: str) -> None:
    gate.leave(ANSWERS[name])

    assert len(gate.flows()) == 0
    assert gate.plane.counters().tally["flows_refused"] == 0


WORDS = {
    "a SYN": ethernet(ip4(tcp(SYN, sport=50_000), source=NODE4, dest=PEER4)),
    "an echo request": ethernet(ip4(icmp(8), ICMP, NODE4, PEER4)),
    "a question": ethernet(ip4(udp(sport=50_000, dport=53), UDP, NODE4, PEER4)),
    "a SYN behind extension headers": ethernet(ip6(extension(TCP, 30) + tcp(SYN), 0), 0x86DD),
}


@pytest.mark.parametrize("name", WORDS)
def test_what_the_node_says_first_begins_a_record_of_its_own(gate: Gate, name: str) -> None:
    gate.leave(WORDS[name])

    (flow,) = gate.flows()
    assert flow["side"]["packets"].tolist() == [1, 0]
    assert gate.plane.counters().frames == 0


def test_an_answer_fills_the_other_side_and_the_states_follow(gate: Gate) -> None:
    gate.come(from_peer(SYN))
    gate.leave(from_node(SYN | ACK))
    gate.come(from_peer(ACK), from_peer(PSH | ACK, b"x" * 10))
    gate.leave(from_node(PSH | ACK, b"y" * 20), from_node(FIN | ACK))
    before = int(gate.flows()[0]["state"])
    gate.come(from_peer(FIN | ACK))

    (flow,) = gate.flows()
    assert (abi.FLOW_STATES[before], abi.FLOW_STATES[int(flow["state"])]) == ("established", "closed")
    assert flow["side"]["packets"].tolist() == [4, 3]
    assert flow["side"]["payload_bytes"].tolist() == [10, 20]


def test_answers_to_a_flood_of_forged_sources_evict_nobody(crowded: Gate) -> None:
    crowded.come(*[from_peer(flags) for flags in (SYN, ACK, ACK)])
    crowded.leave(from_node(SYN | ACK))
    rng = random.Random(7)

    for number in rng.sample(range(65_536), 2_000):
        source, port = f"198.51.{number >> 8}.{number & 255}", rng.randrange(1024, 65536)
        crowded.come(from_peer(SYN, source=source, sport=port))
        crowded.leave(from_node(SYN | ACK, dest=source, dport=port))

    ours = [flow for flow in crowded.flows() if flow["key"]["port"][0] == 40_000]
    assert [flow["side"]["packets"].tolist() for flow in ours] == [[3, 1]]
    assert crowded.plane.counters().tally["flows_evicted"] == 0
    assert crowded.plane.counters().tally["flows_made"] == 4


def test_repeated_answers_do_not_make_a_forged_source_look_alive(crowded: Gate) -> None:
    crowded.come(*[from_peer(flags) for flags in (SYN, ACK, ACK)])
    for number in (1, 2, 3):
        crowded.come(from_peer(SYN, source=f"198.51.100.{number}"))
    for _ in range(3):
        crowded.wait(1)
        crowded.leave(*[from_node(SYN | ACK, dest=f"198.51.100.{number}") for number in (1, 2, 3)])

    crowded.come(from_peer(SYN, sport=40_001))  # of the source that has spoken before

    ports = [(int(flow["key"]["port"][0]), flow["key"]["addr"][0][12:].tolist()) for flow in crowded.flows()]
    assert (40_000, [203, 0, 113, 7]) in ports
    assert (40_001, [203, 0, 113, 7]) in ports


def test_a_question_to_somebody_new_takes_only_what_is_free(crowded: Gate) -> None:
    for port in (1, 2, 3, 4):
        crowded.come(from_peer(SYN, sport=port), from_peer(ACK, sport=port))

    crowded.leave(WORDS["a question"])

    assert sorted(crowded.flows()["key"]["port"][:, 0].tolist()) == [1, 2, 3, 4]
    assert crowded.plane.counters().tally["flows_refused"] == 1


def test_a_connection_that_was_silent_for_long_goes_on_as_another_incarnation_of_the_same_parties(gate: Gate) -> None:
    gate.come(from_peer(SYN), from_peer(ACK))
    before = gate.flows()[0].copy()
    gate.wait(31)

    gate.leave(from_node(PSH | ACK, b"still here"))

    (flow,) = gate.flows()
    assert int(flow["incarnation"]) == int(before["incarnation"]) + 1
    assert flow["key"] == before["key"]
    assert abi.FLOW_STATES[int(flow["state"])] == "established"
    assert flow["side"]["packets"].tolist() == [0, 1]


def test_a_silence_within_the_time_changes_nothing(gate: Gate) -> None:
    gate.come(from_peer(SYN), from_peer(ACK))
    gate.wait(29)

    gate.come(from_peer(ACK))

    assert gate.flows()["side"]["packets"].tolist() == [[3, 0]]


def test_datagrams_after_long_silence_belong_to_whoever_speaks_then(gate: Gate) -> None:
    gate.come(ethernet(ip4(udp(sport=53, dport=50_000), UDP)))
    gate.wait(31)

    gate.leave(ethernet(ip4(udp(sport=50_000, dport=53), UDP, NODE4, PEER4)))

    (flow,) = gate.flows()
    assert flow["key"]["port"].tolist() == [50_000, 53]
    assert int(flow["incarnation"]) == 2


def test_a_syn_after_long_silence_names_the_parties_anew(gate: Gate) -> None:
    gate.come(from_peer(SYN), from_peer(ACK))
    gate.wait(31)

    gate.leave(from_node(SYN))

    (flow,) = gate.flows()
    assert flow["key"]["port"].tolist() == [443, 40_000]
    assert abi.FLOW_STATES[int(flow["state"])] == "half_open"


def test_the_sum_of_squared_pauses_stays_at_the_largest_number(gate: Gate) -> None:
    gate.plane.knobs["flow_idle_ticks"] = (1 << 32) - 1
    for _ in range(7):
        gate.come(from_peer(ACK))
        gate.wait(4_000)

    (flow,) = gate.flows()
    assert int(flow["side"]["iat_sumsq_us"][0]) == (1 << 64) - 1
    assert int(flow["side"]["iat_max_us"][0]) == 1 << 31


def test_random_bytes_pass_and_never_break_the_program(gate: Gate) -> None:
    rng = np.random.default_rng(3)
    for size in range(60, 600, 7):
        frame = bytearray(rng.bytes(size))
        frame[12:14] = rng.choice([b"\x08\x00", b"\x86\xdd", b"\x81\x00"])
        gate.leave(bytes(frame))

    assert gate.plane.counters().frames == 0
