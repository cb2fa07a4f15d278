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
from ml.meter import CaptureMeter
from ml.own import from_own, parse_own
from ml.registry import Model
from ml.serve import Scorer
from ml.synthetic import FAMILIES, NODE, attack, write_pcap
from ml.windows import Windowed

#: Share of each attack's flows that must be stranger than 1e-2. One poisoned flow in a hundred took a port scan from
#: all of its flows to a quarter of them.
FAMILY_FLOOR: Final = 0.5


def score_attacks(model: Model) -> dict[str, float]:
    """Share of flows of each made-up attack that the model calls strange, family by family."""
    scorer, own = Scorer(model), parse_own([NODE])
    found = {}
    for family in FAMILIES:
        table = _table(family)
        rows = np.arange(len(table))
        seen = Windowed(table.source_keys(), table.sources, rows, table.pairs, rows)
        features = table.with_habits(model.habits)
        raw = model.flow.score(features)
        log_p = scorer.judge(raw, features[:, WATCHED_COLUMNS], seen, from_own(table.key, own)).log_p
        worst = np.zeros(int(table.flow_id.max()) + 1, "f4")
        np.minimum.at(worst, table.flow_id, log_p)
        found[family] = float((worst <= -2).mean())
    return found


def holds(found: dict[str, float]) -> bool:
    """Whether every made-up attack is still seen."""
    return all(share >= FAMILY_FLOOR for share in found.values())


@cache
def _table(family: str) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attack.pcap"
        write_pcap(path, attack(family, 0.0, seed=7).frames)
        return collect(CaptureMeter(path), family)
