"""python -m ml.evaluate — the whole protocol on one recording: fit, calibrate later, test, beside three baselines.

A site is a folder with train_clean.pcap, test_mixed.pcap, flow_labels.csv and attack_windows.csv. The clean capture is
split by time: the earlier part fits, the later calibrates; the mixed one only tests. Labels are used to count. Every
figure is given for our heads, for an isolation forest, a plain autoencoder (same network, mean square error) and the
rate rule, all on the same features, calibrated and judged the same way; median and worst of five seeds.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml import report
from ml.calibrate import calibrate, raw_scores
from ml.calibration import Curve, per_unit
from ml.capture import CaptureError
from ml.card import Card
from ml.dataset import Table, TableError
from ml.extract import cached
from ml.labels import Labels, LabelsError, read_labels
from ml.metrics import Result, measure
from ml.own import from_own, guess_own, parse_own
from ml.registry import Model, ModelError, load, save
from ml.serve import CORRECTION
from ml.split import FIT_SHARE, split_by_time
from ml.train import train

Floats = NDArray[np.float32]

SEEDS: Final = 5
DETECTORS: Final = (
    "ours",
    "flow head",
    "source head",
    "pair head",
    "isolation forest",
    "plain autoencoder",
    "rate rule",
)


@dataclass(frozen=True, slots=True)
class Site:
    """The four files of a recording."""

    clean: Path
    mixed: Path
    labels: Path
    windows: Path

    @classmethod
    def at(cls, folder: Path) -> "Site":
        return cls(
            folder / "train_clean.pcap", folder / "test_mixed.pcap", folder / "flow_labels.csv",
            folder / "attack_windows.csv",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed: the model and what each detector achieved."""

    seed: int
    model: Model
    results: dict[str, Result]


def default_site() -> Path:
    """The lab recording beside the project, or where TEGUMENTAR_SHARED says."""
    shared = os.environ.get("TEGUMENTAR_SHARED") or Path(__file__).resolve().parents[2] / "shared"
    return Path(shared) / "data" / "lab"


def try_seed(clean: Table, test: Table, labels: Labels, own: NDArray[np.void], seed: int, model: Model | None) -> Trial:
    """Fit (unless a model is given), calibrate and test once, with every baseline."""
    fit, later = split_by_time(clean)
    model = model or calibrate(train(fit, seed), later)
    if model.calibrated is None:
        raise ModelError("the model is not calibrated: run python -m ml.calibrate")
    mine = from_own(test.key, own)
    heads = np.stack([c.log_p(row) for c, row in zip(model.calibrated.curves, _raw(model, test, mine), strict=True)])
    log_p = {
        "ours": np.minimum(heads.min(axis=0) + CORRECTION, 0),
        "flow head": heads[0], "source head": heads[1], "pair head": heads[2],
        "isolation forest": _forest(fit, later, test, seed),
        "plain autoencoder": _by_score(_mean_square(model, later), _mean_square(model, test), later),
        "rate rule": _by_score(_rule(model, later), _rule(model, test), later),
    }  # fmt: skip
    return Trial(seed, model, {name: measure(test, labels, log_p[name], own) for name in DETECTORS})


def _raw(model: Model, table: Table, mine: NDArray[np.bool_]) -> Floats:
    scores = raw_scores(model, table)
    scores[1:, mine] = 0
    return scores


def _by_score(later: Floats, test: Floats, table: Table) -> Floats:
    """log10 p of a baseline's raw score, calibrated like our own heads."""
    return Curve.fit(per_unit(later, table.units())).log_p(test)


def _mean_square(model: Model, table: Table) -> Floats:
    """The usual autoencoder score. Mean over features of the squared residual of the very same network."""
    residual = model.flow.residual(table.with_habits(model.habits)) + model.flow.residual_mean
    return np.asarray((residual * residual).mean(axis=1))


def _rule(model: Model, table: Table) -> Floats:
    score = model.rule.score(table.sources)
    score[from_own(table.key, guess_own(table.key))] = score.min()
    return score


def _forest(fit: Table, later: Table, test: Table, seed: int) -> Floats:
    """An isolation forest over flow and window features together, its best form here."""
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as exc:
        raise TableError("the isolation forest needs scikit-learn: install the dev extra") from exc
    own = guess_own(fit.key)
    middle = np.median(fit.sources, axis=0), np.median(fit.pairs, axis=0)

    def rows(table: Table) -> Floats:
        windows = [table.sources.copy(), table.pairs.copy()]
        for columns, usual in zip(windows, middle, strict=True):
            columns[from_own(table.key, own)] = usual
        return np.concatenate([table.features, *windows], axis=1)

    forest = IsolationForest(n_estimators=100, max_samples=256, random_state=seed, n_jobs=1).fit(rows(fit))
    return _by_score(
        -forest.score_samples(rows(later)).astype("f4"), -forest.score_samples(rows(test)).astype("f4"), later
    )


