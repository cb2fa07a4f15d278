"""Events up from the kernel: how fast the ring is drained at most, and what a million a second costs.

The real program makes them: every packet comes from another listed source, so each is an incident of its own, and the
event budget is lifted. For the ceiling a full ring is read as fast as it goes. For the live figure one process makes
events on one CPU while this one waits for the ring on another, reads, and measures its own processor time; whatever
does not fit the ring must be counted by the program, to the last one.
"""

import json
import os
import select
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.epidermis.blocklist import compile4
from bench.blocklist_harness import listed_sources, made_up_list
from bench.claims import Claim, Options, run
from bench.kernel import Mutator, pins, tcp_frame
from bpf import libbpf
from bpf.dataplane import Budget, Policy
from bpf.loader import KernelPlane
from bpf.maps import SnapshotSlot
from bpf.program import Build

RING_BYTES = 1 << 24
CEILING_PER_S, LIVE_PER_S, LIVE_CPU = 20e6, 1_000_000, 0.20
#: Events gather for so long before they are read: waking up costs more than reading.
GATHER_S = 0.01
#: Packets of one test run of the producer; beginning one takes the kernel some milliseconds.
BURST = 50_000
UNLIMITED = Policy(events=Budget(1e9, 4_000_000), incident_s=0.0)


@dataclass(frozen=True)
class Live:
    """One live run. came: what the program sent or counted as lost, by its own counters."""

    came: int
    read: int
    lost: int
    per_s: float
    cpu: float


def measure(options: Options) -> list[Claim]:
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[-1]})
    random = np.random.default_rng(options.seed)
    hosts = made_up_list(4, 100_000, random, hosts_only=True)
    with pins() as directory:
        plane = KernelPlane(directory, Build(live=False, event_ring_bytes=RING_BYTES), UNLIMITED)
        mutator = Mutator(directory)
        image = compile4(hosts, np.zeros(len(hosts), np.uint8))
        SnapshotSlot(plane.program.maps["snapshot"], 4).publish_pages(image.pages)
        mutator.use(listed_sources(hosts, random))
        ceiling = statistics.median(_drain(plane, mutator) for _ in range(options.rounds))
        libbpf.pin(mutator.program("mutate4"), directory / "producer")
        seconds = 0.5 if options.quick else 3.0
        runs = [_live(plane, directory / "producer", cpus[0], seconds) for _ in range(options.rounds)]
        plane.close()
    live = sorted(runs, key=lambda one: one.cpu)[len(runs) // 2]
    unaccounted = max(abs(one.came - one.read - one.lost) for one in runs)
    return [
        Claim(what="events drained, ceiling", entries=0, ours=ceiling / 1e6, unit="million/s", more_is_better=True,
              limit=CEILING_PER_S / 1e6),
        Claim(what=f"reading {live.per_s / 1e6:.2f} million events a second", entries=0, ours=live.cpu,
              unit="of a core", limit=LIVE_CPU),
        Claim(what="events lost meanwhile, counted", entries=0, ours=live.lost, unit="events"),
        Claim(what="events neither read nor counted as lost", entries=0, ours=unaccounted, unit="events", limit=0),
    ]  # fmt: skip


def _drain(plane: KernelPlane, mutator: Mutator) -> float:
    """Events a second out of a full ring."""
    whole = plane.program.entries["xdp"]
    while len(plane.events.read()):
        pass
    mutator.run(whole, RING_BYTES // 64)
    began, count = time.perf_counter(), 0
    while got := len(plane.events.read()):
        count += got
    return count / (time.perf_counter() - began)


def _live(plane: KernelPlane, producer: Path, cpu: int, seconds: float) -> Live:
    before = plane.counters().tally
    argv = [sys.executable, "-m", "bench.events", "--produce", str(producer), str(cpu), str(seconds)]
    poll = select.epoll()
    poll.register(plane.events.fd, select.EPOLLIN)
    read = 0
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as making:
        assert making.stdout is not None
        making.stdout.readline()  # it has started
        began, spent = time.perf_counter(), time.process_time()
        while making.poll() is None:
            poll.poll(0.05)
            read += len(plane.events.read())
            time.sleep(GATHER_S)
        spent, took = time.process_time() - spent, time.perf_counter() - began
    while got := len(plane.events.read()):
        read += got
    poll.close()
    after = plane.counters().tally
    sent, lost = (after[name] - before[name] for name in ("events_sent", "events_lost"))
    return Live(sent + lost, read, lost, (sent + lost) / took, spent / took)


def produce(pin: str, cpu: str, seconds: str) -> None:
    """The other process: so many events a second, in bursts, on one CPU."""
    os.sched_setaffinity(0, {int(cpu)})
    runner = libbpf.TestRunner(libbpf.get_pinned(Path(pin)))
    print(json.dumps("started"), flush=True)
    began, made = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < float(seconds):
        if made < now * LIVE_PER_S:
            runner.nanoseconds(tcp_frame(), BURST)
            made += BURST
        else:
            time.sleep(0.001)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--produce"]:
        produce(*sys.argv[2:5])
    else:
        run(measure, __doc__)
