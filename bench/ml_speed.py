"""Speed and size of the learning path, as ratios where a ratio means something.

    OPENBLAS_NUM_THREADS=1 .venv/bin/python -m bench.ml_speed [--model DIR] [--json]

Flows per second from a table of flow records to blamed sources, on one thread (hence the variable) and in processor
time; the feature build against a plain Python loop over the same records; the time one tick takes (a verdict is at
most a tick and this old); and the state held after a million forged sources.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ml.features import Habits, extract
from ml.flows import FlowReader, Snapshots
from ml.meter import TICK_NS, Tick
from ml.own import parse_own
from ml.records import FLOW, PROTO_TCP, SYN
from ml.serve import Scorer
from ml.watch import Watch

MODEL = Path("ml/models/lab-example")
REPEATS = 7


def made_up_flows(count: int, sources: int, seed: int = 0) -> np.ndarray:
    """Closed web sessions of random size from so many sources, as records."""
    rng = np.random.default_rng(seed)
    flows = np.zeros(count, FLOW)
    flows["key"]["family"], flows["key"]["proto"] = 4, PROTO_TCP
    flows["key"]["addr"][:, :, 10:12] = 255
    source = rng.integers(0, sources, count, dtype="u4")
    flows["key"]["addr"][:, 0, 12:] = source.byteswap().view("u1").reshape(-1, 4)
    flows["key"]["addr"][:, 1, 12:] = (192, 0, 2, 10)
    flows["key"]["port"][:, 0] = rng.integers(1024, 65535, count)
    flows["key"]["port"][:, 1] = rng.choice([80, 443, 22, 25, 8080], count)
    flows["incarnation"] = np.arange(1, count + 1)
    start = 10_000_000_000 + rng.integers(0, TICK_NS, count)
    flows["last_ns"] = start + rng.integers(0, 10_000_000, count)
    for side in (0, 1):
        one = flows["side"][:, side]
        one["first_ns"], one["last_ns"] = start, flows["last_ns"]
        one["packets"] = rng.integers(3, 30, count)
        one["payload_bytes"] = rng.integers(0, 20_000, count)
        one["wire_bytes"] = one["payload_bytes"] + 54 * one["packets"]
        one["payload_sumsq"] = one["payload_bytes"] * 700
        one["payload_max"] = 1400
        one["sizes"][:, 2] = one["packets"]
        one["flags"][:, SYN], one["flags"][:, 0] = 1, 1
        one["flags"][:, 4] = one["packets"] - 1
    return flows


def best_of(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Processor seconds of the fastest of some runs: time that other work on the machine took does not count."""
    times = []
    for _ in range(repeats):
        begin = time.thread_time()
        action()
        times.append(time.thread_time() - begin)
    return min(times)


def end_to_end(scorer: Scorer, flows: np.ndarray) -> float:
    """Flows per second from the table to the judge, new flows only."""
    tick = Tick(10_000_000_000 + 2 * TICK_NS, flows, np.arange(len(flows)))
    own = parse_own(["192.0.2.10"])
    watches = iter([Watch(scorer, own, len(flows)) for _ in range(REPEATS)])
    return len(flows) / best_of(lambda: next(watches).tick(tick))


def feature_ratio(flows: np.ndarray, habits: Habits) -> tuple[float, float]:
    """(flows per second, times faster than a loop that does the same flow by flow)."""
    shown = FlowReader(len(flows)).tick(Tick(10_000_000_000 + 2 * TICK_NS, flows, np.arange(len(flows))))
    vectorised = len(flows) / best_of(lambda: extract(shown, habits))
    few = [_row(shown, i) for i in range(500)]
    looped = len(few) / best_of(lambda: [plain_features(row) for row in few], 3)
    return vectorised, vectorised / looped


def plain_features(flow: Any) -> list[float]:
    """The same kind of features as a newcomer would write them: Python numbers, one flow at a time."""
    out: list[float] = []
    key, last, sides = flow["key"], int(flow["last_ns"]), flow["side"]
    for side in sides:
        packets, payload = int(side["packets"]), int(side["payload_bytes"])
        mean = payload / max(packets, 1)
        out += [math.log1p(packets), math.log1p(int(side["wire_bytes"])), math.log1p(payload), mean / 1500]
        out.append(math.sqrt(max(int(side["payload_sumsq"]) / max(packets, 1) - mean * mean, 0)) / 1500)
        out.append(int(side["payload_max"]) / 1500)
        out += [int(n) / max(packets, 1) for n in side["sizes"]]
        gap = int(side["iat_sum_ns"]) * 1e-6 / max(packets - 1, 1)
        out += [math.log1p(gap), math.log1p(int(side["iat_max_us"]) * 1e-3)]
        spread = int(side["iat_sumsq_us"]) * 1e-6 / max(packets - 1, 1) - gap * gap
        out.append(math.log1p(math.sqrt(max(spread, 0))))
        out += [int(side["flags"][flag]) / max(packets, 1) for flag in (1, 0, 2, 3)]
    alive = (last - min(int(side["first_ns"]) for side in sides)) * 1e-6
    out += [math.log1p(max(alive, 0)), out[1] - out[24], float(int(key["proto"]) == 6), float(int(key["proto"]) == 17)]
    out += [
        math.log1p(sum(int(side[name]) for side in sides)) for name in ("illegal_flags", "fragments", "syn_retries")
    ]
    return out


def _row(shown: Snapshots, i: int) -> Any:
    return shown.flows[i]


def tick_times(scorer: Scorer, flows_per_tick: int, ticks: int = 60) -> tuple[float, float]:
    """(median, 99th percentile) seconds of one tick with so many new flows: what a verdict ages beyond the tick."""
    watch, spent = Watch(scorer, parse_own(["192.0.2.10"])), []
    for i in range(ticks):
        flows = made_up_flows(flows_per_tick, 500, seed=i)
        flows["incarnation"] += i * flows_per_tick
        begin = time.perf_counter()
        watch.tick(Tick(10_000_000_000 + 2 * TICK_NS + i * TICK_NS, flows, np.arange(flows_per_tick)))
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent)), float(np.quantile(spent, 0.99))


def flood(scorer: Scorer, total: int = 1_000_000, per_tick: int = 50_000) -> tuple[int, float]:
    """(bytes of state, flows per second) while a million sources send one flow each."""
    watch, spent = Watch(scorer, parse_own(["192.0.2.10"]), 131_072), 0.0
    for i in range(total // per_tick):
        flows = made_up_flows(per_tick, 2**32 - 1, seed=1000 + i)
        flows["incarnation"] += i * per_tick
        begin = time.thread_time()
        watch.tick(Tick(10_000_000_000 + 2 * TICK_NS + i * TICK_NS, flows, np.arange(per_tick)))
        spent += time.thread_time() - begin
    return watch.nbytes, total / spent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ml_speed", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scorer = Scorer.load(args.model)
    flows = made_up_flows(60_000, 2_000)
    built, ratio = feature_ratio(flows[:20_000], scorer.model.habits)
    median, worst = tick_times(scorer, 2_000)
    state, flooded = flood(scorer)
    figures = {
        "end_to_end_flows_per_s": round(end_to_end(scorer, flows)),
        "feature_build_flows_per_s": round(built),
        "feature_build_times_plain_loop": round(ratio, 1),
        "tick_of_2000_flows_median_s": round(median, 4),
        "verdict_age_p99_s": round(TICK_NS * 1e-9 + worst, 3),
        "state_megabytes_after_a_million_sources": round(state / 1e6, 1),
        "flood_flows_per_s": round(flooded),
    }
    print(
        json.dumps(figures, indent=1) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
