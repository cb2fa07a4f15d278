"""A long list of bans: the reflex cell's way against nft one by one and ipset in bulk, and what standing bans cost.

All in one namespace of its own and in the same run. The peers only store; ours are stored and proved with a synthetic
packet each. nft is called once for each ban, as scripts do, for a sample. A comparison of all bans with the desired
ones runs every four seconds; the sweep of expired ones and the comparison run in a worker beside the actor thread.
"""

import secrets
import statistics
import subprocess
import time

from actors.core.messages import BATCH_LIMIT, Action, Order
from actors.epidermis import reflex_work
from actors.epidermis.ban_compare import DesiredBans
from actors.epidermis.ban_keeper import COMPARE_CAP_S
from bench.claims import Claim, Options, run
from bench.kernel import pins
from bpf.loader import KernelPlane
from bpf.program import Build

BANS, NFT_SAMPLE = 100_000, 100
#: Share of a core, in percent, that standing bans may cost.
STANDING_LIMIT = 2.0


def measure(options: Options) -> list[Claim]:
    count = 2_000 if options.quick else BANS
    peers = _Peers()
    ours, ipset, nft, compares, sweeps = [], [], [], [], []
    try:
        for _ in range(options.rounds):
            with pins() as directory:
                plane = KernelPlane(directory, Build())
                orders = [_order(index, time.time() + 3600) for index in range(count)]
                ours.append(_enforced_s(plane, orders))
                ipset.append(peers.ipset_s([order.subject for order in orders]))
                nft.append(peers.nft_each_s([order.subject for order in orders[:NFT_SAMPLE]]))
                compares.append(_compared_s(plane, orders))
                sweeps.append(_swept_s(plane, count))
                plane.close()
    finally:
        peers.close()
    each = statistics.median(ours) / count * 1e6
    return [
        Claim(what="one ban of many, written and proved", entries=count, ours=each, unit="us", peer="nft one by one",
              theirs=statistics.median(nft) * 1e6, limit=1.0),
        Claim(what="all of them, written and proved", entries=count, ours=statistics.median(ours), unit="s",
              peer="ipset restore, stored only", theirs=statistics.median(ipset)),
        Claim(what="a core's share for comparing them for ever", entries=count,
              ours=statistics.median(compares) / COMPARE_CAP_S * 100, unit="%", limit=STANDING_LIMIT),
        Claim(what="sweep of as many that are over, in the worker", entries=count, ours=statistics.median(sweeps),
              unit="s"),
    ]  # fmt: skip


def _enforced_s(plane: KernelPlane, orders: list[Order]) -> float:
    began = time.perf_counter()
    for start in range(0, len(orders), BATCH_LIMIT):
        batch = orders[start : start + BATCH_LIMIT]
        assert not reflex_work.enforce(plane, batch).refused
        assert all(proof.holds for proof in reflex_work.prove(plane, [order.subject for order in batch]))
    return time.perf_counter() - began


def _compared_s(plane: KernelPlane, orders: list[Order]) -> float:
    """Processor time of one comparison that finds everything as it was."""
    desired, changes = DesiredBans(), {order.subject: order for order in orders}
    found = reflex_work.compare(plane, desired, changes, None, sweep=False)
    assert (found.bans.held, found.bans.missing, found.bans.strangers) == (len(orders), [], [])
    began = time.thread_time()
    reflex_work.compare(plane, desired, {}, None, sweep=False)
    return time.thread_time() - began


def _swept_s(plane: KernelPlane, count: int) -> float:
    reflex_work.enforce(plane, [_order(index, 1.0) for index in range(count)])
    began = time.perf_counter()
    assert plane.sweep(time.monotonic_ns()) == count
    return time.perf_counter() - began


def _order(index: int, until_unix_s: float) -> Order:
    dotted = ".".join(str(0x0B000000 + index >> shift & 255) for shift in (24, 16, 8, 0))
    return Order(subject=dotted, action=Action.BAN, until_unix_s=until_unix_s, reason="bench")


class _Peers:
    """nft and ipset in a namespace of their own."""

    def __init__(self) -> None:
        self._name = f"tgbench-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", self._name], check=True)
        self._call("nft", "add table inet peer; add set inet peer banned { type ipv4_addr; }")

    def nft_each_s(self, subjects: list[str]) -> float:
        """Seconds for each ban when nft is called for each."""
        began = time.perf_counter()
        for subject in subjects:
            self._call("nft", f"add element inet peer banned {{ {subject} }}")
        took = time.perf_counter() - began
        self._call("nft", "flush set inet peer banned")
        return took / len(subjects)

    def ipset_s(self, subjects: list[str]) -> float:
        """Seconds for all of them in one restore."""
        head = f"create banned hash:ip maxelem {1 << 20}\n"
        lines = "".join(f"add banned {subject}\n" for subject in subjects)
        began = time.perf_counter()
        self._call("ipset", text=head + lines)
        took = time.perf_counter() - began
        self._call("ipset", text="destroy banned\n")
        return took

    def close(self) -> None:
        subprocess.run(["ip", "netns", "delete", self._name], check=False)

    def _call(self, tool: str, command: str = "", text: str = "") -> None:
        words = [tool, command] if command else [tool, "restore"]
        subprocess.run(["nsenter", f"--net=/run/netns/{self._name}", *words], input=text, text=True, check=True)


if __name__ == "__main__":
    run(measure, __doc__)
