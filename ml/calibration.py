"""From a head's score to a p-value: how often would clean traffic of this node look so strange?

The curve is fitted on a clean period *later* than the one the heads were trained on, per unit (a minute of a flow,
at its strangest), because that is what a false alarm is. Up to the 95th percentile the curve is the empirical tail,
beyond it an exponential in the score, fitted to the excesses: a threshold of 1e-3 needs no thousand more flows, and a
score beyond everything seen still has an order of magnitude.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TAIL_AT: Final = 0.95
_BODY: Final = np.linspace(0, TAIL_AT, 96)


@dataclass(frozen=True, slots=True)
class Curve:
    """knots: float32[KNOTS] scores at evenly spaced quantiles up to TAIL_AT; scale: mean excess beyond the last."""

    KNOTS: ClassVar[int] = len(_BODY)

    knots: Floats
    scale: float

    @classmethod
    def fit(cls, scores: Floats, least_scale: float = 1e-6) -> "Curve":
        """From one score per clean unit; the tail falls no faster than ``least_scale`` allows.

        Raises ValueError with fewer than 100 units: a tail of five points is a guess."""
        if len(scores) < 100:
            raise ValueError(f"{len(scores)} clean units are too few to calibrate with; record a longer clean period")
        knots = np.quantile(scores, _BODY).astype("f4")
        excess = scores[scores > knots[-1]] - knots[-1]
        scale = float(excess.mean()) if len(excess) else 0.0
        return cls(knots, max(scale, 1e-3 * float(np.std(scores)), least_scale))

    def log_p(self, scores: Floats) -> Floats:
        """log10 of the p-value, from 0 down. float32[N]."""
        rank = np.interp(scores, self.knots, _BODY)
        beyond = np.maximum(scores - self.knots[-1], 0) / self.scale / np.log(10)
        return np.asarray(np.log10(1 - rank) - beyond, "f4")


def per_unit(values: Floats, unit: NDArray[np.int64]) -> Floats:
    """The largest value of each unit. float32[units]."""
    out = np.full(int(unit.max()) + 1, -np.inf, "f4")
    np.maximum.at(out, unit, values)
    return out
