"""python -m ml.promote — put a model into service through the gate, or go back to the one before.

    python -m ml.promote MODEL [--models DIR] [--clean TABLE] [--shadow-minutes 10]
    python -m ml.promote rollback [--models DIR]
    python -m ml.promote status [--models DIR] [--json]

The gate refuses a model that cannot be loaded, that learned from too little, that misses the made-up attacks, or that
calls too much of clean traffic strange. What passes is on probation for a while before its verdicts count.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from ml import promotion, regression
from ml.calibrate import raw_scores
from ml.calibration import per_unit
from ml.dataset import Table, TableError
from ml.registry import Model, ModelError, load
from ml.serve import CORRECTION
from ml.serving import SHADOW_SHARE, Serving

LEAST_TRAINED: Final = 1000
LEAST_CALIBRATED: Final = 300


def gate(model: Model, clean: Table | None) -> list[str]:
    """Why this model must not serve, in sentences; empty when it may."""
    problems = []
    if model.card.get("example") == "yes":
        problems.append("it is the shipped example, made on another network: a model does not travel, train your own")
    for fact, least, words in (
        ("trained_rows", LEAST_TRAINED, "was trained on"),
        ("calibrated_units", LEAST_CALIBRATED, "was calibrated on"),
    ):
        have = model.card.get(fact)
        if not have.isdecimal() or int(have) < least:
            problems.append(f"it {words} {have or 'an unknown number of'} rows, at least {least} are needed")
    found = regression.score_attacks(model)
    if not regression.holds(found):
        missed = ", ".join(f"{name} {share:.0%}" for name, share in found.items() if share < regression.FAMILY_FLOOR)
        problems.append(
            f"it no longer sees attacks that every model must see ({missed}): its training data may be poisoned"
        )
    if clean is not None:
        share = false_alarms(model, clean)
        if share > SHADOW_SHARE:
            problems.append(f"it calls {share:.1%} of the clean flows strange, {SHADOW_SHARE:.0%} is allowed")
    return problems


def false_alarms(model: Model, clean: Table) -> float:
    """Share of clean units called strange at 1e-2."""
    if model.calibrated is None:
        raise ModelError("the model is not calibrated: run python -m ml.calibrate")
    heads = np.stack([c.log_p(row) for c, row in zip(model.calibrated.curves, raw_scores(model, clean), strict=True)])
    return float((per_unit(-(heads.min(axis=0) + CORRECTION), clean.units()) >= 2).mean())


def default_models() -> Path:
    """Where the service looks: ``models`` in its state directory."""
    state = os.environ.get("TEGUMENTAR_STATE_DIR")
    if state:
        return Path(state) / "models"
    home = Path.home() / ".local/state/tegumentar"
    return (Path("/var/lib/tegumentar") if os.geteuid() == 0 else home) / "models"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.promote", description="Put a model into service, or go back.")
    parser.add_argument("what", help="a model folder, or: rollback, status")
    parser.add_argument("--models", type=Path, default=default_models(), help="models directory of the service")
    parser.add_argument("--clean", type=Path, help="table of later clean traffic that the model must find ordinary")
    parser.add_argument("--shadow-minutes", type=float, default=10.0, help="probation before verdicts count (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON document (status)")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except (ModelError, TableError, OSError) as exc:
        print(f"promote: {exc}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    if args.what == "status":
        return _status(args.models, args.json)
    if args.what == "rollback":
        print(f"{promotion.rollback(args.models, time.time())} is in service again")
        return 0
    folder = Path(args.what)
    problems = gate(load(folder), Table.load(args.clean) if args.clean else None)
    if problems:
        print(f"promote: {folder} stays out of service: " + "; ".join(problems), file=sys.stderr)
        return 1
    name = promotion.promote(args.models, folder, time.time(), args.shadow_minutes * 60)
    print(f"{name} is current in {args.models}, on probation for {args.shadow_minutes:g} minutes of traffic")
    return 0


def _status(models: Path, as_json: bool) -> int:
    serving, record = Serving.open(models), promotion.read(models)
    facts = {"state": serving.state.value, "reason": serving.reason, "model": record.model if record else None}
    print(
        json.dumps(facts) if as_json else f"{facts['state']}: {facts['model'] or 'no model'} {facts['reason']}".strip()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
