"""Has the network moved away from what the model learned? The population stability index against calibration.

PSI = sum over ten bins of (now - then) * ln(now / then). Under 0.1 nothing has changed, above 0.2 the head stops
blocking by itself (frozen), above 1 the model is of another network or another time (stale).
Source: Siddiqi, Credit Risk Scorecards, 2006.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ml.features import NAMES

Floats = NDArray[np.float32]

BINS: Final = 10
FROZEN_ABOVE: Final = 0.2
STALE_ABOVE: Final = 1.0
#: Fewer rows than this say nothing about ten bins.
LEAST_ROWS: Final = 500
#: An empty bin counts as this share, so that one flow in it is no infinity.
_LEAST_SHARE: Final = 1e-3


class Drift(StrEnum):
    """``unknown`` until enough flows were seen."""

    UNKNOWN = "unknown"
    STEADY = "steady"
    FROZEN = "frozen"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Reference:
    """Calibration traffic in ten bins: edges float32[ROWS, 9], shares float32[ROWS, 10].

    Row 0 is the flow head's score, the others are the main features."""

    WATCHED: ClassVar[tuple[str, ...]] = (
        "fwd_packets", "bwd_packets", "fwd_payload", "bwd_payload", "fwd_payload_mean", "bwd_payload_mean", "duration",
        "packet_rate", "byte_ratio", "service_habit",
    )  # fmt: skip
    ROWS: ClassVar[int] = 1 + 10

    edges: Floats
    shares: Floats

    @classmethod
    def of(cls, scores: Floats, watched_features: Floats) -> "Reference":
        watched = np.concatenate([scores[None], watched_features.T])
        edges = np.quantile(watched, np.linspace(0, 1, BINS + 1)[1:-1], axis=1).T.astype("f4")
        return cls(edges, _shares(watched, edges))


#: Columns of the feature matrix that the drift figure looks at.
WATCHED_COLUMNS: Final = [NAMES.index(name) for name in Reference.WATCHED]


class DriftMeter:
    """Bins what is scored and compares with the reference; ``take`` ends a period (each 5 minutes)."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._counts = np.zeros(reference.shares.shape, "f8")

    def add(self, scores: Floats, watched_features: Floats) -> None:
        """scores: float32[N]; watched_features: float32[N, 10], the columns WATCHED_COLUMNS of the features."""
        self._counts += _counts(np.concatenate([scores[None], watched_features.T]), self._reference.edges)

    def take(self) -> tuple[Drift, float, dict[str, float]]:
        """(state, PSI of the score, PSI of each watched feature) of the period; starts the next one.

        Only the score decides: a feature that moves without moving the score is worth a look, not a stop."""
        rows = self._counts[0].sum()
        if rows < LEAST_ROWS:
            return Drift.UNKNOWN, 0.0, {}
        index = psi(self._reference.shares, (self._counts / rows).astype("f4"))
        self._counts[:] = 0
        return judge(float(index[0])), float(index[0]), dict(zip(Reference.WATCHED, index[1:].tolist(), strict=True))


def judge(index: float) -> Drift:
    if index > STALE_ABOVE:
        return Drift.STALE
    return Drift.FROZEN if index > FROZEN_ABOVE else Drift.STEADY


def psi(then: Floats, now: Floats) -> Floats:
    """Population stability index along the last axis."""
    then, now = np.maximum(then, _LEAST_SHARE), np.maximum(now, _LEAST_SHARE)
    return np.asarray(((now - then) * np.log(now / then)).sum(axis=-1))


def _counts(watched: Floats, edges: Floats) -> NDArray[np.float64]:
    return np.stack(
        [
            np.bincount(np.searchsorted(edge, row, "right"), minlength=BINS)
            for row, edge in zip(watched, edges, strict=True)
        ]
    ).astype("f8")


def _shares(watched: Floats, edges: Floats) -> Floats:
    return np.asarray(_counts(watched, edges) / watched.shape[1], "f4")
