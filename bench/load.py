"""A million entries from text to enforced, and compiled and swapped alone, with nft, ipset and an LPM trie beside them.

The measuring is that of bench/blocklist_load.py; here its seconds become claims.
"""

from bench import blocklist_load
from bench.claims import Claim, Options, run

FROM_TEXT_S, SWAP_S, FULL = 3.0, 0.3, 1_000_000
PEERS = ("LPM trie, batches", "nft, hash + interval set", "nft, one interval set", "ipset, hash:net")


def measure(options: Options) -> list[Claim]:
    claims = []
    for size in options.sizes():
        seconds = blocklist_load.measure(size, options.rounds, options.seed)["seconds"]
        full = size == FULL
        for what, limit in (("text to enforced", FROM_TEXT_S), ("compile and swap", SWAP_S)):
            claims.append(
                Claim(
                    what=f"IPv4 list, {what}", entries=size, ours=seconds[what], unit="s", limit=limit if full else None
                )
            )
        for peer in PEERS:
            claims.append(
                Claim(what="IPv4 list, compile and swap", entries=size, ours=seconds["compile and swap"], unit="s",
                      peer=peer, theirs=seconds[peer])
            )  # fmt: skip
    return claims


if __name__ == "__main__":
    run(measure, __doc__)
