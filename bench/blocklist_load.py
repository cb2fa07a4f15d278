"""How long a list takes from text, and from prefixes, to enforced: the image against LPM trie, nft and ipset.

    .venv/bin/python -m bench.blocklist_load [--sizes 10000,100000,1000000] [--rounds 5] [--json FILE]

Ours: parse, judge, merge and compile (with the text for nft), write, read, swap; and compile plus swap alone. Medians
of so many rounds; nft and ipset run once each, in a network namespace of their own that ends with them, because a
million entries take them up to half a minute. All lists hold the same entries: nine in ten are hosts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.epidermis import prefixes
from actors.epidermis.blocklist import PAGES4, compile4
from actors.epidermis.feed_formats import parse
from actors.epidermis.feed_health import OwnNetworks, judge
from actors.epidermis.feed_sources import FeedSource
from actors.epidermis.feeds import BlocklistFiles, compile_feeds
from bench.blocklist_harness import Harness, harness, made_up_list
from bpf.blocklist_image import read_image


def from_text(bench: Harness, text: bytes, random: np.random.Generator) -> dict[str, float]:
    """Seconds of every step; the whole is what an operator waits for."""
    source = FeedSource.model_validate({"name": "list", "path": "/dev/null", "special": "subtract"})
    own = OwnNetworks()
    marks = [time.perf_counter()]
    parsed = parse(text)
    marks.append(time.perf_counter())
    healthy = judge(parsed, source, own)
    marks.append(time.perf_counter())
    compiled = compile_feeds([("list", healthy.v4, healthy.v6)], own, random)
    marks.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as directory:
        files = BlocklistFiles(Path(directory))
        files.write(compiled)
        image = read_image(files.snapshot4, 4, PAGES4)
    marks.append(time.perf_counter())
    os.close(bench.publish(image, PAGES4))
    marks.append(time.perf_counter())
    steps = dict(zip(("parse", "judge", "compile", "files", "swap"), np.diff(marks).tolist(), strict=True))
    return steps | {"text to enforced": marks[-1] - marks[0]}


def compile_and_swap(bench: Harness, listed: prefixes.Prefixes) -> float:
    started = time.perf_counter()
    image = compile4(listed, np.zeros(len(listed), np.uint8))
    os.close(bench.publish(image, PAGES4))
    return time.perf_counter() - started


def trie(listed: prefixes.Prefixes) -> float:
    """Filling a fresh LPM trie in batches; making it is not counted."""
    with harness() as bench:
        started = time.perf_counter()
        bench.fill_trie(listed)
        return time.perf_counter() - started


def tool(*command: str, text: str) -> float:
    """Seconds of one command in a network namespace of its own."""
    started = time.perf_counter()
    subprocess.run(["unshare", "--net", *command], input=text, text=True, check=True, capture_output=True)
    return time.perf_counter() - started


def nft_script(hosts: list[str], networks: list[str]) -> str:
    """Hosts in a hash set and networks in an interval set: the fastest that nft offers."""
    return (
        "table inet t {\n set hosts { type ipv4_addr; elements = { " + ", ".join(hosts) + " } }\n"
        " set networks { type ipv4_addr; flags interval; elements = { " + ", ".join(networks) + " } }\n}\n"
    )


def ipset_script(entries: list[str]) -> str:
    lines = [f"create t hash:net maxelem {len(entries) + 16} hashsize {max(1024, len(entries) // 4)}"]
    return "\n".join([*lines, *(f"add t {entry}" for entry in entries)]) + "\n"


def measure(size: int, rounds: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    listed = made_up_list(4, size, random)
    entries = prefixes.to_text(listed)
    text = "\n".join(entries).encode()
    times: dict[str, list[float]] = defaultdict(list)
    with harness() as bench:
        for _ in range(rounds):
            for step, seconds in from_text(bench, text, random).items():
                times[step].append(seconds)
            times["compile and swap"].append(compile_and_swap(bench, listed))
    times["LPM trie, batches"].append(trie(listed))
    hosts, networks = [e for e in entries if "/" not in e], [e for e in entries if "/" in e]
    times["nft, hash + interval set"].append(tool("nft", "-f", "-", text=nft_script(hosts, networks)))
    times["nft, one interval set"].append(tool("nft", "-f", "-", text=nft_script(["192.0.2.1"], entries)))
    times["ipset, hash:net"].append(tool("ipset", "restore", text=ipset_script(entries)))
    return {"entries": len(listed), "seconds": {name: statistics.median(found) for name, found in times.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(size, options.rounds, options.seed) for size in map(int, options.sizes.split(","))]
    print(f"{'seconds':28}" + "".join(f"{result['entries']:>12,}" for result in results) + f"{'against ours':>15}")
    for name in results[-1]["seconds"]:
        ratio = results[-1]["seconds"][name] / results[-1]["seconds"]["compile and swap"]
        row = "".join(f"{result['seconds'][name]:>12.3f}" for result in results)
        print(f"{name:28}{row}{ratio:>14.1f}x")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
