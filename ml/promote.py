"""python -m ml.promote — put a model into service through the gate, or go back to the one before.

    python -m ml.promote MODEL [--models DIR] [--clean TABLE | --pool [DIR]] [--shadow-minutes 10]
    python -m ml.promote rollback [--models DIR]
    python -m ml.promote status [--models DIR] [--json]

The gate (:mod:`ml.gate`) refuses a model that cannot be loaded, that learned from too little or too soon, that misses
made-up attacks, sees less than the model in service or than the rate rule, lets its idea of usual grow beyond measure,
or calls too much of clean traffic strange. What passes is on probation for a while before its verdicts count.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from ml import promotion
from ml.dataset import Table, TableError
from ml.gate import gate
from ml.pool import QUARANTINE_S, Pool, pool_dir, state_dir
from ml.registry import Model, ModelError, load
from ml.serving import Serving
from ml.split import split_by_time


def default_models() -> Path:
    """Where the service looks: ``models`` in its state directory."""
    return state_dir() / "models"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ml.promote", description="Put a model into service, or go back.")
    parser.add_argument("what", help="a model folder, or: rollback, status")
    parser.add_argument("--models", type=Path, default=default_models(), help="models directory of the service")
    parser.add_argument("--clean", type=Path, help="table of later clean traffic that the model must find ordinary")
    parser.add_argument("--pool", type=Path, nargs="?", const=pool_dir(), help="the same from a learning pool")
    parser.add_argument("--accept-growth", action="store_true", help="traffic has grown, and I know why: a new anchor")
    parser.add_argument(
        "--accept-short-quarantine", action="store_true", help="its traffic waited for less than a day, and I know it"
    )
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
    model, later, own = load(folder), None, None
    if args.clean:
        later = Table.load(args.clean)
    elif args.pool:
        hours = float(model.card.get("quarantine_hours") or QUARANTINE_S / 3600)
        lesson = Pool(args.pool).clean(time.time(), hours * 3600)
        later, own = split_by_time(lesson.table)[1], lesson.own
    problems = gate(
        model,
        later,
        serving=_known(args.models / promotion.CURRENT),
        anchor=None if args.accept_growth else _known(args.models / promotion.ANCHOR),
        own=own,
        short_quarantine=args.accept_short_quarantine,
    )
    if problems:
        print(f"promote: {folder} stays out of service: " + "; ".join(problems), file=sys.stderr)
        return 1
    name = promotion.promote(args.models, folder, time.time(), args.shadow_minutes * 60, new_anchor=args.accept_growth)
    print(f"{name} is current in {args.models}, on probation for {args.shadow_minutes:g} minutes of traffic")
    return 0


def _known(folder: Path) -> Model | None:
    """A model to compare with; one that cannot be loaded any more is no yardstick."""
    try:
        return load(folder)
    except (ModelError, OSError):
        return None


def _status(models: Path, as_json: bool) -> int:
    """As the running service last said; where none has spoken of this model yet, as it would find it."""
    record, said = promotion.read(models), promotion.heard(models)
    if said is None or record is None or said.get("model") != record.model:
        serving = Serving.open(models)
        said = {"state": serving.state.value, "reason": serving.reason, "drift": None}
    facts = {**said, "model": record.model if record else None}
    words = f"{facts['state']}: {facts['model'] or 'no model'} {facts['reason']}".strip()
    drift = f" (drift {facts['drift']})" if facts["drift"] else ""
    print(json.dumps(facts) if as_json else words + drift)
    return 0


if __name__ == "__main__":
    sys.exit(main())
