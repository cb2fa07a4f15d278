"""The attack regression set: five made-up attacks that every model must still see before it is promoted.

This is the second line against poisoning. A model that has learned to find a port scan normal does not pass.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from ml.dataset import Table, collect
from ml.drift import WATCHED_COLUMNS
from ml.features import NAMES
from ml.meter import CaptureMeter
from ml.own import from_own, parse_own
from ml.registry import Model
from ml.serve import Scorer
from ml.synthetic import FAMILIES, NODE, attack, write_pcap
from ml.windows import Windowed

#: Share of each attack's flows that must be stranger than 1e-2. One poisoned flow in a hundred took a port scan from
#: all of its flows to a quarter of them.
FAMILY_FLOOR: Final = 0.5
_NODE: Final = bytes(map(int, NODE.split(".")))


def score_attacks(model: Model) -> dict[str, float]:
    """Share of flows of each made-up attack that the model calls strange, family by family."""
    return {family: share[0] for family, share in _attacked(model).items()}


def rule_finds(model: Model) -> dict[str, float]:
    """Share of the same flows at which the trivial rate rule fires, learned from the same traffic."""
    return {family: share[1] for family, share in _attacked(model).items()}


def holds(found: dict[str, float]) -> bool:
    """Whether every made-up attack is still seen."""
    return all(share >= FAMILY_FLOOR for share in found.values())


def knows_both(model: Model) -> bool:
    """Whether most conversations of its training were seen from both sides; else attacks are shown to it from one."""
    return bool(model.flow.mean[NAMES.index("unanswered")] < 0.5)


def _attacked(model: Model) -> dict[str, tuple[float, float]]:
    """(share that the model, share that the rule calls strange) of each family."""
    scorer, own, found = Scorer(model), parse_own([NODE]), {}
    for family in FAMILIES:
        table = _table(family, knows_both(model))
        rows = np.arange(len(table))
        seen = Windowed(table.source_keys(), table.sources, rows, table.pairs, rows)
        features = table.with_habits(model.habits)
        scores = scorer.judge(
            model.flow.score(features), features[:, WATCHED_COLUMNS], seen, from_own(table.key, own)
        )  # fmt: skip
        flows = int(table.flow_id.max()) + 1
        worst, ruled = np.zeros(flows, "f4"), np.zeros(flows, "?")
        np.minimum.at(worst, table.flow_id, scores.log_p)
        np.logical_or.at(ruled, table.flow_id, scores.rule)
        found[family] = float((worst <= -2).mean()), float(ruled.mean())
    return found


@cache
def _table(family: str, both: bool) -> Table:
    frames = attack(family, 0.0, seed=7).frames
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attack.pcap"
        write_pcap(path, [frame for frame in frames if both or frame[1][30:34] == _NODE])
        return collect(CaptureMeter(path), family)
