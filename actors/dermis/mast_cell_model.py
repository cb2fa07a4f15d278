"""The learned half of the mast cell: shows flows, and scores them where a model has been promoted.

Nothing is ever trained here. Without a model only the emission rule runs, and neither windows nor weights are in
memory. A model that was learned from traffic in both directions is not believed on a node that sees only what
arrives: every conversation would look unanswered to it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.dermis.scans_words import subject_of
from actors.dermis.sessions import Host, connected
from ml.flows import FlowReader, Snapshots
from ml.meter import Tick
from ml.records import PROTO_TCP

if TYPE_CHECKING:
    from ml.serving import Serving
    from ml.watch import Round, Watch

CURRENT: Final = "current"
RULES = "the plain rules act"
#: A look every half second meets a flow within one and a half seconds of its start.
LATE_NS: Final = 4_000_000_000
#: Blamed sources of one look that are put into words, the strangest ones; policy is told of twenty a second at most.
WORDS: Final = 64
#: As strange as one clean flow in 100,000 is as anomalous as it gets.
_STRANGEST_LOG_P: Final = -5.0
_STRANGE_LOG_P: Final = -2.0
#: Connected TCP sessions that must have been seen before a node is said to see one direction only.
_ENOUGH: Final = 50
#: So many are remembered, the older ones half: a node whose other side comes into sight later is soon believed.
_REMEMBERED: Final = 500


@dataclass(frozen=True, slots=True)
class Blamed:
    """A source that the model would propose: subject, evidence in words, and how sure it is, 0 to 1."""

    subject: str
    reason: str
    evidence: str
    score: float


@dataclass(frozen=True, slots=True)
class Look:
    """What one look showed. timely: without the flows that were met late, which no model may judge or learn from;
    anomaly: float[N], 0 to 1, of each timely flow; None without a model."""

    shown: Snapshots
    timely: Snapshots
    anomaly: NDArray[np.float64] | None = None
    strange: int = 0
    blamed: list[Blamed] = field(default_factory=list)
    sieged: list[str] = field(default_factory=list)


class Eyes:
    """Reader of the flow table, with the node's promoted model when there is one."""

    def __init__(self, models: Path, slots: int = 0) -> None:
        """slots: of the flow table; spares the reader from growing to twice as many."""
        self._models = models
        self._reader = FlowReader(slots)
        self._serving: Serving | None = None
        self._watch: Watch | None = None
        self._stamp: tuple[str, int] | None = None
        self._host = Host(np.zeros(0, "V16"))
        self._both = self._one = 0

    @property
    def nbytes(self) -> int:
        """Memory of reader and windows, whatever the traffic does."""
        return self._watch.nbytes if self._watch is not None else self._reader.nbytes

    @property
    def state(self) -> str:
        """``learning`` (no model), ``shadow``, ``active``, ``frozen`` or ``stale``."""
        if self._serving is None:
            return "learning"
        return "stale" if self._mismatched() else str(self._serving.state)

    @property
    def reason(self) -> str:
        """The state in words."""
        if self._serving is None:
            return f"learning: no model has been promoted in {self._models}; {RULES}"
        if self._mismatched():
            return f"stale: the model knows both directions and this node sees only what arrives; {RULES}"
        said = f": {self._serving.reason}" if self._serving.reason else ""
        return f"{self._serving.state}{said}" if self._counts() else f"{self._serving.state}{said}; {RULES}"

    @property
    def drift(self) -> float:
        """Stability index of the score against calibration, of the last five minutes; 0 until there were some."""
        return self._serving.index if self._serving is not None else 0.0

    @property
    def name(self) -> str:
        """Of the promoted model; empty without one."""
        return Path(self._stamp[0]).name if self._stamp is not None else ""

    def say(self, facts: dict[str, Any]) -> None:
        """Leave word of the current model for the commands. Raises OSError."""
        from ml import promotion

        promotion.say(self._models, facts)

    def refresh(self, host: Host) -> None:
        """Take up the promoted model if it is another one than before; let go of one that is gone. Never raises."""
        self._host, stamp = host, self._promoted()
        if self._watch is not None:
            self._watch.own = host.own
        if stamp == self._stamp:
            return
        self._stamp, self._serving, self._watch = stamp, None, None
        if stamp is None:
            return
        from ml.serving import Serving  # the weights' format and the heads: only where there is a model
        from ml.watch import Watch

        self._serving = Serving.open(self._models)
        if self._serving.scorer is not None:
            self._watch = Watch(self._serving.scorer, host.own)
            self._watch.reader = self._reader

    def look(self, tick: Tick) -> Look:
        """Show the flows that have something new to say, judged by the model where there is one."""
        shown = self._reader.tick(tick)
        self._sides(shown)
        timely = _timely(shown)
        if self._watch is None or self._serving is None:
            return Look(shown, timely)
        seen = self._watch.weigh(timely)
        if seen.scores is None:
            return Look(shown, timely)
        self._serving.follow(tick.now_ns, seen.scores, seen.ordinary)
        if not self._counts():
            return Look(shown, timely)
        anomaly = np.clip(seen.scores.log_p / _STRANGEST_LOG_P, 0, 1).astype("f8")
        alone = [row for row in range(len(seen.blames)) if not seen.blames[row].siege]
        log_p = seen.scores.log_p
        alone.sort(key=lambda row: float(log_p[seen.blames[row].row]))
        blamed = [_blamed(seen, row, self._host) for row in alone[:WORDS]]
        sieged = [_service(seen, row) for row in range(len(seen.blames)) if seen.blames[row].siege]
        strange = int((seen.scores.log_p <= _STRANGE_LOG_P).sum())
        return Look(shown, timely, anomaly, strange, blamed, sieged)

    def _counts(self) -> bool:
        """Its verdicts count: promoted, past probation, and it has seen here the directions that it was taught."""
        if self._serving is None or not self._serving.counts:
            return False
        return self._both > self._one or not self._knows_both()

    def _promoted(self) -> tuple[str, int] | None:
        """Which model is current, and when that was last decided; None without one."""
        try:
            link = self._models / CURRENT
            return str(link.resolve(strict=True)), link.lstat().st_mtime_ns
        except OSError:
            return None

    def _sides(self, shown: Snapshots) -> None:
        """Count connected TCP sessions of which the answers were seen, and of which they were not."""
        tcp = connected(shown.flows) & (shown.flows["key"]["proto"] == PROTO_TCP) & shown.fresh
        answered = shown.flows["side"]["packets"][:, 1] > 0
        self._both += int((tcp & answered).sum())
        self._one += int((tcp & ~answered).sum())
        if self._both + self._one > _REMEMBERED:
            self._both, self._one = self._both // 2, self._one // 2

    def _mismatched(self) -> bool:
        return self._one >= max(_ENOUGH, 9 * self._both) and self._knows_both()

    def _knows_both(self) -> bool:
        """Whether the model's training saw most conversations answered."""
        if self._serving is None or self._serving.scorer is None:
            return False
        from ml.features import NAMES

        return bool(self._serving.scorer.model.flow.mean[NAMES.index("unanswered")] < 0.5)


def _timely(shown: Snapshots) -> Snapshots:
    """Without the flows that are first seen long after they began. A cell that was just started finds half a minute of
    flows in the table; to a model they would all happen now, and every client would look like a flood."""
    late = shown.fresh & (shown.now_ns - shown.first_ns > LATE_NS)
    return shown.rows(~late) if late.any() else shown


def _blamed(seen: "Round", at: int, host: Host) -> Blamed:
    blame = seen.blames[at]
    why, key = seen.why(blame), seen.shown.flows["key"][blame.row : blame.row + 1]
    evidence = f"{blame.strange} of {blame.seen} conversations within 10 s are strange; {why.words()}"
    subject = subject_of(key[0], bool(host.near(key)[0]))
    return Blamed(subject, f"anomaly seen by the {why.head} head", evidence, 0.9 if why.p <= 1e-5 else 0.75)


def _service(seen: "Round", at: int) -> str:
    key = seen.shown.flows["key"][seen.blames[at].row]
    return f"{ {6: 'tcp', 17: 'udp'}.get(int(key['proto']), 'ip') }/{int(key['port'][1])}"
