"""The kernel program as a flow source: a capture through the very program, its flow table shown tick by tick."""

from collections.abc import Iterator
from pathlib import Path

from bpf.dataplane import Policy, Stance
from bpf.pcap import Frame, read_capture
from bpf.replay import Replayer, replay_plane
from ml.meter import TICK_NS, Tick
from ml.records import check

SETS = 16_384


class KernelSource:
    """Nothing is dropped (the program only observes), so the table sees what the meter sees."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ticks(self, period_ns: int = TICK_NS) -> Iterator[Tick]:
        plane = replay_plane(Policy(stance=Stance.OBSERVE), flow_sets=SETS)
        try:
            replayer, due, waiting = Replayer(plane), 0, list[Frame]()

            def show(now_ns: int) -> Tick:
                replayer.feed(waiting)
                waiting.clear()
                plane.events.read()
                plane.samples.read(1 << 20)
                slots, flows = plane.flows.read(max(1, now_ns - 20_000_000_000 - period_ns))
                return Tick.of_copies(now_ns, slots, check(flows))

            for frame in read_capture(self.path):
                due = due or frame.at_ns + period_ns
                while frame.at_ns >= due:
                    yield show(due)
                    due += period_ns
                waiting.append(frame)
            for _ in range(44):
                yield show(due)
                due += period_ns
        finally:
            plane.close()
