"""The three heads as plain numpy: what serving needs and all of it.

A head turns what is known of a flow into one number, higher = stranger. Which number is strange enough is not a
head's business: :mod:`ml.calibration` turns it into a p-value.

* :class:`FlowHead`: autoencoder; the residual is whitened, the score is its Mahalanobis norm.
  Sees: a flow unlike any in training. Blind to: normal flows in abnormal numbers.
* :class:`TailHead` over source windows: sees counts, fan-out and failures beyond what any clean source reached.
  Blind to: a stranger who stays within the habits of the busiest clean client.
* :class:`TailHead` over pair windows: sees repetition, regularity and lingering sessions between two addresses.

Sources: denoising autoencoder, Vincent et al. 2008; Mahalanobis distance of a regularised covariance, Ledoit and
Wolf 2004; exponential excess over a high quantile, Pickands 1975.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Standardised inputs are clipped here: one absurd column shall not drown the others.
CLIP: Final = 10.0
#: Knots of the empirical tail; beyond the last the tail is exponential.
KNOT_QUANTILES: Final = np.concatenate([np.linspace(0, 0.9, 19), np.linspace(0.91, 0.98, 8)])
#: Windows are logarithms and shares; a feature that was constant in training surprises as if it had moved by this.
LEAST_SCALE: Final = 0.1
_LN10: Final = float(np.log(10))
#: A unit of surprise is a factor of ten by the head's own tails; calibration may say that it is worth up to a decade
#: and a half, no more. Windows of a minute follow each other slowly: a few minutes of a few clients are a handful of
#: independent looks, and a tail fitted to them alone comes out too steep.
LEAST_CURVE_SCALE: Final = 1 / (1.5 * _LN10)


@dataclass(frozen=True, slots=True)
class FlowHead:
    """Weights of the autoencoder, its input scaler and the whitening of its residual.

    mean, scale: float32[F]; layers: (weight float32[in, out], bias float32[out]) with tanh between them;
    residual_mean: float32[F]; whiten: float32[F, F], such that the whitened training residual has unit covariance."""

    mean: Floats
    scale: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    residual_mean: Floats
    whiten: Floats

    def standardise(self, features: Floats) -> Floats:
        """float32[N, F] in deviations from the training mean, clipped."""
        x = np.subtract(features, self.mean, order="C")
        x *= self.scale
        np.clip(x, -CLIP, CLIP, out=x)
        return x

    def residual(self, features: Floats) -> Floats:
        """What the autoencoder could not rebuild, less its mean. float32[N, F]."""
        x = self.standardise(features)
        hidden = x
        for weight, bias in self.layers[:-1]:
            hidden = hidden @ weight
            hidden += bias
            np.tanh(hidden, out=hidden)
        weight, bias = self.layers[-1]
        x -= hidden @ weight
        x -= bias + self.residual_mean
        return x

    def score(self, features: Floats) -> Floats:
        """ln(1 + Mahalanobis norm of the residual). float32[N], higher = stranger."""
        white = self.residual(features) @ self.whiten
        return np.asarray(np.log1p(np.sqrt(np.einsum("ij,ij->i", white, white))))

    def blame(self, features: Floats) -> Floats:
        """Share of the squared norm that each feature brings. float32[N, F], rows sum to 1 (parts may be negative)."""
        residual = self.residual(features)
        parts = residual * (residual @ self.whiten @ self.whiten.T)
        return np.asarray(parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True, slots=True)
class TailHead:
    """Upper tails of window features, one by one; the score is that of the most surprising feature.

    knots: float32[F, K] values at KNOT_QUANTILES; scale: float32[F] mean excess over the last knot."""

    knots: Floats
    scale: Floats

    @classmethod
    def learn(cls, rows: Floats) -> "TailHead":
        """From clean rows float32[N, F]. A feature that never moved gets LEAST_SCALE: its first movement is a
        surprise and not a certainty."""
        knots = np.quantile(rows, KNOT_QUANTILES, axis=0).T.astype("f4")
        last = knots[:, -1]
        excess = np.array(
            [float((c[c > q] - q).mean()) if (c > q).any() else 0.0 for c, q in zip(rows.T, last, strict=True)]
        )
        spread = rows.std(axis=0)
        return cls(knots, np.maximum(np.maximum(excess, 0.3 * spread), LEAST_SCALE).astype("f4"))

    def surprise(self, rows: Floats) -> Floats:
        """-log10 of each feature's upper tail. float32[N, F] from 0 up."""
        out = np.empty_like(rows)
        for i, column in enumerate(self._columns(rows)):
            out[:, i] = column
        return out

    def score(self, rows: Floats) -> Floats:
        """float32[N], higher = stranger."""
        worst = np.zeros(len(rows), "f4")
        for column in self._columns(rows):
            np.maximum(worst, column, out=worst)
        return worst

    def _columns(self, rows: Floats) -> Iterator[Floats]:
        tail = -np.log10(1 - KNOT_QUANTILES)
        for i, (knots, scale) in enumerate(zip(self.knots, self.scale, strict=True)):
            column = rows[:, i]
            beyond = np.maximum(column - knots[-1], 0) / scale / _LN10
            yield (np.interp(column, knots, tail) + beyond).astype("f4")
