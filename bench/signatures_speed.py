"""How fast 300 patterns are tried on one core: ``python -m bench.signatures_speed``.

Streams of HTTP-like traffic in packets of 1,460 bytes go through the engine as the macrophage uses it (stream mode, one
match per pattern), beside a plain loop over compiled ``re`` patterns in the same run. One word in ten nearly matches a
pattern; ``dense`` is traffic of such words alone, the worst that a sender can do. Prints MB/s and the ratio.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable

from actors.dermis.inspection.signature_engine import build

PATTERNS, PACKET = 300, 1_460
WORDS = [
    "select", "union", "insert", "admin", "passwd", "shell", "exec", "cmd", "script", "alert", "eval", "base64",
    "system", "wget", "curl", "tmp", "etc", "bin",
]  # fmt: skip


def patterns(random_: random.Random) -> list[bytes]:
    """Half of them plain words with a tail, the rest with classes, gaps and alternatives, as real signatures are."""
    made: set[bytes] = set()
    while len(made) < PATTERNS:
        one, two, tail = random_.choice(WORDS), random_.choice(WORDS), random_.randbytes(3).hex()
        shape = random_.choice(
            ["{0}{2}", "(?i){0}_{2}", "(?i){0}[^\\n]{{1,40}}{1}{2}", "(?:{0}|{1})=[0-9a-f]{{2,8}}{2}"]
        )
        made.add(shape.format(one, two, tail).encode())
    return sorted(made)


def traffic(random_: random.Random, packets: int, *, dense: bool = False) -> list[bytes]:
    """Requests and pages in packets of full size; words of the patterns are a tenth of all, or nearly all."""
    ordinary = ["".join(random_.choices("etaoinshrdlu", k=random_.randint(2, 9))) for _ in range(9 * len(WORDS))]
    words = [*WORDS, *([] if dense else ordinary), "the", "page", "index.html", "HTTP/1.1", "Mozilla/5.0", "a=1&b=2"]
    text = bytearray()
    while len(text) < packets * PACKET:
        line = " ".join(random_.choices(words, k=9))
        text += f"GET /{line} {random_.random()}\r\n".encode()
    return [bytes(text[at : at + PACKET]) for at in range(0, packets * PACKET, PACKET)]


def best_mbps(run: Callable[[], None], size: int, rounds: int) -> float:
    """The best of some rounds, by the time that this process had a core: others may use the machine meanwhile."""
    best = 0.0
    for _ in range(rounds):
        began = time.process_time()
        run()
        best = max(best, size / (time.process_time() - began) / 1e6)
    return best


def measure(packets: int = 4_000, rounds: int = 9) -> dict[str, float | int | str]:
    random_ = random.Random(7)  # the same traffic every time
    wanted, sent = patterns(random_), traffic(random_, packets)
    worst = traffic(random_, packets, dense=True)
    engine = build(wanted).engine
    plain = [re.compile(pattern, re.S) for pattern in wanted]

    def streamed(packets_: list[bytes]) -> None:
        for first in range(0, len(packets_), 12):  # a flow is sampled up to 16 KiB: about 12 packets
            scan = engine.stream()
            for packet in packets_[first : first + 12]:
                scan.feed(packet)
            scan.close()

    few = sent[: max(1, packets // 40)]

    def looped() -> None:
        for packet in few:
            for pattern in plain:
                pattern.search(packet)

    ours = best_mbps(lambda: streamed(sent), packets * PACKET, rounds)
    dense = best_mbps(lambda: streamed(worst), packets * PACKET, rounds)
    loop = best_mbps(looped, len(few) * PACKET, 2)
    return {
        "engine": engine.name,
        "patterns": len(wanted),
        "mb_per_s": round(ours, 1),
        "dense_mb_per_s": round(dense, 1),
        "re_loop_mb_per_s": round(loop, 2),
        "ratio": round(ours / loop, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    figures = measure()
    if chosen.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
