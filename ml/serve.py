"""Scoring with numpy alone: what the session cell calls. Importing this file never imports torch.

    scorer = Scorer.load(folder)                     # raises ModelError, a sentence
    scores = scorer.score(shown, windows.update(shown), own)
    reason = scorer.explain(shown, seen, scores, row).words()

:class:`ml.watch.Watch` does the whole round from a flow table to blamed sources; :class:`ml.serving.Serving` adds the
states of a node's promoted model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.alike import kinds
from ml.drift import WATCHED_COLUMNS, Reference
from ml.features import NAMES, extract
from ml.flows import Snapshots
from ml.registry import HEADS, Model, ModelError, load
from ml.windows import PAIR_FEATURES, SOURCE_FEATURES, Windowed

Floats = NDArray[np.float32]

FLOW, SOURCE, PAIR = range(3)
#: Every verdict is the best of three looks: its p-value is three times the smallest (Bonferroni).
CORRECTION: Final = float(np.log10(len(HEADS)))
TOP_FEATURES: Final = 3
#: Rows scored at once: what fits a core's cache.
CHUNK: Final = 1024


@dataclass(frozen=True, slots=True)
class Scores:
    """One row per shown flow. log_p: float32[N], log10 of the corrected p-value; heads: float32[3, N] uncorrected;
    head: uint8[N], index into HEADS of the strangest; rule: bool[N], the rate rule fired; raw: float32[N], score of the
    flow head, and watched: float32[N, 10], the features of the drift figure."""

    log_p: Floats
    heads: Floats
    head: NDArray[np.uint8]
    rule: NDArray[np.bool_]
    raw: Floats
    watched: Floats


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one flow is strange: head, p-value, and the features that weigh most with what was seen and is usual."""

    head: str
    p: float
    features: tuple[tuple[str, float, float], ...]

    def words(self) -> str:
        """One sentence for people."""
        parts = ", ".join(f"{name} {seen:.2f} (usual {usual:.2f})" for name, seen, usual in self.features)
        return f"{self.head} head, p {self.p:.1e}: {parts}"


class Scorer:
    """A calibrated model, ready to score. Holds no state between batches."""

    def __init__(self, model: Model) -> None:
        if model.calibrated is None:
            raise ModelError("a model without calibration cannot be served: run python -m ml.calibrate")
        self.model = model
        self.calibrated = model.calibrated

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Raises ModelError, whose message is a sentence for the operator."""
        return cls(load(folder))

    def score(self, shown: Snapshots, seen: Windowed, own: NDArray[np.bool_]) -> Scores:
        """Judge a batch. ``own`` marks flows that the node itself began: only the flow head judges those."""
        alike = kinds(shown)
        if alike is not None:
            one_of_each, kind = alike
            raw, watched = self._flow_head(shown.rows(one_of_each))
            return self.judge(raw[kind], watched[kind], seen, own)
        return self.judge(*self._flow_head(shown), seen, own)

    def _flow_head(self, shown: Snapshots) -> tuple[Floats, Floats]:
        """Score and watched features of each flow, in pieces that fit a core's cache."""
        raw, watched = np.empty(len(shown), "f4"), np.empty((len(shown), len(Reference.WATCHED)), "f4")
        for at in range(0, len(shown), CHUNK):
            features = extract(shown.rows(slice(at, at + CHUNK)), self.model.habits)
            raw[at : at + CHUNK] = self.model.flow.score(features)
            watched[at : at + CHUNK] = features[:, WATCHED_COLUMNS]
        return raw, watched

    def judge(self, raw: Floats, watched: Floats, seen: Windowed, own: NDArray[np.bool_]) -> Scores:
        """From the flow head's scores and the windows to p-values."""
        model, curves = self.model, self.calibrated.curves
        heads = np.empty((len(HEADS), len(raw)), "f4")
        heads[FLOW] = curves[FLOW].log_p(raw)
        heads[SOURCE] = curves[SOURCE].log_p(model.source.score(seen.sources))[seen.of_source]
        heads[PAIR] = curves[PAIR].log_p(model.pair.score(seen.pairs))[seen.of_pair]
        heads[SOURCE:, own] = 0
        rule = (model.rule.score(seen.sources) > 0)[seen.of_source] & ~own
        log_p = np.minimum(heads.min(axis=0) + CORRECTION, 0)
        return Scores(log_p.astype("f4"), heads, heads.argmin(axis=0).astype("u1"), rule, raw, watched)

    def explain(self, shown: Snapshots, seen: Windowed, scores: Scores, row: int) -> Reason:
        """Head, p and top features of one flow; call it for the few flows that are worth a sentence."""
        head = int(scores.head[row])
        if head == FLOW:
            features = extract(shown.rows(slice(row, row + 1)), self.model.habits)
            weight, values = self.model.flow.blame(features)[0], features[0]
            usual, names = self.model.flow.mean, NAMES
        else:
            tail, names = ((self.model.source, SOURCE_FEATURES), (self.model.pair, PAIR_FEATURES))[head - 1]
            rows, of_row = ((seen.sources, seen.of_source), (seen.pairs, seen.of_pair))[head - 1]
            values = rows[of_row[row]]
            weight, usual = tail.surprise(values[None])[0], tail.knots[:, len(tail.knots[0]) // 3]
        top = np.argsort(-weight)[:TOP_FEATURES]
        features_of_note = tuple((names[i], float(values[i]), float(usual[i])) for i in top if weight[i] > 0)
        return Reason(HEADS[head], float(10.0 ** scores.log_p[row]), features_of_note)
