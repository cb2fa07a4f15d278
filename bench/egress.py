"""What it costs to account a frame that leaves, beside what the program on the way in costs at the same hook.

    python -m bench.egress [--rounds N] [--quick]

Test runs of the very programs in the kernel, interleaved, on one core, one conversation that is warm in the caches: the
ratios say how the programs compare, not what a loaded server pays for memory. A frame is what the stack hands down:
up to 64 KB of joined segments.
"""

import argparse
import statistics
from collections import defaultdict

from bench.kernel import stay_on_one_cpu, tcp_frame
from bpf import libbpf
from bpf.dataplane import Budget, Policy
from bpf.loader import KernelPlane
from bpf.program import Build

OFF = Budget(0, 0)
UNLIMITED = Policy(syn=OFF, udp=OFF, icmp=OFF, fragment=OFF, total=OFF, syn_dest=OFF, sample_bytes=0)


def turned(frame: bytes, flags: int, port: int) -> bytes:
    """The frame's answer: addresses and ports change places, and the port it goes to is another where one is given."""
    back = frame[:26] + frame[30:34] + frame[26:30] + frame[36:38] + port.to_bytes(2, "big") + frame[38:]
    return back[:47] + bytes([flags]) + back[48:]


_SYN, _ACK = 2, 16
COMES = tcp_frame()
LEAVES = turned(COMES, _ACK, 40_000)
ORPHAN = turned(COMES, _SYN | _ACK, 41_000)
#: name, entry point, frame; the first is what the others are compared with.
CASES = (
    ("comes in, judged and accounted (tc)", "tc", COMES),
    ("comes in, judged and accounted (XDP)", "xdp", COMES),
    ("leaves, accounted", "egress", LEAVES),
    ("leaves, answer without a record", "egress", ORPHAN),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.egress", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    stay_on_one_cpu()
    packets, rounds = (10_000, 3) if options.quick else (200_000, options.rounds)
    plane = KernelPlane(None, Build(live=False), UNLIMITED)
    try:
        runners = {name: libbpf.TestRunner(plane.program.entries[kind]) for name, kind, _ in CASES}
        times: dict[str, list[int]] = defaultdict(list)
        for lap in range(rounds + 1):
            for name, _, frame in CASES:
                took = runners[name].nanoseconds(frame, packets)
                if lap:  # the first lap opens the record
                    times[name].append(took)
    finally:
        plane.close()
    first = times[CASES[0][0]]
    for name, _, _ in CASES:
        ratio = statistics.median(one / other for one, other in zip(times[name], first, strict=True))
        print(f"{name:40} {min(times[name]):5} ns at best, {statistics.median(times[name]):6.0f} median, {ratio:.2f}x")


if __name__ == "__main__":
    main()
