"""python -m ml.calibrate — give a trained model its p-values, from clean traffic later than what it was trained on."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from ml.calibration import Curve, per_unit
from ml.dataset import Table, TableError
from ml.drift import WATCHED_COLUMNS, Reference
from ml.heads import LEAST_CURVE_SCALE
from ml.own import from_own, guess_own
from ml.pool import Pool
from ml.registry import HEADS, Calibrated, Model, ModelError, load, save
from ml.serve import Floats
from ml.split import FIT_SHARE, split_by_time


def raw_scores(model: Model, table: Table) -> Floats:
    """What each head says of each row, uncalibrated; 0 for windows of flows the node itself began. float32[3, N]."""
    scores = np.stack(
        [
            model.flow.score(table.with_habits(model.habits)),
            model.source.score(table.sources),
            model.pair.score(table.pairs),
        ]
    )
    scores[1:, from_own(table.key, guess_own(table.key))] = 0
    return scores


def calibrate(model: Model, table: Table) -> Model:
    """The model with curves and drift reference. Raises TableError when the clean period is too short."""
    scores, unit = raw_scores(model, table), table.units()
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
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--table", type=Path, help="table of ml.extract; its later part is used (see --share)")
    data.add_argument("--pool", type=Path, help="learning pool of a node")
    parser.add_argument("--model", type=Path, required=True, help="folder of ml.train; its files are replaced")
    parser.add_argument(
        "--share", type=float, default=FIT_SHARE, help="what ml.train was given: the part not to use (0.6)"
    )
    args = parser.parse_args(argv)
    try:
        table = Table.load(args.table) if args.table else Pool(args.pool).clean(time.time())
        model = save(
            calibrate(load(args.model, need_calibration=False), split_by_time(table, args.share)[1]), args.model
        )
    except (TableError, ModelError, OSError) as exc:
        print(f"calibrate: {exc}", file=sys.stderr)
        return 1
    print(
        f"calibrated on {model.card.get('calibrated_units')} units; now: python -m ml.evaluate or python -m ml.promote"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
