"""Nanoseconds per packet of a blocklist verdict, against the kernel's LPM trie and xdp-filter.

    .venv/bin/python -m bench.blocklist_lookup [--sizes 10000,1000000] [--rounds 5] [--json FILE]

Random sources, another one for every packet. Candidates take turns in every round; the figures are medians, net of the
harness (a program that only looks at the header, behind the same mutator). xdp-filter holds hosts only, because it
knows no prefixes; the others hold a mix of hosts and prefixes of the same number of entries. IPv6 is asked of the trie
alone. Ratios: ours divided by theirs (below 1 is better), except for the trie, where it is how many times cheaper.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.epidermis.blocklist import PAGES4, compile4
from actors.epidermis.blocklist6 import PAGES6, compile6
from actors.epidermis.prefixes import Prefixes
from bench.blocklist_harness import Harness, clean_sources, harness, listed_sources, made_up_list, xdp_filter
from bpf import bpffs

DROP = 1
Times = dict[str, list[int]]


def measure(family: int, size: int, rounds: int, seed: int) -> dict[str, Any]:
    """Medians in ns, net of the harness, for clean and blocked sources."""
    random = np.random.default_rng(seed)
    listed = made_up_list(family, size, random)
    hosts = made_up_list(family, size, random, hosts_only=True)
    pins = Path("/sys/fs/bpf/tegumentar-bench")
    bpffs.ensure(pins)
    try:
        with harness() as bench:
            return _in_turns(bench, listed, hosts, rounds, random, pins)
    finally:
        for path in pins.rglob("*"):
            path.unlink()
        pins.rmdir()


def _in_turns(
    bench: Harness, listed: Prefixes, hosts: Prefixes, rounds: int, random: np.random.Generator, pins: Path
) -> dict[str, Any]:
    family = listed.family
    classes = np.zeros(len(listed), np.uint8)
    if family == 4:
        bench.publish(compile4(listed, classes), PAGES4)
    else:
        bench.publish(compile6(listed, classes, random), PAGES6)
    bench.fill_trie(listed)
    theirs = xdp_filter((hosts.hi >> np.uint64(32)).astype(np.uint32), pins) if family == 4 else None
    programs = {name: bench.object.program_fd(f"{name}{family}") for name in ("floor", "image", "lpm")}
    mixed = {"clean": clean_sources(listed, random), "blocked": listed_sources(listed, random)}
    only_hosts = {"clean": clean_sources(hosts, random), "blocked": listed_sources(hosts, random)}

    times: Times = defaultdict(list)
    for _ in range(rounds):
        for kind in ("clean", "blocked"):
            bench.use_sources(mixed[kind])
            for name, program in programs.items():
                spent, verdict = bench.nanoseconds(family, program)
                assert name == "floor" or (verdict == DROP) == (kind == "blocked"), (name, kind)
                times[f"{name} {kind}"].append(spent)
            if theirs is not None:
                bench.use_sources(only_hosts[kind])
                spent, verdict = bench.nanoseconds(family, theirs[1])
                assert (verdict == DROP) == (kind == "blocked"), ("xdp-filter", kind, verdict)
                times[f"xdp-filter {kind}"].append(spent)
    return _summary(times, family, len(listed))


def _summary(times: Times, family: int, entries: int) -> dict[str, Any]:
    result: dict[str, Any] = {"family": family, "entries": entries, "floor_ns": {}, "net_ns": {}}
    for kind in ("clean", "blocked"):
        floor = statistics.median(times[f"floor {kind}"])
        result["floor_ns"][kind] = floor
        net = {
            name: max(statistics.median(times[f"{name} {kind}"]) - floor, 0.5)
            for name in ("image", "lpm", "xdp-filter")
            if f"{name} {kind}" in times
        }
        result["net_ns"][kind] = net
        result[f"lpm_times_dearer_{kind}"] = round(net["lpm"] / net["image"], 1)
        if "xdp-filter" in net:
            result[f"share_of_xdp_filter_{kind}"] = round(net["image"] / net["xdp-filter"], 3)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print(f"{'':16}{'clean: ours':>12}{'LPM':>8}{'x':>7}{'xdp-f.':>8}{'ratio':>7}", end="")
    print(f"{'blocked: ours':>15}{'LPM':>8}{'x':>7}{'xdp-f.':>8}{'ratio':>7}")
    for family in (4, 6):
        for size in map(int, options.sizes.split(",")):
            result = measure(family, size, options.rounds, options.seed)
            results.append(result)
            row = f"IPv{family} {result['entries']:>9,} "
            for kind, width in (("clean", 12), ("blocked", 15)):
                net = result["net_ns"][kind]
                row += f"{net['image']:>{width}.0f}{net['lpm']:>8.0f}{result[f'lpm_times_dearer_{kind}']:>7}"
                row += f"{net.get('xdp-filter', float('nan')):>8.0f}{result.get(f'share_of_xdp_filter_{kind}', ''):>7}"
            print(row, flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
