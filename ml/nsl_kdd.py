"""python -m ml.nsl_kdd FOLDER — our flow head on the old NSL-KDD table, to hold the head against published figures.

A table of 1999 with features of its own, so only the head is ours: its autoencoder learns the first two thirds of the
normal rows of KDDTrain+_20Percent, thresholds are set on the last third, and KDDTest+ is scored. An isolation forest
gets the same rows. The set is redundant and its attacks are easy: these figures say that the head works on foreign
columns, and nothing about a network of today.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.metrics import auc
from ml.model import EPOCHS, train_flow_head

Floats = NDArray[np.float32]

TRAIN, TEST = "nslkdd_KDDTrain+_20Percent.txt", "nslkdd_KDDTest+.txt"
COLUMNS: Final = 43
#: Protocol, service and state are words; label and difficulty are no features.
WORDS, LABEL, NORMAL = (1, 2, 3), 41, "normal"
FIT_SHARE: Final = 2 / 3
SEEDS: Final = 3


class NslError(ValueError):
    """A file that is no NSL-KDD table. The message says which and where."""


def read(path: Path) -> list[list[str]]:
    """All rows. Raises NslError."""
    try:
        with path.open(newline="", encoding="ascii") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise NslError(f"cannot read {path}: {exc}") from exc
    for number, row in enumerate(rows, 1):
        if len(row) != COLUMNS:
            raise NslError(f"{path} line {number} has {len(row)} columns, an NSL-KDD row has {COLUMNS}")
    return rows


def encode(rows: list[list[str]], known: dict[int, list[str]]) -> Floats:
    """Numbers as ln(1 + x), words as one column for each that training knows. float32[N, F]."""
    numbers = [i for i in range(LABEL) if i not in WORDS]
    try:
        plain = np.log1p(np.array([[row[i] for i in numbers] for row in rows], "f8").clip(0))
    except ValueError as exc:
        raise NslError(f"a column that should hold numbers does not: {exc}") from exc
    marks = [np.array([row[i] for row in rows])[:, None] == np.array(words) for i, words in known.items()]
    return np.concatenate([plain, *marks], axis=1).astype("f4")


def judge(clean: Floats, scores: Floats, attack: NDArray[np.bool_]) -> dict[str, float]:
    """AUC, and the share of attacks above the thresholds that one clean row in 100 and in 1,000 exceeds."""
    found = {"auc": auc(scores[attack], scores[~attack])}
    for name, rate in (("1e-2", 1e-2), ("1e-3", 1e-3)):
        limit = np.quantile(clean, 1 - rate)
        found[f"tpr_{name}"] = float((scores[attack] > limit).mean())
        found[f"real_fpr_{name}"] = float((scores[~attack] > limit).mean())
    return {name: round(value, 4) for name, value in found.items()}


def evaluate(folder: Path, epochs: int = EPOCHS) -> dict[str, dict[str, float]]:
    """Figures of each detector; the median of the seeds. Raises NslError."""
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as exc:
        raise NslError("the isolation forest needs scikit-learn: install the dev extra") from exc
    normal = [row for row in read(folder / TRAIN) if row[LABEL] == NORMAL]
    tested = read(folder / TEST)
    cut = int(len(normal) * FIT_SHARE)
    known = {i: sorted({row[i] for row in normal[:cut]}) for i in WORDS}
    fit, quiet, test = (encode(rows, known) for rows in (normal[:cut], normal[cut:], tested))
    attack = np.array([row[LABEL] != NORMAL for row in tested])
    heads = [train_flow_head(fit, seed, epochs).head for seed in range(SEEDS)]
    ours = [judge(head.score(quiet), head.score(test), attack) for head in heads]
    forests = [IsolationForest(n_estimators=200, random_state=seed).fit(fit) for seed in range(SEEDS)]
    theirs = [judge(-forest.score_samples(quiet), -forest.score_samples(test), attack) for forest in forests]
    return {
        name: {figure: float(np.median([run[figure] for run in runs])) for figure in runs[0]}
        for name, runs in (("flow head", ours), ("isolation forest", theirs))
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.nsl_kdd", description="Our flow head on NSL-KDD.")
    parser.add_argument("folder", type=Path, help=f"where {TRAIN} and {TEST} are")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        found = evaluate(args.folder, args.epochs)
    except NslError as exc:
        print(f"nsl_kdd: {exc}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for name, figures in found.items():
            print(f"{name:17}" + "  ".join(f"{figure} {value:.3f}" for figure, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
