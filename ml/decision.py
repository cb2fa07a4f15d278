"""From scored flows to blamed sources: evidence adds up per source, chance is accounted for, nobody is blamed twice.

A source is blamed when one flow is stranger than a clean one is once in 100,000 (at 16 flows a second: once in two
hours), or when among its flows of the last ten seconds so many are stranger than one in a hundred that chance would
do it once in 100,000 such windows. So three strange flows of three are enough, three of forty are not, and a busy
client is not blamed for being busy. These are rates of clean traffic; no attack was used to choose them.

A flood from forged addresses has no source to blame: each sends one flow. It is seen at the service instead: when so
many of its flows from so many different sources are strange that chance is no excuse, the service is under *siege*.
That is an incident for posture and budgets and blames no address.

After a blame the source rests for 60 s: what it does meanwhile renews the blame and starts no second one.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: log10 of p-values.
STRANGE_LOG_P: Final = -2.0
ALONE_LOG_P: Final = -5.0
CHANCE_LOG_P: Final = -5.0
LEAST_FLOWS: Final = 3
WINDOW_NS: Final = 10_000_000_000
REST_NS: Final = 60_000_000_000
#: A siege has at least so many strange sources within the window.
SIEGE_SOURCES: Final = 50
#: Services whose recent batches are remembered.
SERVICES: Final = 1024
#: Sources whose recent flows are remembered; the least recently heard goes first. About 1 KB each.
SOURCES: Final = 4096
FLOWS_PER_SOURCE: Final = 512


@dataclass(frozen=True, slots=True)
class Blame:
    """A source to be proposed. row: the scored flow that tipped it; strange of seen flows in the last ten seconds.

    renewed: the source was already blamed within the last minute. siege: no source is meant (``source`` is empty), the
    service of the flow in ``row`` is flooded from many addresses."""

    source: bytes
    row: int
    at_ns: int
    strange: int
    seen: int
    renewed: bool
    siege: bool = False


@dataclass(slots=True)
class _Record:
    """Flow id to (last seen, strange), oldest first; and when the source was blamed last (0: never)."""

    flows: OrderedDict[int, tuple[int, bool]]
    blamed_ns: int = 0


@dataclass(slots=True)
class _Service:
    """(time, strange sources, sources) of recent batches; and when a siege was told last (0: never)."""

    batches: deque[tuple[int, int, int]]
    blamed_ns: int = 0


class Judge:
    """Keeps the recent flows of sources that had a strange one. Time is an argument and may stand still."""

    def __init__(self, sources: int = SOURCES) -> None:
        self._sources = sources
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._services: OrderedDict[int, _Service] = OrderedDict()

    def weigh(
        self, log_p: NDArray[np.float32], flow_id: NDArray[np.int64], source: NDArray[np.void],
        service: NDArray[np.uint32], own: NDArray[np.bool_], now_ns: int,
    ) -> list[Blame]:  # fmt: skip
        """One batch of scored flows, ``source`` as void16[N]: at most one blame per source and one siege per service."""
        strange = (log_p <= STRANGE_LOG_P) & ~own
        return [
            *self._weigh_sources(log_p, flow_id, source, strange, own, now_ns),
            *self._weigh_services(source, service, strange, own, now_ns),
        ]

    def _weigh_sources(
        self, log_p: NDArray[np.float32], flow_id: NDArray[np.int64], source: NDArray[np.void],
        strange: NDArray[np.bool_], own: NDArray[np.bool_], now_ns: int,
    ) -> list[Blame]:  # fmt: skip
        if not strange.any() and not self._records:
            return []
        suspects = {bytes(s) for s in source[strange]}
        blames: dict[bytes, Blame] = {}
        for row in np.flatnonzero(~own):
            key = source[row].tobytes()
            if key not in suspects and key not in self._records:
                continue
            record = self._record(key)
            self._note(record, int(flow_id[row]), now_ns, bool(strange[row]))
            if strange[row] and key not in blames:
                blame = self._judge(record, key, int(row), float(log_p[row]), now_ns)
                if blame:
                    blames[key] = blame
        self._forget(now_ns)
        return list(blames.values())

    def _weigh_services(
        self, source: NDArray[np.void], service: NDArray[np.uint32], strange: NDArray[np.bool_], own: NDArray[np.bool_],
        now_ns: int,
    ) -> list[Blame]:  # fmt: skip
        found = []
        for number in np.unique(service[strange]).tolist():
            rows = np.flatnonzero((service == number) & ~own)
            odd = rows[strange[rows]]
            record = self._services.setdefault(number, _Service(deque()))
            self._services.move_to_end(number)
            record.batches.append((now_ns, len(np.unique(source[odd])), len(np.unique(source[rows]))))
            while now_ns - record.batches[0][0] > WINDOW_NS:
                record.batches.popleft()
            hits, seen = (sum(batch[i] for batch in record.batches) for i in (1, 2))
            if hits >= SIEGE_SOURCES and 2 * hits > seen:
                renewed = bool(record.blamed_ns) and now_ns - record.blamed_ns < REST_NS
                record.blamed_ns = record.blamed_ns if renewed else now_ns
                found.append(Blame(b"", int(odd[0]), now_ns, hits, seen, renewed, siege=True))
        while len(self._services) > SERVICES:
            self._services.popitem(last=False)
        return found

    def __len__(self) -> int:
        return len(self._records)

    def blamed(self, now_ns: int) -> NDArray[np.void]:
        """Sources that were blamed within the last minute. void16[K]."""
        found = [
            key for key, record in self._records.items() if record.blamed_ns and now_ns - record.blamed_ns < REST_NS
        ]
        return np.array(found, "V16")

    def _record(self, key: bytes) -> _Record:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record(OrderedDict())
            if len(self._records) > self._sources:
                self._records.popitem(last=False)
        self._records.move_to_end(key)
        return record

    @staticmethod
    def _note(record: _Record, flow: int, now_ns: int, strange: bool) -> None:
        seen_ns, was = record.flows.get(flow, (0, False))
        record.flows[flow] = (now_ns, strange or (was and now_ns - seen_ns <= WINDOW_NS))
        record.flows.move_to_end(flow)
        while len(record.flows) > FLOWS_PER_SOURCE or now_ns - next(iter(record.flows.values()))[0] > WINDOW_NS:
            record.flows.popitem(last=False)

    @staticmethod
    def _judge(record: _Record, key: bytes, row: int, log_p: float, now_ns: int) -> Blame | None:
        strange = sum(odd for _, odd in record.flows.values())
        seen = len(record.flows)
        if log_p > ALONE_LOG_P and (strange < LEAST_FLOWS or log_binomial_tail(strange, seen) > CHANCE_LOG_P):
            return None
        renewed = bool(record.blamed_ns) and now_ns - record.blamed_ns < REST_NS
        if not renewed:
            record.blamed_ns = now_ns
        return Blame(key, row, now_ns, strange, seen, renewed)

    def _forget(self, now_ns: int) -> None:
        """Drop who has been silent for longer than the rest."""
        while self._records:
            key, record = next(iter(self._records.items()))
            if record.flows and now_ns - next(reversed(record.flows.values()))[0] <= REST_NS:
                return
            del self._records[key]


def log_binomial_tail(hits: int, trials: int, log_p: float = STRANGE_LOG_P) -> float:
    """log10 of the chance of at least ``hits`` in ``trials`` at 10**log_p each.

    The bound (trials choose hits) * p**hits, never too small; exact enough where it matters, which is far out."""
    ways = 0.0
    for i in range(hits):
        ways += float(np.log10((trials - i) / (i + 1)))
    return min(0.0, ways + hits * log_p)
