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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.groups import among, distinct

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
#: Sources whose recent flows are remembered; the least recently heard goes first.
SOURCES: Final = 4096
#: New suspects per batch; more at once are a siege, and the most active ones are taken.
NEWCOMERS: Final = 1024
#: Flows of one source that are remembered of one batch, and services looked at for a siege.
FLOWS_PER_BATCH: Final = 256
SIEGED_PER_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Blame:
    """Somebody to be proposed. row: the strangest flow of the batch; strange of seen flows in the last ten seconds.

    renewed: already blamed within the last minute. siege: no source is meant, the service of that flow is flooded from
    many addresses, and strange and seen count sources."""

    row: int
    at_ns: int
    strange: int
    seen: int
    renewed: bool
    siege: bool = False


@dataclass(slots=True)
class _Record:
    """(time, strange flows, all flows) of recent batches as ids; and when the source was blamed last (0: never)."""

    batches: deque[tuple[int, set[int], set[int]]]
    blamed_ns: int = 0


@dataclass(slots=True)
class _Service:
    """(time, strange sources, sources) of recent batches; and when a siege was told last (0: never)."""

    batches: deque[tuple[int, int, int]]
    blamed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """A batch of scored flows as the judge reads it. key: uint64[S], one per distinct source, as ml.windows makes them;
    of_source: int64[N], the source of each flow; own: bool[N], the node itself began the flow."""

    now_ns: int
    log_p: NDArray[np.float32]
    flow_id: NDArray[np.int64]
    key: NDArray[np.uint64]
    of_source: NDArray[np.int64]
    service: NDArray[np.uint32]
    own: NDArray[np.bool_]


