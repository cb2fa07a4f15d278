"""Bans in numbers: a hundred thousand at once, one more in their middle, and what an attacking source costs in memory.

The batches are those that the policy gate sends to the reflex cell (200 orders), carried out by the cell's own code:
written to the kernel, then proved with a synthetic packet through the program. The message itself is not in the clock.
"""

import statistics
import time
from pathlib import Path

from actors.core.messages import BATCH_LIMIT, Action, Order
from actors.epidermis import reflex_work
from bench.claims import Claim, Options, run
from bench.kernel import pins
from bpf.loader import KernelPlane
from bpf.program import Build

BANS, ALL_LIMIT_S, ONE_LIMIT_MS, MEDIAN_LIMIT_MS, BYTES_LIMIT = 100_000, 2.0, 100.0, 20.0, 1024
#: Batches between two single bans.
EVERY = 20
#: Tables that grow with attackers, if they were not bounded: what a source, its ban, its flow and its events take.
PER_SOURCE = ("sources", "source_rows", "bans", "ban_filters", "incidents", "meters", "flow_index", "flows")


def measure(options: Options) -> list[Claim]:
    count = 2_000 if options.quick else BANS
    totals, singles = [], []
    for _ in range(options.rounds):
        with pins() as directory:
            plane = KernelPlane(directory, Build())
            total, alone = _enforce(plane, count)
            totals.append(total)
            singles += alone
            bytes_each = _bytes_per_source(plane)
            plane.close()
    middle = "one more in their middle, "
    return [
        Claim(what="all of them written and proved", entries=count, ours=statistics.median(totals), unit="s",
              limit=ALL_LIMIT_S),
        Claim(what=middle + "worst", entries=count, ours=max(singles) * 1e3, unit="ms", limit=ONE_LIMIT_MS),
        Claim(what=middle + "median", entries=count, ours=statistics.median(singles) * 1e3, unit="ms",
              limit=MEDIAN_LIMIT_MS),
        Claim(what="kernel memory per source that can be held", entries=0, ours=bytes_each, unit="bytes",
              limit=BYTES_LIMIT),
    ]  # fmt: skip


def _enforce(plane: KernelPlane, count: int) -> tuple[float, list[float]]:
    """Seconds for all, and seconds for each single ban: it waits for the batch before it, which has begun."""
    orders = [_order(0x0B000000 + index) for index in range(count)]
    singles = []
    began = time.perf_counter()
    for number, start in enumerate(range(0, count, BATCH_LIMIT)):
        arrived = time.perf_counter()
        batch = orders[start : start + BATCH_LIMIT]
        assert not reflex_work.enforce(plane, batch).refused
        assert all(proof.holds for proof in reflex_work.prove(plane, [order.subject for order in batch]))
        if number % EVERY == 0:
            one = _order(0x0C000000 + number)
            assert not reflex_work.enforce(plane, [one]).refused
            assert reflex_work.prove(plane, [one.subject])[0].holds
            singles.append(time.perf_counter() - arrived)
    return time.perf_counter() - began, singles


def _order(address: int) -> Order:
    dotted = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))
    return Order(subject=dotted, action=Action.BAN, until_unix_s=0.0, reason="bench")


def _bytes_per_source(plane: KernelPlane) -> float:
    """What the kernel charges for the bounded tables, by the number of sources whose state they hold at most."""
    charged = sum(_charged(plane.program.maps[name]) for name in PER_SOURCE)
    return charged / (Build().source_sets * 4)


def _charged(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise OSError("the kernel does not say what its maps take")


if __name__ == "__main__":
    run(measure, __doc__)
