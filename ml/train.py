"""python -m ml.train — fit the heads on clean traffic; the result is a folder that still has to be calibrated.

Training happens here, on a machine with torch, when somebody asks for it; never at start-up, never by itself.
"""

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml import material
from ml.baseline import RateRule
from ml.card import Card, library_versions
from ml.dataset import Table, TableError
from ml.features import N_FEATURES, Habits
from ml.heads import TailHead
from ml.model import EPOCHS, train_flow_head
from ml.own import from_own, guess_own
from ml.registry import Model, save

#: Fewer snapshots than this teach nothing but themselves.
LEAST_ROWS = 1000


def train(table: Table, seed: int, epochs: int = EPOCHS, note: str = "", own: NDArray[np.void] | None = None) -> Model:
    """Fit all heads on clean snapshots. own: the node's addresses, else they are guessed.

    Raises TableError when there are too few."""
    if len(table) < LEAST_ROWS:
        raise TableError(f"{len(table)} clean snapshots are too few to learn from; record at least {LEAST_ROWS}")
    own = guess_own(table.key) if own is None else own
    others = table.rows(~from_own(table.key, own))
    ended = table.final
    habits = Habits.learn(table.service[ended], table.features[ended])
    features = table.with_habits(habits)
    fit = train_flow_head(features, seed, epochs)
    card = Card(note=note).plus(
        seed=seed,
        epochs=epochs,
        trained_rows=len(table),
        trained_flows=len(np.unique(table.flow_id)),
        trained_seconds=f"{(table.at_ns[-1] - table.at_ns[0]) / 1e9:.0f}",
        trained_from_unix_s=f"{table.at_ns[0] / 1e9:.0f}",
        trained_until_unix_s=f"{table.at_ns[-1] / 1e9:.0f}",
        data_sha256=hashlib.sha256(np.ascontiguousarray(table.features).tobytes()).hexdigest(),
        features=N_FEATURES,
        services=len(habits.service),
        loss=f"{fit.loss:.5f}",
        libraries=library_versions(),
    )
    return Model(
        flow=fit.head,
        source=TailHead.learn(others.sources),
        pair=TailHead.learn(others.pairs),
        habits=habits,
        rule=RateRule.learn(others.sources),
        calibrated=None,
        card=card,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.train", description="Fit the heads on clean traffic.")
    material.add_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--note", default="", help="free text for the card: where the traffic came from")
    args = parser.parse_args(argv)
    try:
        given = material.read(args)
        model = train(given.earlier, args.seed, args.epochs, args.note, given.own)
        model = save(dataclasses.replace(model, card=model.card.plus(**given.facts)), args.model)
    except (TableError, OSError) as exc:
        print(f"train: {exc}", file=sys.stderr)
        return 1
    print(f"trained on {model.card.get('trained_rows')} snapshots; now: python -m ml.calibrate --model {args.model}")
    for remark in given.remarks:
        print(f"train: {remark}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
