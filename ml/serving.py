"""The promoted model of a node as a state: learning, shadow, active, frozen, stale. Opening never raises or trains.

Whatever is wrong with a model, the node goes on with its plain rules and says what is wrong and what to do.
"""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml import promotion
from ml.drift import Drift, DriftMeter
from ml.registry import ModelError
from ml.serve import Scorer, Scores

DRIFT_PERIOD_NS: Final = 300_000_000_000
#: Of ordinary flows one in a hundred is called strange by design; three times that on probation is a bad model.
SHADOW_SHARE: Final = 0.03
#: A probation that saw fewer flows than this has proved nothing and goes on.
SHADOW_LEAST_FLOWS: Final = 1000
_STRANGE: Final = -2.0


class ServingState(StrEnum):
    """``learning``: no model. ``shadow``: on probation. ``active``: its verdicts count. ``frozen``: it drifted, its
    verdicts are shown only. ``stale``: refused, or made for another network."""

    LEARNING = "learning"
    SHADOW = "shadow"
    ACTIVE = "active"
    FROZEN = "frozen"
    STALE = "stale"


class Serving:
    """State, reason in words, and the scorer (None when there is nothing to score with)."""

    def __init__(self, models: Path, state: ServingState, reason: str, scorer: Scorer | None) -> None:
        self.models, self.state, self.reason, self.scorer = models, state, reason, scorer
        self.index = 0.0  # the last stability index
        self._drift = DriftMeter(scorer.calibrated.reference) if scorer else None
        self._drift_due_ns = 0
        self._shadow_until_ns = 0
        self._shadow_flows = self._shadow_strange = 0

    @classmethod
    def open(cls, models: Path) -> "Serving":
        """``models`` is the directory that ml.promote manages."""
        folder = models / promotion.CURRENT
        if not folder.exists():
            words = f"no model in {models}: the plain rules act; train one with python -m ml.train, then ml.promote"
            return cls(models, ServingState.LEARNING, words, None)
        try:
            scorer = Scorer.load(folder)
        except (ModelError, OSError) as exc:
            return cls(models, ServingState.STALE, str(exc), None)
        record = promotion.read(models)
        if record is None or not record.passed:
            return cls(models, ServingState.SHADOW, "on probation: its verdicts are shown and do not count", scorer)
        return cls(models, ServingState.ACTIVE, "", scorer)

    @property
    def counts(self) -> bool:
        """Whether verdicts of the model may be proposed."""
        return self.state is ServingState.ACTIVE

    def follow(self, now_ns: int, scores: Scores, ordinary: NDArray[np.bool_]) -> None:
        """Keep probation and drift up to date. ``ordinary`` marks flows of sources that are not under blame: an attack
        must not look like a changed network and so switch off what sees it."""
        if self._drift is None:
            return
        self._drift.add(scores.raw[ordinary], scores.watched[ordinary])
        self._drift_due_ns = self._drift_due_ns or now_ns + DRIFT_PERIOD_NS
        if now_ns >= self._drift_due_ns:
            self._drift_due_ns = now_ns + DRIFT_PERIOD_NS
            self._moved(*self._drift.take()[:2])
        if self.state is ServingState.SHADOW:
            self._probe(now_ns, scores.log_p[ordinary])

    def _moved(self, drift: Drift, index: float) -> None:
        self.index = index
        words = f"stability index {index:.2f} against calibration"
        if drift is Drift.STALE:
            self.state, self.reason = ServingState.STALE, f"{words}: another network or another time, train again"
        elif drift is Drift.FROZEN and self.state is ServingState.ACTIVE:
            self.state, self.reason = ServingState.FROZEN, f"{words}: its verdicts are shown, not enforced"
        elif drift is Drift.STEADY and self.state is ServingState.FROZEN:
            self.state, self.reason = ServingState.ACTIVE, ""

    def _probe(self, now_ns: int, log_p: NDArray[np.float32]) -> None:
        record = promotion.read(self.models)
        shadow_s = record.shadow_s if record else 600.0
        self._shadow_until_ns = self._shadow_until_ns or now_ns + int(shadow_s * 1e9)
        self._shadow_flows += len(log_p)
        self._shadow_strange += int((log_p <= _STRANGE).sum())
        if now_ns < self._shadow_until_ns or self._shadow_flows < SHADOW_LEAST_FLOWS:
            return
        share = self._shadow_strange / self._shadow_flows
        self._shadow_until_ns, self._shadow_flows, self._shadow_strange = 0, 0, 0
        if share > SHADOW_SHARE:
            self.reason = (
                f"probation goes on: it called {share:.1%} of ordinary flows strange, {SHADOW_SHARE:.0%} is allowed"
            )
            return
        self.state, self.reason = ServingState.ACTIVE, ""
        if record is not None:
            try:
                promotion.write(self.models, replace(record, passed=True))
            except OSError as exc:
                self.reason = f"probation passed, but it could not be noted and will be repeated after a restart: {exc}"
