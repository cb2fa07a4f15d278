"""How good a detector is, on labelled flows: pure arithmetic, no model and no file.

The unit is the labelled flow, at its strangest moment. Detection is counted per family and averaged over families,
so that a flood of ten thousand flows weighs as much as nine logins. Accuracy and F1 are not computed: at these shares
of attacks they mean nothing.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.dataset import Table
from ml.decision import Evidence, Judge
from ml.labels import BENIGN, Labels
from ml.own import from_own

Floats = NDArray[np.float32]
HOUR_NS: Final = 3_600_000_000_000
#: Flows of a campaign are judged until they are idle; a blame that late still found it.
AFTERMATH_NS: Final = 30_000_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """One detector on one test. tpr: family to (at 1e-2, at 1e-3); delay_s: campaign to seconds from its start
    to the first blame, None when never; blamed: benign sources blamed, and per hour."""

    tpr: dict[str, tuple[float, float]]
    fpr: tuple[float, float]
    auc: float
    delay_s: dict[str, float | None]
    benign_blamed: int
    benign_blamed_per_hour: float
    flow_scores: Floats
    family: NDArray[np.str_]

    @property
    def macro(self) -> tuple[float, float]:
        rates = np.array(list(self.tpr.values()))
        return float(rates[:, 0].mean()), float(rates[:, 1].mean())

    @property
    def found(self) -> int:
        return sum(delay is not None for delay in self.delay_s.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "macro_tpr_1e2": self.macro[0], "macro_tpr_1e3": self.macro[1], "fpr_1e2": self.fpr[0],
            "fpr_1e3": self.fpr[1], "auc": self.auc, "campaigns": len(self.delay_s), "campaigns_found": self.found,
            "benign_sources_blamed": self.benign_blamed, "benign_sources_blamed_per_hour": self.benign_blamed_per_hour,
            "delay_s": self.delay_s, "family_tpr": {name: list(rates) for name, rates in self.tpr.items()},
        }  # fmt: skip


def measure(table: Table, labels: Labels, log_p: Floats, own: NDArray[np.void]) -> Result:
    """Judge one detector by the log10 p-value it gave to each row of the test table."""
    matched = labels.flow_of_row >= 0
    score = np.zeros(len(labels.family), "f4")
    np.maximum.at(score, labels.flow_of_row[matched], -log_p[matched])
    benign = labels.family == BENIGN
    tpr = {}
    for family in labels.families:
        rows = score[labels.family == family]
        tpr[family] = (float((rows >= 2).mean()), float((rows >= 3).mean()))
    delays, blamed = _incidents(table, labels, log_p, own)
    hours = float(table.at_ns[-1] - table.at_ns[0]) / HOUR_NS
    return Result(
        tpr=tpr,
        fpr=(float((score[benign] >= 2).mean()), float((score[benign] >= 3).mean())),
        auc=auc(score[~benign], score[benign]),
        delay_s=delays,
        benign_blamed=blamed,
        benign_blamed_per_hour=blamed / hours,
        flow_scores=score,
        family=labels.family,
    )


def campaign_names(labels: Labels) -> list[str]:
    """One name per campaign: its family, numbered where a family comes more than once."""
    names: list[str] = []
    for campaign in labels.campaigns:
        earlier = sum(name.split(" #")[0] == campaign.family for name in names)
        names.append(f"{campaign.family} #{earlier + 1}" if earlier else campaign.family)
    return names


def auc(attacks: Floats, benign: Floats) -> float:
    """Area under the ROC curve: the chance that an attack flow looks stranger than a benign one; ties count half."""
    order = np.sort(benign)
    below = np.searchsorted(order, attacks, "left") + np.searchsorted(order, attacks, "right")
    return float(below.mean() / (2 * len(order)))


def _incidents(
    table: Table, labels: Labels, log_p: Floats, own: NDArray[np.void]
) -> tuple[dict[str, float | None], int]:
    """Run the judge over the test in order of time: delay per campaign, and how many benign sources it blamed."""
    judge, mine = Judge(), from_own(table.key, own)
    key, of_source = np.unique(table.source_keys(), return_inverse=True)
    family = np.where(labels.flow_of_row >= 0, labels.family[labels.flow_of_row], BENIGN)
    names = campaign_names(labels)
    delays: dict[str, float | None] = dict.fromkeys(names)
    benign = 0
    edges = np.flatnonzero(np.diff(table.at_ns)) + 1
    for rows in np.split(np.arange(len(table)), edges):
        now = int(table.at_ns[rows[0]])
        present, local = np.unique(of_source[rows], return_inverse=True)
        batch = Evidence(now, log_p[rows], table.flow_id[rows], key[present], local, table.service[rows], mine[rows])
        for blame in judge.weigh(batch):
            name = str(family[rows[blame.row]])
            if name == BENIGN:
                benign += not blame.renewed
                continue
            for label, campaign in zip(names, labels.campaigns, strict=True):
                during = campaign.start_ns <= now <= campaign.end_ns + AFTERMATH_NS
                if campaign.family == name and during and delays[label] is None:
                    delays[label] = (now - campaign.start_ns) / 1e9
    return delays, benign
