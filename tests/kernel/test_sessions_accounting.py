"""The kernel's account of every conversation in every shared capture, against a meter that shares no code with it.

The captures of one part are played one after the other into one flow table, each conversation going on where another
capture has the same ports: what counts is that both accounts agree, row by row.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bpf.dataplane import Policy, Stance
from bpf.pcap import CaptureError, Frame, read_capture
from bpf.replay import CHUNK, Replayer, replay_plane
from ml.meter import CaptureMeter
from ml.records import KEY, check
from tests.support.packets import ACK, FIN, NODE4, PEER4, PSH, RST, SYN, UDP, ethernet, ip4, ip6, tcp, udp
from tests.support.shared import shared_data

pytestmark = pytest.mark.kernel

#: Sets of four, and a hash that spreads the largest part so well that no conversation takes the place of another.
SETS, SEED = 65_536, 9
COUNTED = ("packets", "wire_bytes", "payload_bytes", "fragments", "flags", "illegal_flags", "syn_retries", "sizes")
#: Pauses are cut to this: some captures last for hours, or were pasted together from recordings of different years.
PAUSE_NS = 100_000_000
#: Left out, with the reason. The two long recordings of the lab are compared tick by tick where the model is tested.
LEFT_OUT = {
    "train_clean.pcap",
    "test_mixed.pcap",
    "syn_flood__pkt.TCP.synflood.spoofed.pcap",  # more sources than places: refusing them is what the table is for
    "0058_drop-protocol-change.pcap",  # frames whose own lengths contradict each other belong to no conversation
    "0326_ipv6-evasion.pcap",
    "0331_ipv6-evasion.pcap",
    "0365_udp-5379.pcap",
}


def one_after_the_other(paths: list[Path]) -> Iterator[Frame]:
    """The frames of all captures on one clock that never runs backwards. Other link layers are left out."""
    now_ns = 1 << 41
    for path in paths:
        last_ns = None
        try:
            for frame in read_capture(path):
                now_ns += min(max(0, frame.at_ns - (last_ns or frame.at_ns)), PAUSE_NS)
                last_ns = frame.at_ns
                yield Frame(now_ns, frame.wire_bytes, frame.data)
        except CaptureError:
            continue


def by_the_kernel(frames: list[Frame]) -> np.ndarray:
    plane = replay_plane(Policy(stance=Stance.OBSERVE, drop_malformed=False), flow_sets=SETS)
    try:
        plane.knobs["seed"] = SEED
        replayer = Replayer(plane)
        for start in range(0, len(frames), CHUNK):
            replayer.feed(frames[start : start + CHUNK])
            plane.events.read()
            plane.samples.read(CHUNK)
        assert plane.counters().tally["flows_evicted"] == plane.counters().tally["flows_refused"] == 0
        return ordered(check(plane.flows.read()[1]))
    finally:
        plane.close()


def by_the_meter(frames: list[Frame]) -> np.ndarray:
    meter = CaptureMeter(Path("frames"), [(frame.at_ns, frame.wire_bytes, frame.data) for frame in frames])
    (tick,) = [tick for tick in meter.ticks(10**17) if len(tick.slots)][:1]
    return ordered(tick.table[tick.slots])


def ordered(flows: np.ndarray) -> np.ndarray:
    return flows[np.argsort(np.ascontiguousarray(flows["key"]).view(f"S{KEY.itemsize}").reshape(-1), kind="stable")]


def assert_alike(frames: list[Frame]) -> np.ndarray:
    """Row by row the same; returns the rows."""
    ours, theirs = by_the_kernel(frames), by_the_meter(frames)
    assert len(ours) == len(theirs)
    assert np.array_equal(ours["key"], theirs["key"])
    assert [name for name in COUNTED if not np.array_equal(ours["side"][name], theirs["side"][name])] == []
    return ours


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("part", "captures", "conversations"),
    [("benign", 85, 1_000), ("attacks", 20, 18_000), ("dpi", 370, 500), ("lab", 2, 18_000)],
)
def test_every_conversation_of_the_shared_captures_is_counted_alike(part, captures, conversations):
    kinds = {".pcap", ".pcapng", ".cap", ".trace"}
    paths = [path for path in sorted(shared_data(part).rglob("*")) if path.suffix in kinds]
    paths = [path for path in paths if path.name not in LEFT_OUT]
    frames = list(one_after_the_other(paths))

    flows = assert_alike(frames)

    assert len(paths) >= captures
    assert len(flows) >= conversations


def test_conversations_of_every_kind_are_counted_alike_without_any_recording():
    frames = [
        ethernet(ip4(tcp(SYN, sport=40_000, dport=443, seq=1))),
        ethernet(ip4(tcp(SYN, sport=40_000, dport=443, seq=1))),
        ethernet(ip4(tcp(ACK, sport=40_000, dport=443))),
        ethernet(ip4(tcp(PSH | ACK, b"x" * 700, sport=40_000, dport=443))),
        ethernet(ip4(tcp(FIN | ACK, sport=40_000, dport=443))),
        ethernet(ip4(tcp(RST, sport=40_001, dport=22))),
        ethernet(ip4(tcp(FIN, sport=40_002, dport=22))),
        ethernet(ip4(udp(b"question", sport=5_000, dport=53), UDP)),
        ethernet(ip6(udp(b"question", sport=5_000, dport=53), UDP), 0x86DD),
        ethernet(ip4(udp(b"z" * 1_300, sport=5_001, dport=53), UDP), vlans=(7,)),
    ]

    flows = assert_alike([Frame((1 << 41) + i * 1_000_000, len(frame), frame) for i, frame in enumerate(frames)])

    assert len(flows) == 6
    assert int(flows["side"]["packets"].sum()) == len(frames)
    assert int(flows["side"]["syn_retries"].sum()) == 1
    assert int(flows["side"]["illegal_flags"].sum()) == 1


def test_conversations_with_long_silences_are_counted_alike() -> None:
    rng, at_ns, frames = np.random.default_rng(11), 1 << 41, []
    for _ in range(3_000):
        at_ns += int(rng.choice([1_000_000, 400_000_000, 31_000_000_000], p=[0.6, 0.39, 0.01]))
        port, there = int(rng.integers(1_024, 1_044)), bool(rng.integers(2))
        ends = {"source": PEER4, "dest": NODE4} if there else {"source": NODE4, "dest": PEER4}
        ports = {"sport": port, "dport": 443} if there else {"sport": 443, "dport": port}
        if port % 4:
            flags = int(
                rng.choice([SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST], p=[0.1, 0.1, 0.5, 0.2, 0.08, 0.02])
            )
            frame = ethernet(ip4(tcp(flags, rng.bytes(int(rng.integers(1_400))), **ports), **ends))
        else:
            frame = ethernet(ip4(udp(rng.bytes(int(rng.integers(1_400))), **ports), UDP, **ends))
        frames.append(Frame(at_ns, len(frame), frame))

    flows = assert_alike(frames)

    assert len(flows) == 20
    times = ("first_ns", "last_ns", "iat_sum_ns", "iat_sumsq_us", "iat_max_us")
    ours, theirs = by_the_kernel(frames), by_the_meter(frames)
    assert [name for name in times if not np.array_equal(ours["side"][name], theirs["side"][name])] == []
    assert int(flows["side"]["packets"].sum()) < 2_000  # most of it belongs to incarnations of before