class Judge:
    """Keeps the recent flows of sources that had a strange one. Time is an argument and may stand still."""

    def __init__(self, sources: int = SOURCES) -> None:
        self._sources = sources
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._services: OrderedDict[int, _Service] = OrderedDict()
        self._overrun = False

    def weigh(self, batch: Evidence) -> list[Blame]:
        """At most one blame per source and one siege per service."""
        strange = (batch.log_p <= STRANGE_LOG_P) & ~batch.own
        self._overrun = False
        if not strange.any() and not self._records:
            return []
        return [*self._weigh_sources(batch, strange), *self._weigh_services(batch, strange)]

    def blamed(self, key: NDArray[np.uint64], now_ns: int) -> NDArray[np.bool_]:
        """Which of these sources were blamed within the last minute. bool[S]."""
        found = [name for name, record in self._records.items() if _resting(record.blamed_ns, now_ns)]
        return among(key, np.array(found, "u8"))

    def besieged(self, service: NDArray[np.uint32], now_ns: int) -> NDArray[np.bool_]:
        """Which flows of the batch just weighed, by their service, are part of a flood that blames nobody. bool[N].

        All of them when more sources became suspect at once than can be looked at."""
        found = [name for name, record in self._services.items() if _resting(record.blamed_ns, now_ns)]
        return among(service, np.array(found, "u4")) | self._overrun

    def _weigh_sources(self, batch: Evidence, strange: NDArray[np.bool_]) -> list[Blame]:
        hits = np.bincount(batch.of_source[strange], minlength=len(batch.key))
        known = among(batch.key, np.fromiter(self._records, "u8", len(self._records)))
        fresh = np.flatnonzero((hits > 0) & ~known)
        self._overrun = len(fresh) > NEWCOMERS
        chosen = known
        chosen[fresh[np.argsort(-hits[fresh], kind="stable")[:NEWCOMERS]]] = True
        rows = np.flatnonzero(chosen[batch.of_source] & ~batch.own)
        rows = rows[np.argsort(batch.of_source[rows], kind="stable")]
        blames = []
        for mine in _by_source(batch, rows, strange):
            record = self._record(mine.key)
            odd = {mine.ids[at] for at in mine.odd[-FLOWS_PER_BATCH:]}
            record.batches.append((batch.now_ns, odd, set(mine.ids[-FLOWS_PER_BATCH:])))
            while batch.now_ns - record.batches[0][0] > WINDOW_NS:
                record.batches.popleft()
            if mine.odd:
                worst = min(mine.odd, key=mine.log_p.__getitem__)
                blames += self._judge(record, int(rows[mine.first + worst]), mine.log_p[worst], batch.now_ns)
        self._forget(batch.now_ns)
        return blames

    def _record(self, key: int) -> _Record:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record(deque())
            if len(self._records) > self._sources:
                self._records.popitem(last=False)
        self._records.move_to_end(key)
        return record

    @staticmethod
    def _judge(record: _Record, row: int, log_p: float, now_ns: int) -> list[Blame]:
        if log_p > ALONE_LOG_P and sum(len(odd) for _, odd, _ in record.batches) < LEAST_FLOWS:
            return []
        strange = len(set().union(*(odd for _, odd, _ in record.batches)))
        seen = len(set().union(*(flows for _, _, flows in record.batches)))
        if log_p > ALONE_LOG_P and (
            strange < LEAST_FLOWS or log_binomial_tail(strange, max(seen, strange)) > CHANCE_LOG_P
        ):
            return []
        renewed = _resting(record.blamed_ns, now_ns)
        record.blamed_ns = record.blamed_ns if renewed else now_ns
        return [Blame(row, now_ns, strange, seen, renewed)]

    def _forget(self, now_ns: int) -> None:
        """Drop who has been silent for longer than the rest."""
        while self._records:
            key, record = next(iter(self._records.items()))
            if record.batches and now_ns - record.batches[-1][0] <= REST_NS:
                return
            del self._records[key]

    def _weigh_services(self, batch: Evidence, strange: NDArray[np.bool_]) -> list[Blame]:
        found = []
        services, which = distinct(batch.service[strange])
        counts = np.bincount(which, minlength=len(services))
        for number in services[np.argsort(-counts)[:SIEGED_PER_BATCH]].tolist():
            rows = np.flatnonzero((batch.service == number) & ~batch.own)
            odd = rows[strange[rows]]
            record = self._services.setdefault(number, _Service(deque()))
            self._services.move_to_end(number)
            sources = len(distinct(batch.of_source[odd])[0]), len(distinct(batch.of_source[rows])[0])
            record.batches.append((batch.now_ns, *sources))
            while batch.now_ns - record.batches[0][0] > WINDOW_NS:
                record.batches.popleft()
            hits, seen = (sum(part[i] for part in record.batches) for i in (1, 2))
            if hits >= SIEGE_SOURCES and 2 * hits > seen:
                renewed = _resting(record.blamed_ns, batch.now_ns)
                record.blamed_ns = record.blamed_ns if renewed else batch.now_ns
                found.append(Blame(int(odd[0]), batch.now_ns, hits, seen, renewed, siege=True))
        while len(self._services) > SERVICES:
            self._services.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True)
class _Mine:
    """Rows of one source, as plain numbers: most sources have one. first: place of its first row among all chosen rows;
    odd: which of its rows are strange."""

    key: int
    first: int
    ids: list[int]
    log_p: list[float]
    odd: list[int]


def _by_source(batch: Evidence, rows: NDArray[np.int64], strange: NDArray[np.bool_]) -> Iterator[_Mine]:
    """rows: chosen rows, those of one source together."""
    if not len(rows):
        return
    source = batch.of_source[rows]
    edges = [0, *(np.flatnonzero(np.diff(source)) + 1).tolist(), len(rows)]
    keys = batch.key[source[edges[:-1]]].tolist()
    ids, log_p, odd = batch.flow_id[rows].tolist(), batch.log_p[rows].tolist(), strange[rows].tolist()
    for key, (start, end) in zip(keys, pairwise(edges), strict=True):
        marks = [at for at in range(end - start) if odd[start + at]]
        yield _Mine(key, start, ids[start:end], log_p[start:end], marks)


def _resting(blamed_ns: int, now_ns: int) -> bool:
    return bool(blamed_ns) and now_ns - blamed_ns < REST_NS


def log_binomial_tail(hits: int, trials: int, log_p: float = STRANGE_LOG_P) -> float:
    """log10 of the chance of at least ``hits`` in ``trials`` at 10**log_p each.

    The bound (trials choose hits) * p**hits, never too small; exact enough where it matters, which is far out."""
    ways = 0.0
    for i in range(hits):
        ways += float(np.log10((trials - i) / (i + 1)))
    return min(0.0, ways + hits * log_p)
