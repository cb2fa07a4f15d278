"""Nanoseconds per packet of each kind of verdict: the skin's blocklist and bans, and its whole program, against
xdp-filter's own object and the kernel's LPM trie.

Random sources, another one for every packet; candidates take turns in every round; medians, net of the harness (the
same mutator in front of a program that drops at once). xdp-filter holds hosts, because it knows no prefixes; skin and
trie hold hosts and prefixes of the same number. "lookup" is blocklist and bans behind the least that finds the source,
as trie and xdp-filter do it; "parsed lookup" has the whole parser and the malformed frames; "whole program" adds rates,
flows, counters, events and payload sampling.
"""

from collections import defaultdict

import numpy as np

from actors.epidermis.prefixes import Prefixes
from bench.blocklist_harness import clean_sources, listed_sources, made_up_list
from bench.claims import Claim, Options, median_net, run
from bench.kernel import Loaded, Mutator, Skin, Sources, pins, stay_on_one_cpu, tcp_frame, xdp_filter
from bpf.dataplane import Ban, Budget, Policy

DROP, PASS = 1, 2
#: A rate that everybody is over, and no ban for it: each packet is judged by the budget and dropped by it.
STRICT = Policy(syn=Budget(0.001, 1), ban_s=0, incident_s=3600, syn_dest=Budget(0, 0))
#: What was promised, with a million entries: share of xdp-filter, and how many times cheaper than the trie.
PROMISED = {("clean", 4): 0.2, ("blocked", 4): 0.5}
AGAINST_TRIE = {("clean", 4): 25.0, ("blocked", 4): 5.0, ("clean", 6): 6.0, ("blocked", 6): 6.0}
FULL = 1_000_000
LOOPBACK = 127  #: cannot be banned


def measure(options: Options) -> list[Claim]:
    stay_on_one_cpu()
    claims: list[Claim] = []
    for family in (4, 6):
        for size in options.sizes():
            claims += _lookups(family, size, options)
    return claims + _bans_and_budgets(options)


def _lookups(family: int, size: int, options: Options) -> list[Claim]:
    random = np.random.default_rng(options.seed)
    listed = made_up_list(family, size, random)
    hosts = made_up_list(family, size, random, hosts_only=True)
    mixed = {"clean": clean_sources(listed, random), "blocked": listed_sources(listed, random)}
    only_hosts = {"clean": clean_sources(hosts, random), "blocked": listed_sources(hosts, random)}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    packets = options.packets(size)
    with pins() as directory:
        skin, peers, mutator = Skin(directory), Loaded("conventional", directory), Mutator(directory)
        skin.publish(listed, random)
        peers.fill_trie(listed)
        theirs = xdp_filter((hosts.hi >> np.uint64(32)).astype(np.uint32), directory) if family == 4 else None
        candidates: list[tuple[str, int, dict[str, Sources]]] = [
            ("floor", mutator.program("drop_at_once"), mixed),
            ("lookup", skin.step(f"lookup{family}"), mixed),
            ("parsed lookup", skin.step("parsed_lookup"), mixed),
            ("whole program", skin.whole, mixed),
            ("LPM trie", peers.program(f"lpm{family}"), mixed),
        ]
        if theirs is not None:
            candidates.append(("xdp-filter", theirs[1], only_hosts))
        for _ in range(options.rounds):
            for kind in ("clean", "blocked"):
                for name, program, sources in candidates:
                    mutator.use(sources[kind])
                    expected = DROP if kind == "blocked" or name == "floor" else PASS
                    assert mutator.verdict(program, family) == expected, (name, kind)
                    times[name, kind].append(mutator.run(program, packets, family))
        skin.close()
    return _claims(times, listed)


def _claims(times: dict[tuple[str, str], list[float]], listed: Prefixes) -> list[Claim]:
    family, claims = listed.family, []
    promised = len(listed) > 0.8 * FULL
    for kind in ("clean", "blocked"):
        net = {name: median_net(spent, times["floor", kind]) for (name, of), spent in times.items() if of == kind}
        limits = {"xdp-filter": PROMISED.get((kind, family)), "LPM trie": 1 / AGAINST_TRIE[kind, family]}
        for step in ("lookup", "parsed lookup", "whole program"):
            for peer in ("xdp-filter", "LPM trie"):
                if peer not in net:
                    continue
                limit = limits[peer] if promised and step == "lookup" else None
                what = f"IPv{family} {kind}, {step}"
                claims.append(
                    Claim(what=what, entries=len(listed), ours=net[step], unit="ns/packet", peer=peer, theirs=net[peer],
                          limit=limit)
                )  # fmt: skip
    return claims


def _bans_and_budgets(options: Options) -> list[Claim]:
    """A hit in the ban table, and a packet over its source's budget, both through the whole program."""
    random = np.random.default_rng(options.seed)
    count = 2_000 if options.quick else 100_000
    hosts = made_up_list(4, count, random, hosts_only=True)
    hosts = hosts.pick(np.flatnonzero(hosts.hi >> np.uint64(56) != LOOPBACK))
    addresses = (hosts.hi >> np.uint64(32)).tolist()
    hot = listed_sources(hosts, random)
    packets = 20_000 if options.quick else 1_000_000
    times: dict[str, list[float]] = defaultdict(list)
    with pins() as directory:
        mutator = Mutator(directory)
        theirs = xdp_filter((hosts.hi >> np.uint64(32)).astype(np.uint32), directory)
        with pins() as other:
            banning, strict = Skin(directory, steps=False), Skin(other, STRICT, steps=False)
            banning.plane.ban(Ban(_dotted(address)) for address in addresses)
            candidates = [("floor", mutator.program("drop_at_once"), False), ("ban", banning.whole, False),
                          ("budget", strict.whole, True)]  # fmt: skip
            if theirs is not None:
                candidates.append(("xdp-filter", theirs[1], False))
            for _ in range(options.rounds):
                for name, program, syn in candidates:
                    mutator.use(hot[:10_000] if name == "budget" else hot)
                    times[name].append(mutator.run(program, packets, 4, tcp_frame(4, syn=syn)))
            banning.close()
            strict.close()
    net = {name: median_net(spent, times["floor"]) for name, spent in times.items()}
    return [
        Claim(what="IPv4 banned, whole program", entries=len(hosts), ours=net["ban"], unit="ns/packet",
              peer="xdp-filter", theirs=net.get("xdp-filter")),
        Claim(what="IPv4 over its SYN budget, 10,000 sources", entries=0, ours=net["budget"], unit="ns/packet"),
    ]  # fmt: skip


def _dotted(address: int) -> str:
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


if __name__ == "__main__":
    run(measure, __doc__)
