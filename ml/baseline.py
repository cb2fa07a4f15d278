"""The trivial baseline that always runs beside the heads: per-source rate and fan-out limits, as a boxplot gives them.

If a rule of five figures finds what a model finds, the model is not worth its keep; if it finds what the model
misses, the model is broken. Both cases are counted and shown.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ml.windows import SOURCE_FEATURES

Floats = NDArray[np.float32]

#: Whiskers at three times the box, the "far out" of Tukey 1977.
WHISKER: Final = 3.0
#: Figures are logarithms: a box is at least half of one, else a single failure is "far out" where none is usual.
LEAST_BOX: Final = 0.5


@dataclass(frozen=True, slots=True)
class RateRule:
    """limits, step: float32[5] in the units of WATCHED; a source is over when it is beyond any limit."""

    WATCHED: ClassVar[tuple[str, ...]] = (
        "src_flows_10s", "src_packets_10s", "src_bytes_10s", "src_failed_10s", "src_ports_60s",
    )  # fmt: skip

    limits: Floats
    step: Floats

    @classmethod
    def learn(cls, sources: Floats) -> "RateRule":
        """From clean rows float32[N, len(SOURCE_FEATURES)]."""
        low, high = np.quantile(sources[:, _columns()], [0.25, 0.75], axis=0)
        box = np.maximum(high - low, LEAST_BOX)
        return cls((high + WHISKER * box).astype("f4"), box.astype("f4"))

    def score(self, sources: Floats) -> Floats:
        """How many boxes a source is beyond its worst limit; above 0 the rule fires. float32[N]."""
        return np.asarray(((sources[:, _columns()] - self.limits) / self.step).max(axis=1))


def _columns() -> list[int]:
    return [SOURCE_FEATURES.index(name) for name in RateRule.WATCHED]
