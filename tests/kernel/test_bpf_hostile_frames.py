"""Whatever bytes arrive: one class counted for each frame, no error from the kernel, and no innocent frame dropped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf import abi
from bpf.dataplane import Budget, Policy
from bpf.loader import KernelPlane
from bpf.pcap import CaptureError, Frame, read_capture
from bpf.prog_run import Runner
from bpf.program import Build
from bpf.replay import EPOCH_NS, Replayer, replay, replay_plane
from tests.kernel.test_bpf_verdicts import TABLE
from tests.support.shared import shared_data

pytestmark = pytest.mark.kernel

OFF = Budget(0, 0)
UNLIMITED = Policy(syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF)
HOUR = 3_600_000_000_000
#: The kernel makes no skb of less than an IPv6 header, so the traffic-control hook cannot be asked about those.
SHORTEST = {"xdp": 14, "tc": 54}


@pytest.fixture(scope="module")
def plane() -> Iterator[KernelPlane]:
    plane = KernelPlane(None, Build(live=False, replay=True), UNLIMITED)
    plane.knobs["replay_now_ns"] = EPOCH_NS
    yield plane
    plane.close()


@pytest.mark.parametrize("kind", ["xdp", "tc"])
def test_a_frame_cut_at_any_length_is_counted_once(plane: KernelPlane, kind: str) -> None:
    runner = Runner(plane.program.entries[kind], kind)
    before = plane.counters().frames
    sent = 0

    for frame, _reason in TABLE.values():
        for length in range(SHORTEST[kind], len(frame)):
            runner.run(frame[:length])
            sent += 1

    assert plane.counters().frames == before + sent
    assert sent > 1_000


def test_a_frame_that_the_capture_cut_is_counted_as_unparsed_where_it_ends(plane: KernelPlane) -> None:
    """Its length on the wire is known, so the lengths in its headers are no lie."""
    replayer = Replayer(plane)
    reasons: set[str] = set()

    for frame, _reason in TABLE.values():
        cuts = [Frame(EPOCH_NS, len(frame), frame[:length]) for length in range(0, len(frame), 2)]
        reasons |= {abi.reason_name(int(number)) for number in replayer.feed(cuts).reason}

    assert {"unparsed_link", "unparsed_ip", "unparsed_transport", "unparsed_extension"} <= reasons


def test_a_cut_frame_whose_headers_are_whole_is_no_reason_to_read_beyond_it(plane: KernelPlane) -> None:
    """The length on the wire is known to a replay: then the cut is the capture's doing, and the frame is innocent."""
    frame, _ = TABLE["tcp over ipv4"]
    long = frame[:16] + (40 + 1_000).to_bytes(2, "big") + frame[18:]
    replayer = Replayer(plane)

    cut = replayer.feed([Frame(EPOCH_NS, 14 + 40 + 1_000, long)])
    lying = replayer.feed([Frame(EPOCH_NS, len(long), long)])

    assert abi.reason_name(int(cut.reason[0])) == "clean"
    assert abi.reason_name(int(lying.reason[0])) == "bad_length"


@pytest.mark.parametrize("kind", ["xdp", "tc"])
def test_random_and_mutated_frames_never_fall_out_of_the_table(plane: KernelPlane, kind: str) -> None:
    runner = Runner(plane.program.entries[kind], kind)
    frames = st.one_of(
        st.binary(min_size=SHORTEST[kind], max_size=300),
        st.builds(
            lambda base, at, new: base[: 12 + at] + new + base[12 + at + len(new) :],
            st.sampled_from([frame for frame, _ in TABLE.values()]),
            st.integers(0, 70),
            st.binary(min_size=1, max_size=8),
        ).filter(lambda frame: len(frame) >= SHORTEST[kind]),
    )

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(frames)
    def judge(frame: bytes) -> None:
        before = plane.counters()
        result = runner.run(frame)
        after = plane.counters()
        reason = abi.REASONS[result.reason]
        assert result.drop == (reason in abi.DROP_REASONS)
        assert after.frames == before.frames + 1
        assert after.did_packets[reason] == before.did_packets[reason] + 1

    judge()


@pytest.mark.shared_data
def test_every_hostile_frame_is_counted_in_exactly_one_class() -> None:
    for name in ("frames_ethernet.pcap", "tcp_one_way_all_flags.pcap"):
        frames = sum(1 for _ in read_capture(shared_data("malformed") / name))

        result = replay(shared_data("malformed") / name)

        assert result.frames == result.counters.frames == frames == sum(result.by_reason.values())
        assert set(result.by_reason) <= set(abi.REASONS.values())


@pytest.mark.shared_data
def test_ordinary_traffic_of_every_protocol_passes_under_the_default_policy() -> None:
    """Both directions of each conversation go through the program as if they were inbound, which is harder than life.

    Not one frame of the corpus deserves to be dropped, so any drop is a wrong verdict. The captures follow each other
    an hour apart, so that no budget remembers the one before."""
    plane = replay_plane()
    wrong: dict[str, set[str]] = {}
    total, hour = 0, EPOCH_NS

    for path in sorted(Path(shared_data("benign")).glob("*.*cap*")):
        frames = list(read_capture(path))
        start = frames[0].at_ns
        hour += HOUR
        verdicts = Replayer(plane).feed(f._replace(at_ns=max(f.at_ns - start, 0) + hour) for f in frames)
        total += len(frames)
        if verdicts.drop.any():
            wrong[path.name] = {abi.reason_name(int(reason)) for reason in verdicts.reason[verdicts.drop]}

    counted = plane.counters()
    plane.close()
    assert wrong == {}
    assert counted.frames == total > 30_000


@pytest.mark.shared_data
def test_captures_of_other_link_types_are_judged_or_refused_in_words() -> None:
    plane = replay_plane(UNLIMITED)
    judged, refused = 0, 0

    for path in sorted(Path(shared_data("malformed") / "other_linktypes").iterdir()):
        before = plane.counters().frames
        try:
            frames = list(read_capture(path))
        except CaptureError:
            refused += 1
            continue
        Replayer(plane).feed(frames)
        assert plane.counters().frames == before + len(frames)
        judged += 1

    plane.close()
    assert judged >= 4
    assert refused >= 40
