"""The whole round in one call: flow table in, blamed sources with reasons out. Pure: no clock, no threads, no I/O.

    watch = Watch(Serving.open(state_dir / "models").scorer, own=parse_own(["192.0.2.1"]))
    round_ = watch.tick(Tick.of_copies(now_ns, slots, flows))   # every half second, with what FlowTable.read() gave
    for blame in round_.blames: ...                             # round_.source(blame), round_.why(blame).words()

The windows and the rate rule work without a model; then there are no scores and no blames, only ``shown`` and ``seen``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml.decision import Blame, Evidence, Judge
from ml.flows import FlowReader, Snapshots
from ml.meter import Tick
from ml.own import from_own, source_text
from ml.records import check
from ml.serve import Reason, Scorer, Scores
from ml.windows import Windowed, Windows, services


@dataclass(frozen=True, slots=True)
class Round:
    """What one tick brought. ``scores`` is None without a model; ``ordinary`` marks flows of unblamed sources to
    services that are not under siege."""

    shown: Snapshots
    seen: Windowed
    scores: Scores | None
    blames: list[Blame]
    ordinary: NDArray[np.bool_]
    scorer: Scorer | None

    def source(self, blame: Blame) -> str:
        """Who is blamed, as text: an IPv4 address or an IPv6 /64. Of a siege: one of many, most likely forged."""
        return source_text(self.shown.flows["key"][blame.row])

    def why(self, blame: Blame) -> Reason:
        """The reason behind a blame of this round."""
        if self.scorer is None or self.scores is None:
            raise ValueError("a round without a model blames nobody")
        return self.scorer.explain(self.shown, self.seen, self.scores, blame.row)


class Watch:
    """Reader, windows, scorer and judge of one flow table."""

    def __init__(self, scorer: Scorer | None, own: NDArray[np.void], slots: int = 0) -> None:
        self.reader, self.windows, self.judge = FlowReader(slots), Windows(), Judge()
        self.scorer, self.own = scorer, own

    @property
    def nbytes(self) -> int:
        """State in bytes, whatever the traffic does."""
        return self.reader.nbytes + self.windows.nbytes

    def tick(self, tick: Tick) -> Round:
        """One look at the table. Raises RecordsError when its layout is of another version."""
        return self.weigh(self.reader.tick(Tick(tick.now_ns, check(tick.table), tick.slots, tick.rows)))

    def weigh(self, shown: Snapshots) -> Round:
        """Judge what a reader has shown."""
        seen = self.windows.update(shown)
        everyone = np.ones(len(shown), "?")
        if self.scorer is None or not len(shown):
            return Round(shown, seen, None, [], everyone, None)
        own = from_own(shown.flows["key"], self.own)
        scores, service = self.scorer.score(shown, seen, own), services(shown.flows)
        blames = self.judge.weigh(
            Evidence(shown.now_ns, scores.log_p, shown.flow_id, seen.source_key, seen.of_source, service, own)
        )
        ordinary = ~self.judge.blamed(seen.source_key, shown.now_ns)[seen.of_source]
        ordinary &= ~self.judge.besieged(service, shown.now_ns)
        return Round(shown, seen, scores, blames, ordinary, self.scorer)
