"""python -m ml.calibrate — give a trained model its p-values, from clean traffic later than what it was trained on."""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml import material
from ml.calibration import Curve, per_unit
from ml.dataset import Table, TableError
from ml.drift import WATCHED_COLUMNS, Reference
from ml.heads import LEAST_CURVE_SCALE
from ml.own import from_own, guess_own
from ml.registry import HEADS, Calibrated, Model, ModelError, load, save
from ml.serve import Floats


def raw_scores(model: Model, table: Table, own: NDArray[np.void] | None = None) -> Floats:
    """What each head says of each row, uncalibrated; 0 for windows of flows the node itself began. float32[3, N]."""
    own = guess_own(table.key) if own is None else own
    scores = np.stack(
        [
            model.flow.score(table.with_habits(model.habits)),
            model.source.score(table.sources),
            model.pair.score(table.pairs),
        ]
    )
    scores[1:, from_own(table.key, own)] = 0
    return scores


def calibrate(model: Model, table: Table, own: NDArray[np.void] | None = None) -> Model:
    """The model with curves and drift reference. Raises TableError when the clean period is too short."""
    scores, unit = raw_scores(model, table, own), table.units()
    try:
        flow, *windows = (per_unit(row, unit) for row in scores)
        curves = (Curve.fit(flow), *(Curve.fit(row, LEAST_CURVE_SCALE) for row in windows))
    except ValueError as exc:
        raise TableError(str(exc)) from exc
    reference = Reference.of(scores[0], table.with_habits(model.habits)[:, WATCHED_COLUMNS])
    card = model.card.plus(
        calibrated_units=int(unit.max()) + 1,
        calibrated_seconds=f"{(table.at_ns[-1] - table.at_ns[0]) / 1e9:.0f}",
        **{f"score_at_95_percent_{name}": f"{c.knots[-1]:.3f}" for name, c in zip(HEADS, curves, strict=True)},
    )
    return dataclasses.replace(model, calibrated=Calibrated(curves, reference), card=card)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.calibrate", description=__doc__)
    material.add_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="folder of ml.train; its files are replaced")
    args = parser.parse_args(argv)
    try:
        given = material.read(args)
        model = save(calibrate(load(args.model, need_calibration=False), given.later, given.own), args.model)
    except (TableError, ModelError, OSError) as exc:
        print(f"calibrate: {exc}", file=sys.stderr)
        return 1
    print(
        f"calibrated on {model.card.get('calibrated_units')} units; now: python -m ml.evaluate or python -m ml.promote"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
