"""The gate: why a model must not serve, in sentences. Against poison, against a worse model, against a useless one.

Four comparisons. With the made-up attacks: it must see each of them. With the model in service: it must see no attack
worse. With the trivial rate rule learned from the same traffic: it must see at least as much. With the *anchor*, the
first model of this node or the last one whose growth somebody accepted: what it takes for usual may not have grown
beyond all measure. The last one is for the patient attacker who grows a little with every training; a day in
quarantine does not show him, but he cannot move the anchor.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml import regression
from ml.calibrate import raw_scores
from ml.calibration import per_unit
from ml.dataset import Table
from ml.pool import QUARANTINE_S
from ml.registry import Model, ModelError
from ml.serve import CORRECTION
from ml.serving import SHADOW_SHARE
from ml.windows import SOURCE_FEATURES

LEAST_TRAINED: Final = 1000
LEAST_CALIBRATED: Final = 300
#: A share of an attack's flows that may be lost from one model to the next: seeds alone move it by half of this.
SLACK: Final = 0.1
#: The highest one in a thousand of a window feature may have become this many times what it was at the anchor.
GROWTH: Final = 4.0
_RARE: Final = float(np.log(20))


def gate(
    model: Model,
    clean: Table | None,
    *,
    serving: Model | None = None,
    anchor: Model | None = None,
    own: NDArray[np.void] | None = None,
    short_quarantine: bool = False,
) -> list[str]:
    """Problems in words; empty when it may serve. clean: later traffic that it must find ordinary. short_quarantine:
    somebody has accepted traffic that waited for less than a day."""
    return [
        *_facts(model, short_quarantine),
        *_attacks(model, serving),
        *(_strange(model, clean, own) if clean is not None else ()),
        *(_growth(model, anchor) if anchor is not None else ()),
    ]


def false_alarms(model: Model, clean: Table, own: NDArray[np.void] | None = None) -> float:
    """Share of clean units called strange at 1e-2."""
    if model.calibrated is None:
        raise ModelError("the model is not calibrated: run python -m ml.calibrate")
    raw = raw_scores(model, clean, own)
    heads = np.stack([curve.log_p(row) for curve, row in zip(model.calibrated.curves, raw, strict=True)])
    return float((per_unit(-(heads.min(axis=0) + CORRECTION), clean.units()) >= 2).mean())


def _facts(model: Model, short_quarantine: bool) -> list[str]:
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
    waited = model.card.get("quarantine_hours")
    if waited and float(waited) * 3600 < QUARANTINE_S and not short_quarantine:
        problems.append(
            f"its traffic was in quarantine for {waited} hours and not a day, so that nobody had time to blame an "
            "attacker in it (--accept-short-quarantine)"
        )
    return problems


def _attacks(model: Model, serving: Model | None) -> list[str]:
    problems, found, rule = [], regression.score_attacks(model), regression.rule_finds(model)
    if not regression.holds(found):
        missed = ", ".join(f"{name} {share:.0%}" for name, share in found.items() if share < regression.FAMILY_FLOOR)
        problems.append(
            f"it no longer sees attacks that every model must see ({missed}): its training data may be poisoned"
        )
    if sum(found.values()) < sum(rule.values()):
        problems.append(
            f"the trivial rate rule sees more of the made-up attacks ({_mean(rule):.0%}) than it does "
            f"({_mean(found):.0%}): it is not worth its keep"
        )
    if serving is not None and regression.knows_both(serving) == regression.knows_both(model):
        before = regression.score_attacks(serving)
        worse = [
            f"{name} {before[name]:.0%} to {found[name]:.0%}" for name in found if found[name] < before[name] - SLACK
        ]
        if worse:
            problems.append(f"it sees less than the model in service ({', '.join(worse)})")
    return problems


def _strange(model: Model, clean: Table, own: NDArray[np.void] | None) -> list[str]:
    share = false_alarms(model, clean, own)
    if share <= SHADOW_SHARE:
        return []
    return [f"it calls {share:.1%} of the clean flows strange, {SHADOW_SHARE:.0%} is allowed"]


def _growth(model: Model, anchor: Model) -> list[str]:
    """Window features are logarithms, or shares, which cannot grow so much."""
    now, then = (one.source.knots[:, -1] + one.source.scale * _RARE for one in (model, anchor))
    grown = np.flatnonzero(now - then > np.log(GROWTH))
    if not len(grown):
        return []
    worst = grown[np.argsort(then[grown] - now[grown])][:3]
    words = ", ".join(f"{SOURCE_FEATURES[i]} {np.expm1(then[i]):.0f} to {np.expm1(now[i]):.0f}" for i in worst)
    return [
        f"what it takes for usual has grown more than {GROWTH:g} times since the anchor ({words}): somebody may have "
        "taught it slowly; if you know who it is, promote with --accept-growth"
    ]


def _mean(found: dict[str, float]) -> float:
    return sum(found.values()) / len(found)
