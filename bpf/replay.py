"""A capture through the very program, with the capture's own clock: what would the skin have done?

The program is loaded privately (no pins, no interface), time comes from the frames, and everything counts: budgets
fill and empty, bans begin and end, flows are accounted as they were then. Bans and counters of a running service are
not touched. About 200,000 frames a second.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bpf import abi
from bpf.dataplane import Ban, Counters, Policy
from bpf.loader import KernelPlane
from bpf.pcap import Frame, read_capture
from bpf.prog_run import MAX_FRAME, MIN_FRAME, Runner
from bpf.program import Build, EventPath

#: Frames between two reads of the event and sample rings: fewer than the rings hold.
CHUNK = 2_048
#: The clock must not stand at zero, where "never" lies; captures that carry no time start here.
EPOCH_NS = 1 << 40


Progress = Callable[[int, int], None]


class SampleSink(Protocol):
    """Who wants the payload samples while the replay runs."""

    def __call__(self, samples: list[tuple[Any, bytes]]) -> None: ...


@dataclass(slots=True)
class Verdicts:
    """One entry per frame, in order. reason: numbers (``bpf.abi.REASONS``); drop: the frame would be gone."""

    at_ns: npt.NDArray[np.int64]
    wire_bytes: npt.NDArray[np.uint32]
    reason: npt.NDArray[np.uint8]
    drop: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Replay:
    """What came of it. events: ``bpf.abi`` EVENT records in order; flows: FLOW records at the end; bans: those held."""

    verdicts: Verdicts
    counters: Counters
    events: npt.NDArray[Any]
    flows: npt.NDArray[Any]
    bans: list[Ban]
    frames: int = 0
    first_ns: int = 0
    last_ns: int = 0
    cut: int = 0  #: frames longer than the kernel takes in a test run, judged by their first bytes
    by_reason: dict[str, int] = field(default_factory=dict)


def replay_plane(policy: Policy | None = None, *, flow_sets: int = 65_536) -> KernelPlane:
    """A private data plane with a settable clock: ban, tolerate and publish before the frames come."""
    build = Build(live=False, replay=True, flow_sets=flow_sets, event_paths=(EventPath.RING,))
    return KernelPlane(None, build, policy)


class Replayer:
    """Feeds frames to a plane made by ``replay_plane``."""

    def __init__(self, plane: KernelPlane, kind: str = "xdp") -> None:
        self._plane = plane
        self._runner = Runner(plane.program.entries[kind], kind)
        self._knobs = plane.knobs
        self._last_ns = 0
        self.cut = 0

    def feed(self, frames: Iterable[Frame]) -> Verdicts:
        """Judge some frames. Time never runs backwards: a frame from before the last one gets the last one's time."""
        rows = []
        knobs, run = self._knobs, self._runner.run
        for frame in frames:
            data = frame.data
            if len(data) > MAX_FRAME:
                data = data[:MAX_FRAME]
                self.cut += 1
            elif len(data) < MIN_FRAME:
                data = data.ljust(MIN_FRAME, b"\0")  # an unreadable stump either way
            self._last_ns = now_ns = max(frame.at_ns, self._last_ns, EPOCH_NS)
            knobs["replay_now_ns"] = now_ns
            knobs["replay_wire_bytes"] = max(frame.wire_bytes, len(data))
            result = run(data)
            rows.append((now_ns, frame.wire_bytes, result.reason, result.drop))
        return _verdicts(rows)


def replay(
    path: Path,
    policy: Policy | None = None,
    *,
    plane: KernelPlane | None = None,
    progress: Progress | None = None,
    samples: SampleSink | None = None,
    flow_sets: int = 65_536,
) -> Replay:
    """Run a whole capture. progress gets the frames and captured bytes so far. Raises CaptureError and DataPlaneError.

    plane: one from ``replay_plane``, prepared with bans, tolerance or blocklists; it stays open for the caller."""
    own = plane is None
    plane = plane or replay_plane(policy, flow_sets=flow_sets)
    try:
        return _run(read_capture(path), plane, progress, samples)
    finally:
        if own:
            plane.close()


def _run(
    frames: Iterable[Frame],
    plane: KernelPlane,
    progress: Progress | None,
    samples: SampleSink | None,
) -> Replay:
    replayer = Replayer(plane)
    parts: list[Verdicts] = []
    events: list[npt.NDArray[Any]] = []
    source, done, size = iter(frames), 0, 0
    while chunk := list(islice(source, CHUNK)):
        parts.append(replayer.feed(chunk))
        events.append(plane.events.read())
        waiting = plane.samples.read(CHUNK)
        if samples is not None and waiting:
            samples(waiting)
        done += len(chunk)
        if progress is not None:
            size += sum(len(frame.data) for frame in chunk)
            progress(done, size)
    verdicts = _joined(parts)
    numbers, counts = np.unique(verdicts.reason, return_counts=True)
    return Replay(
        verdicts=verdicts,
        counters=plane.counters(),
        events=np.concatenate(events) if events else np.zeros(0, abi.EVENT),
        flows=plane.flows.read()[1],
        bans=plane.bans(),
        frames=done,
        first_ns=int(verdicts.at_ns[0]) if done else 0,
        last_ns=int(verdicts.at_ns[-1]) if done else 0,
        cut=replayer.cut,
        by_reason={abi.reason_name(int(n)): int(c) for n, c in zip(numbers, counts, strict=True)},
    )


def _verdicts(rows: Sequence[tuple[int, int, int, bool]]) -> Verdicts:
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return Verdicts(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.uint32),
        np.array(columns[2], np.uint8),
        np.array(columns[3], np.bool_),
    )


def _joined(parts: list[Verdicts]) -> Verdicts:
    if not parts:
        return _verdicts([])
    return Verdicts(
        np.concatenate([part.at_ns for part in parts]),
        np.concatenate([part.wire_bytes for part in parts]),
        np.concatenate([part.reason for part in parts]),
        np.concatenate([part.drop for part in parts]),
    )
