"""The whole program against an XDP firewall of the usual build, and what a spoofed flood leaves of established state.

Ours: parsing, blocklist, bans, rates, flows, counters, events, samples. Theirs (bench/conventional.bpf.c): LRU bans,
the list in an LPM trie, LRU rates per source, LRU flows. Same packets, a million entries each; candidates take turns.
Afterwards 1,000 established conversations stand while four million spoofed sources send one packet each.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.blocklist_harness import SOURCES, clean_sources, listed_sources, made_up_list
from bench.claims import Claim, Options, median_net, run
from bench.kernel import Loaded, Mutator, Skin, Sources, pins, stay_on_one_cpu
from bpf import abi, libbpf
from bpf.maps import shared_memory

ESTABLISHED = 1_000
BEYOND_FORGED = 0xDF000000  #: forged sources lie below
FLOOD_ROUNDS = 4
PROMISED = {"blocked": 0.15, "clean, 10,000 sources": 0.25, "spoofed churn": 0.06}


def measure(options: Options) -> list[Claim]:
    stay_on_one_cpu()
    claims = []
    for size in options.sizes() if options.quick else options.sizes()[::2]:
        claims += _against_conventional(size, options)
    return claims + _retention(options)


def _against_conventional(size: int, options: Options) -> list[Claim]:
    random = np.random.default_rng(options.seed)
    listed = made_up_list(4, size, random)
    clean, blocked = clean_sources(listed, random), listed_sources(listed, random)
    kinds: dict[str, Sources] = {"blocked": blocked}
    kinds |= {f"clean, {count:,} sources": clean[:count] for count in (1_000, 10_000, 100_000)}
    kinds["spoofed churn"] = clean
    packets = options.packets(size)
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with pins() as directory:
        mutator = Mutator(directory)
        candidates = [("floor", mutator.program("drop_at_once"))]
        # Each pair of classes gets fresh tables: what one class left behind is not what the next one meets.
        for kind, sources in kinds.items():
            with pins() as fresh:
                skin, usual = Skin(fresh, steps=False), Loaded("conventional", fresh)
                skin.publish(listed, random)
                usual.fill_trie(listed)
                pair = [*candidates, ("skin", skin.whole), ("usual", usual.program("conventional"))]
                mutator.use(sources)
                for _name, program in pair:
                    mutator.run(program, min(packets, len(sources)))  # tables as they are after a while
                for _ in range(options.rounds):
                    for name, program in pair:
                        if kind == "spoofed churn":
                            mutator.use(_forged(random))
                        times[kind, name].append(mutator.run(program, packets))
                skin.close()
                usual.object.close()
    claims = []
    for kind in kinds:
        floor = times[kind, "floor"]
        ours, theirs = median_net(times[kind, "skin"], floor), median_net(times[kind, "usual"], floor)
        limit = PROMISED.get(kind) if size >= 1_000_000 else None
        claims.append(
            Claim(what=f"pipeline, {kind}", entries=len(listed), ours=ours, unit="ns/packet", peer="LPM + LRU build",
                  theirs=theirs, limit=limit)
        )  # fmt: skip
    return claims


def _forged(random: np.random.Generator) -> Sources:
    """2^20 sources that nobody has seen: 1.0.0.0 to 222.255.255.255."""
    return _rows(random.integers(0x01000000, BEYOND_FORGED, SOURCES, dtype=np.uint64))


def _rows(addresses: npt.NDArray[np.uint64]) -> Sources:
    """IPv4 addresses as the mutator reads them."""
    rows = np.zeros((len(addresses), 16), np.uint8)
    rows[:, :4] = addresses.astype(">u4").view(np.uint8).reshape(-1, 4)
    return rows


def _retention(options: Options) -> list[Claim]:
    random = np.random.default_rng(options.seed)
    forged_each = 20_000 if options.quick else SOURCES
    established = _rows(np.arange(BEYOND_FORGED, BEYOND_FORGED + ESTABLISHED, dtype=np.uint64))
    with pins() as directory:
        mutator, skin = Mutator(directory), Skin(directory, steps=False)
        mutator.use(established)
        mutator.run(skin.whole, 20 * ESTABLISHED)
        before = _standing(skin, established)
        for _ in range(FLOOD_ROUNDS):
            mutator.use(_forged(random))
            mutator.run(skin.whole, forged_each)
        flows, sources = _standing(skin, established)
        skin.close()
    assert before == (ESTABLISHED, ESTABLISHED), before
    flood = f"after {FLOOD_ROUNDS * forged_each:,} spoofed sources"
    return [
        Claim(
            what=f"established {name} left {flood}",
            entries=0,
            ours=left,
            unit=f"of {ESTABLISHED:,}",
            limit=ESTABLISHED,
            more_is_better=True,
        )
        for name, left in (("flows", flows), ("source states", sources))
    ]


def _standing(skin: Skin, established: Sources) -> tuple[int, int]:
    """How many of the established sources still have their flow record, and their rate state."""
    wanted = np.ascontiguousarray(established[:, :4])
    records = skin.plane.flows.read()[1]
    initiators = np.ascontiguousarray(records["key"]["addr"][:, 0, 12:])
    fd = skin.plane.program.maps["sources"]
    sets = shared_memory(fd, abi.SOURCE_SET, libbpf.map_info(fd).max_entries)
    tags = sets["tag"][(sets["seen"] & 1) == 1]
    states = np.uint64(0xFFFF00000000) | wanted.view("<u4").reshape(-1).astype(np.uint64)
    return int(np.isin(_words(wanted), _words(initiators)).sum()), int(np.isin(states, tags).sum())


def _words(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return rows.view("<u4").reshape(-1)


if __name__ == "__main__":
    run(measure, __doc__)
