"""Heavy sources of the whole fleet: what each node saw is added up in Redis, and what others saw is charged here.

A source that spreads its packets over many nodes stays under the budget of each. Every second each node tells Redis
the packets of its heaviest sources and hears the fleet's totals; the growth that came from others is charged to the
source's budget in this node's kernel program. The sum over all nodes is so held to one budget, a second late, and the
program itself throttles or bans whoever breaks it. Sources below ``SHARE`` of a budget here are not looked at.

Pure, but for ``FlowUsage``, which reads the flow table of the kernel program.
"""

import socket
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from actors.core.messages import BATCH_LIMIT, Spent

#: A source counts as heavy from this share of its budget on.
SHARE = 0.02
#: A source that was heavy stays in view for so many seconds.
REMEMBERED = 8
#: Two budgets a source, in one message to the kernel's cell.
SOURCES_MAX = BATCH_LIMIT // 2
_UDP = 17
_MAPPED = np.frombuffer(b"\0" * 10 + b"\xff\xff", np.uint8)


class Fleet:
    """Turns own packets and the fleet's totals into what others have seen."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._rounds_left: dict[str, int] = {}

    def tell(self, own: Mapping[str, int]) -> dict[str, int]:
        """What to add to the totals: own usage, and nothing for those that were heavy just now, so that a source that
        pauses for a breath is not unknown after it. As many names as one message holds."""
        left = {name: rounds - 1 for name, rounds in self._rounds_left.items() if rounds > 1}
        names = [*own, *(name for name in left if name not in own)][:BATCH_LIMIT]
        self._rounds_left = {name: REMEMBERED if name in own else left[name] for name in names}
        return {name: own.get(name, 0) for name in names}

    def charges(self, own: Mapping[str, int], totals: Mapping[str, int]) -> list[Spent]:
        """own: what was added to the totals just now, by name (``budget subject``). totals: what Redis answered.

        A total that is heard for the first time, or was forgotten meanwhile, is only remembered: how old it is nobody
        knows, and an old sum must not empty a budget at once."""
        found = []
        for name, total in totals.items():
            before = self._totals.get(name)
            others = 0 if before is None else total - before - own.get(name, 0)
            if others > 0:
                budget, _, subject = name.partition(" ")
                found.append(Spent(subject=subject, budget=budget, packets=others))
        self._totals = dict(totals)
        return found


class FlowReader(Protocol):
    """The kernel's flow table (``bpf.flow_table.FlowTable``)."""

    capacity: int

    def read(self, since_ns: int = 0) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]: ...


class FlowUsage:
    """Packets by source since the last look, from the flow table. least: packets by which a source is worth telling."""

    def __init__(self, table: FlowReader) -> None:
        self._table = table
        self._packets = np.zeros(table.capacity, np.uint32)
        self._incarnation = np.zeros(table.capacity, np.uint32)
        self._looked_ns = 0

    def look(self, now_ns: int, least: Mapping[str, float]) -> dict[str, int]:
        """``budget subject`` → packets, the heaviest sources only. The first look tells nothing.

        now_ns: CLOCK_MONOTONIC. What a flow's initiator sent counts; answers are nobody's attack."""
        first, since_ns, self._looked_ns = not self._looked_ns, self._looked_ns, now_ns
        slots, records = self._table.read(since_ns)
        sent = records["side"]["packets"][:, 0]
        known = self._incarnation[slots] == records["incarnation"]
        grown = np.where(known, sent - np.where(known, self._packets[slots], 0), sent)
        self._packets[slots], self._incarnation[slots] = sent, records["incarnation"]
        if first or not len(slots):
            return {}
        sources = _sources(records["key"]["addr"][:, 0])
        udp = records["key"]["proto"] == _UDP
        return {
            f"{budget} {_text(source)}": packets
            for budget, chosen in (("total", np.ones(len(slots), bool)), ("udp", udp))
            for source, packets in _heaviest(sources[chosen], grown[chosen], least[budget])
        }


def _sources(addresses: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """The budget that each address shares: IPv4 its own, IPv6 that of its /64."""
    cut = np.ascontiguousarray(addresses)
    is_ip6 = (cut[:, :12] != _MAPPED).any(axis=1)
    cut[is_ip6, 8:] = 0
    return cut.view("V16").reshape(-1)


def _heaviest(sources: npt.NDArray[np.void], packets: npt.NDArray[Any], least: float) -> list[tuple[bytes, int]]:
    """Sums by source, those of at least ``least`` packets, heaviest first."""
    names, places = np.unique(sources, return_inverse=True)
    sums = np.bincount(places.reshape(-1), weights=packets, minlength=len(names)).astype(np.int64)
    order = np.argsort(sums)[::-1][:SOURCES_MAX]
    return [(names[at].tobytes(), int(sums[at])) for at in order if sums[at] >= least]


def _text(source: bytes) -> str:
    if source.startswith(_MAPPED.tobytes()):
        return socket.inet_ntop(socket.AF_INET, source[12:])
    return socket.inet_ntop(socket.AF_INET6, source)
