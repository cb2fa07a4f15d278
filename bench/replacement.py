"""Replacing the kernel program under a flood of blocked packets: how many get through meanwhile. None may.

    generator ── g0 ═ v0 ── node

Live frames of banned sources arrive without a pause while the program is replaced again and again, as an upgrade of the
service does it: another build takes the place of the hanging one in one step. Beside it, in the same rounds and under
the same flood, what loaders usually do: detach, and attach again. What IP has received on the node is what got through.
"""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.admin.lab.net import Namespace
from bench.claims import Claim, Options, run
from bench.kernel import Mutator, pins, tcp_frame
from bench.wire import gro_on
from bpf import libbpf
from bpf.dataplane import Ban, Rung
from bpf.loader import KernelPlane
from bpf.program import Build

REPLACEMENTS, QUICK_REPLACEMENTS = 40, 4
#: Between two replacements, so that the flood meets each of the two programs.
REST_S = 0.01
BANNED = 256
FAR, NEAR = "v0", "g0"
SMALL = Build(max_bans=4_096, source_sets=1_024, flow_sets=1_024, meters=1_024)


@dataclass(frozen=True)
class Outcome:
    """Of so many replacements. met: packets that arrived meanwhile; passed: of these, what reached the stack."""

    met: int
    passed: int
    each_s: float


def measure(options: Options) -> list[Claim]:
    count = QUICK_REPLACEMENTS if options.quick else REPLACEMENTS
    claims = []
    with _node() as node:
        for rung in (Rung.NATIVE, Rung.GENERIC):
            ours, theirs = [], []
            for _ in range(options.rounds):
                ours.append(node.replaced(rung, count, node.in_one_step))
                theirs.append(node.replaced(rung, count, node.detached_between))
            assert all(one.met > count for one in [*ours, *theirs]), "there was no flood"
            claims += [
                Claim(what=f"packets through while replaced, {rung}", entries=0, ours=sum(one.passed for one in ours),
                      unit=f"of {sum(one.met for one in ours):,}", peer="detach and attach again",
                      theirs=sum(one.passed for one in theirs), limit=0.0),
                Claim(what=f"one replacement, {rung}", entries=0,
                      ours=statistics.median(one.each_s for one in ours) * 1e3, unit="ms",
                      peer="detach and attach again", theirs=statistics.median(one.each_s for one in theirs) * 1e3),
            ]  # fmt: skip
    return claims


class _Node:
    """Two builds of the program over the same tables, and a wire full of banned packets."""

    def __init__(self, space: Namespace, generator: Namespace, mutator: Mutator, builds: list[KernelPlane]) -> None:
        self._space, self._generator, self._mutator, self._builds = space, generator, mutator, builds
        self._mac = bytes.fromhex(space.mac(FAR).replace(":", ""))

    def replaced(self, rung: Rung, count: int, replacement: Callable[[KernelPlane, Rung], None]) -> Outcome:
        with self._space.entered():
            self._builds[0].attach(FAR, (rung,))
            with self._flood():
                met, passed, spent = self._met(), self._passed(), 0.0
                for lap in range(count):
                    began = time.perf_counter()
                    replacement(self._builds[(lap + 1) % 2], rung)
                    spent += time.perf_counter() - began
                    time.sleep(REST_S)
                outcome = Outcome(self._met() - met, self._passed() - passed, spent / count)
            self._builds[0].detach(FAR)
        return outcome

    @staticmethod
    def in_one_step(plane: KernelPlane, rung: Rung) -> None:
        assert plane.attach(FAR, (rung,)).adopted, "the program was hung anew"

    @staticmethod
    def detached_between(plane: KernelPlane, rung: Rung) -> None:
        plane.detach(FAR)
        plane.attach(FAR, (rung,))

    @contextlib.contextmanager
    def _flood(self) -> Iterator[None]:
        """Without a pause, from a thread of its own: the kernel works there, not the interpreter."""
        send, over, begun = self._mutator.program("send4"), threading.Event(), threading.Event()

        def pour() -> None:
            with self._generator.entered():
                self._mutator.send_through(socket.if_nametoindex(NEAR))
                while not over.is_set():
                    libbpf.send_frames(send, tcp_frame(mac=self._mac), 2_000)
                    begun.set()

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            begun.wait(10)
            yield
        finally:
            over.set()
            thread.join()

    def _met(self) -> int:
        """Frames that arrived, by the device."""
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        return next(int(line.split(":")[1].split()[1]) for line in lines if line.strip().startswith(f"{FAR}:"))

    def _passed(self) -> int:
        """IPv4 packets that reached the stack."""
        names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()[:2])
        return int(values[names.index("InReceives")])


@contextlib.contextmanager
def _node() -> Iterator[_Node]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(pins())
        generator = stack.enter_context(Namespace("generator"))
        space = stack.enter_context(Namespace("replaced"))
        generator.ip(f"link add {NEAR} type veth peer name {FAR} netns {space.name}", f"link set {NEAR} up")
        space.ip(f"link set {FAR} up")
        sources = np.zeros((BANNED, 16), np.uint8)
        sources[:, :4] = [(203, 0, 113, last) for last in range(BANNED)]
        with space.entered():
            gro_on(FAR)  # without it a veth takes no frames that were redirected to its peer
            builds = [KernelPlane(directory, build) for build in (SMALL, replace(SMALL, sampling=False))]
        for plane in builds:
            stack.callback(plane.close)
        builds[0].ban([Ban(f"203.0.113.{last}") for last in range(BANNED)])
        mutator = Mutator(directory)
        mutator.use(sources)
        yield _Node(space, generator, mutator, builds)


if __name__ == "__main__":
    run(measure, __doc__)
