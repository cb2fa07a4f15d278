"""From scored flows to blamed sources: evidence adds up per source, chance is accounted for, nobody is blamed twice.

A source is blamed when one flow is stranger than a clean one is once in 100,000 (at 16 flows a second: once in two
hours), or when among its flows of the last ten seconds so many are stranger than one in a hundred that chance would
do it once in 100,000 such windows. So three strange flows of three are enough, three of forty are not, and a busy
client is not blamed for being busy. These are rates of clean traffic; no attack was used to choose them.

After a blame the source rests for 60 s: what it does meanwhile renews the blame and starts no second one.
"""

from collections import OrderedDict
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
#: Sources whose recent flows are remembered; the least recently heard goes first. About 1 KB each.
SOURCES: Final = 4096
FLOWS_PER_SOURCE: Final = 512


@dataclass(frozen=True, slots=True)
class Blame:
    """A source to be proposed. row: the scored flow that tipped it; strange of seen flows in the last ten seconds.

    renewed: the source was already blamed within the last minute."""

    source: bytes
    row: int
    at_ns: int
    strange: int
    seen: int
    renewed: bool


@dataclass(slots=True)
class _Record:
    """Flow id to (last seen, strange), oldest first; and when the source was blamed last (0: never)."""

    flows: OrderedDict[int, tuple[int, bool]]
    blamed_ns: int = 0


class Judge:
    """Keeps the recent flows of sources that had a strange one. Time is an argument and may stand still."""

    def __init__(self, sources: int = SOURCES) -> None:
        self._sources = sources
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def weigh(
        self, log_p: NDArray[np.float32], flow_id: NDArray[np.int64], source: NDArray[np.void], own: NDArray[np.bool_],
        now_ns: int,
    ) -> list[Blame]:  # fmt: skip
        """One batch of scored flows; ``source`` is void16[N]. At most one blame per source and batch."""
        strange = (log_p <= STRANGE_LOG_P) & ~own
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