def summarise(trials: list[Trial]) -> dict[str, Any]:
    """Median and worst over seeds of every figure, per detector; plain values, ready for JSON."""
    out: dict[str, Any] = {}
    for name in DETECTORS:
        rows = [trial.results[name].as_dict() for trial in trials]
        figures = {}
        for key in rows[0]:
            if isinstance(rows[0][key], dict):
                continue
            values = [float(row[key]) for row in rows]
            better_high = key.startswith(("macro", "auc", "campaigns"))
            figures[key] = {"median": float(np.median(values)), "worst": min(values) if better_high else max(values)}
        families = {
            family: {
                "tpr_1e2": float(np.median([row["family_tpr"][family][0] for row in rows])),
                "tpr_1e3": float(np.median([row["family_tpr"][family][1] for row in rows])),
                "delay_s": _middle([_slowest(row["delay_s"], family) for row in rows]),
            }
            for family in rows[0]["family_tpr"]
        }
        out[name] = {"figures": figures, "families": families}
    return out


def _slowest(delays: dict[str, float | None], family: str) -> float | None:
    """The longest delay of a family's campaigns; None when one was never found."""
    mine = [delay for name, delay in delays.items() if name.split(" #")[0] == family]
    return None if None in mine else max((delay for delay in mine if delay is not None), default=None)


def _middle(delays: list[float | None]) -> float | None:
    """The median delay, with "never" as the longest."""
    value = float(np.median([np.inf if delay is None else delay for delay in delays]))
    return value if np.isfinite(value) else None


def median_trial(trials: list[Trial]) -> Trial:
    """The seed in the middle by macro detection rate at 1e-3, then by false positives: the one worth shipping."""
    ranked = sorted(trials, key=lambda trial: (trial.results["ours"].macro[1], -trial.results["ours"].fpr[0]))
    return ranked[len(ranked) // 2]


def evaluate(site: Site, seeds: int, cache: Path, own_addresses: list[str], model: Model | None = None) -> list[Trial]:
    """Raises CaptureError, TableError, LabelsError, ModelError: all sentences."""
    clean, test = cached(site.clean, cache), cached(site.mixed, cache)
    labels = read_labels(test, site.labels, site.windows)
    own = parse_own(own_addresses) if own_addresses else guess_own(clean.key)
    return [try_seed(clean, test, labels, own, seed, model) for seed in range(1 if model else seeds)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.evaluate", description=__doc__)
    parser.add_argument("--site", type=Path, default=default_site(), help="folder of the recording (default: the lab)")
    for field in fields(Site):
        parser.add_argument(f"--{field.name}", type=Path, help=f"file in place of the site's {field.name} file")
    parser.add_argument("--own", action="append", default=[], help="address of the protected node (default: guessed)")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--model", type=Path, help="judge this model instead of fitting new ones")
    parser.add_argument("--save-model", type=Path, help="write the model of the median seed to this folder")
    parser.add_argument("--note", default="", help="text for the card of the saved model")
    parser.add_argument("--example", action="store_true", help="mark the saved model as an example that must not serve")
    parser.add_argument("--out", type=Path, default=Path("build/ml/report"), help="folder for tables and pictures")
    parser.add_argument("--cache", type=Path, default=Path("build/ml/cache"), help="where extracted tables are kept")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON document")
    args = parser.parse_args(argv)
    site = Site.at(args.site)
    site = Site(*(getattr(args, field.name) or getattr(site, field.name) for field in fields(Site)))
    try:
        trials = evaluate(site, args.seeds, args.cache, args.own, load(args.model) if args.model else None)
        summary = summarise(trials)
        report.write(summary, {trial.seed: trial.results for trial in trials}, args.out)
        if args.save_model:
            _save_median(trials, args.save_model, args.note, args.example)
    except (CaptureError, TableError, LabelsError, ModelError, ValueError, OSError) as exc:
        print(f"evaluate: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=1) if args.json else report.markdown(summary))
    print(f"tables and pictures: {args.out}", file=sys.stderr)
    return 0


def _save_median(trials: list[Trial], folder: Path, note: str, example: bool) -> None:
    trial = median_trial(trials)
    found = trial.results["ours"]
    card = trial.model.card.plus(
        example="yes" if example else "no", macro_tpr_at_1e2=f"{found.macro[0]:.3f}",
        macro_tpr_at_1e3=f"{found.macro[1]:.3f}", measured_fpr_at_1e2=f"{found.fpr[0]:.4f}",
        measured_fpr_at_1e3=f"{found.fpr[1]:.4f}", auc=f"{found.auc:.4f}",
        campaigns_found=f"{found.found} of {len(found.delay_s)}", fit_share=FIT_SHARE,
        **{f"tpr_{name}": f"{low:.2f} at 1e-2, {high:.2f} at 1e-3" for name, (low, high) in found.tpr.items()},
    )  # fmt: skip
    save(replace(trial.model, card=Card(card.facts, note)), folder)


if __name__ == "__main__":
    sys.exit(main())
