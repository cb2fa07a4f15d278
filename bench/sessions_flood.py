"""What a million forged sources cost the mast cell: flows per second, age of a verdict, memory. One thread.

    OPENBLAS_NUM_THREADS=1 python -m bench.sessions_flood [--json]

Each look brings 50,000 new flows from sources never seen before, between them one patient scanner. Measured from the
table to the verdict: reading it, the plain rules, and a model's windows, heads and judge (the shipped example serves).
The rate is given in time of the wall and of the processor: on a machine that others share, only the second is ours. A
verdict is as old as the look that a flow just missed, plus the look that shows it. The plain loop beside it only reads
three fields of each row.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from actors.core import thrift
from actors.dermis.mast_cell_mind import Mind
from actors.dermis.mast_cell_pool import Samples
from actors.dermis.sessions import Host
from bench.ml_speed import made_up_flows
from ml import promotion
from ml.meter import TICK_NS, Tick
from ml.own import parse_own
from ml.records import FLOW, PROTO_TCP, SYN

LOOKS, FLOWS = 20, 50_000
MODEL = Path(__file__).resolve().parents[1] / "ml/models/lab-example"
SCANNER = "198.51.100.7"


def flood(rng: np.random.Generator, look: int, now_ns: int) -> np.ndarray:
    """A full table of first packets; row 0 is the scanner's."""
    table = np.zeros(FLOWS, FLOW)
    key, side = table["key"], table["side"][:, 0]
    key["addr"][:, :, 10:12] = 255
    key["addr"][:, 0, 12:] = rng.integers(1, 256, (FLOWS, 4))
    key["addr"][0, 0, 12:] = (198, 51, 100, 7)
    key["addr"][:, 1, 12:] = (192, 0, 2, 10)
    key["port"][:, 0], key["port"][:, 1] = rng.integers(1024, 65536, FLOWS), rng.integers(1, 1024, FLOWS)
    key["port"][0, 1] = 2000 + look
    key["proto"], key["family"], table["incarnation"] = PROTO_TCP, 4, look + 1
    side["packets"], side["wire_bytes"] = 1, 60
    side["flags"][:, SYN] = 1
    side["first_ns"] = side["last_ns"] = now_ns - 600_000_000
    table["last_ns"] = now_ns - 600_000_000
    return table


def awake(state: Path) -> Mind:
    """The cell's attention with a model in service, on a host of one address."""
    promotion.promote(state / "models", MODEL, time.time(), shadow_s=0)
    (state / "pool").mkdir()
    mind = Mind(state / "models", FLOWS, (22,), Samples(state / "pool", 128))
    mind.host = Host(parse_own(["192.0.2.10"]))
    mind.eyes.refresh(mind.host)
    return mind


def measure(state: Path) -> dict[str, float | int | str]:
    rng, mind = np.random.default_rng(1), awake(state)
    answered, early_ns = made_up_flows(2_000, 500), 10_000_000_000 + 2 * TICK_NS
    mind.examine(Tick(early_ns, answered, np.arange(len(answered))), (), 0)  # now it knows that it sees both directions
    first_ns = 999_000_000_000  # and after this look everything is loaded
    mind.examine(Tick(first_ns, flood(rng, 0, first_ns), np.arange(FLOWS)), (), 0)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, worked, loops, found = [], [], [], set()
    for look in range(1, LOOKS + 1):
        now_ns = (1000 + look) * 1_000_000_000
        table = flood(rng, look, now_ns)
        began, began_cpu = time.perf_counter(), time.thread_time()
        seen = mind.examine(Tick(now_ns, table, np.arange(FLOWS)), (), 200)
        wall.append(time.perf_counter() - began)
        worked.append(time.thread_time() - began_cpu)
        found |= {finding.subject for finding in seen.findings}
        began_cpu = time.thread_time()
        sum(int(row["key"]["port"][1]) + int(row["last_ns"]) + int(row["incarnation"]) for row in table[:2_000])
        loops.append((time.thread_time() - began_cpu) * FLOWS / 2_000)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    return {
        "forged_sources": LOOKS * FLOWS,
        "flows_per_s": round(LOOKS * FLOWS / sum(wall)),
        "flows_per_processor_s": round(LOOKS * FLOWS / sum(worked)),
        "times_a_plain_loop": round(sum(loops) / sum(worked), 2),
        "verdict_age_p99_s": round(TICK_NS * 1e-9 + float(np.quantile(wall, 0.99)), 3),
        "state_megabytes": round(mind.eyes.nbytes / 1e6, 1),
        "grown_megabytes": round(grown_kb / 1024, 1),
        "suspects": len(mind.watchlist.suspects),
        "evicted": mind.watchlist.evicted,
        "scanner_found": SCANNER in found,
        "model": mind.eyes.state,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sessions_flood", description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    state = Path(tempfile.mkdtemp(prefix="tegumentar-flood-"))
    thrift.one_heap()  # as in every cell of the service
    try:
        figures = measure(state)
    finally:
        shutil.rmtree(state)
    print(
        json.dumps(figures, indent=1)
        if args.json
        else "\n".join(f"{name:24} {value:>14}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
