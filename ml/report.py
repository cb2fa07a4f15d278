"""Tables and pictures of an evaluation: report.md, report.json and three PNG files."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from ml.labels import BENIGN
from ml.metrics import Result

#: What is shown per detector, in this order.
_FIGURES: Final = (
    ("macro_tpr_1e2", "macro-TPR at 1e-2"), ("fpr_1e2", "real FPR"), ("macro_tpr_1e3", "macro-TPR at 1e-3"),
    ("fpr_1e3", "real FPR"), ("auc", "AUC"), ("campaigns_found", "campaigns found"),
    ("benign_sources_blamed_per_hour", "benign sources blamed per hour"),
)  # fmt: skip


def write(summary: dict[str, Any], by_seed: dict[int, dict[str, Result]], folder: Path) -> None:
    """Everything into ``folder``, files replaced. Without matplotlib the pictures are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(summary), encoding="utf-8")
    seeds = {
        str(seed): {name: result.as_dict() for name, result in results.items()} for seed, results in by_seed.items()
    }
    (folder / "report.json").write_text(json.dumps({"summary": summary, "seeds": seeds}, indent=1), encoding="utf-8")
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    _families(summary, folder / "families.png")
    _delays(summary, folder / "delays.png")
    _trade_off(next(iter(by_seed.values())), folder / "roc.png")


def markdown(summary: dict[str, Any]) -> str:
    """The summary as tables: detectors, then families. Median, worst of the seeds in brackets."""
    lines = ["| detector | " + " | ".join(title for _, title in _FIGURES) + " |", "|---" * (len(_FIGURES) + 1) + "|"]
    for name, found in summary.items():
        cells = [_cell(key, found["figures"]) for key, _ in _FIGURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Share of each family's flows above the threshold for 1e-2 / 1e-3, and seconds to the first blame:",
        "",
    ]
    lines += ["| family | " + " | ".join(summary) + " | delay (ours) |", "|---" * (len(summary) + 2) + "|"]
    for family in summary["ours"]["families"]:
        cells = [
            f"{found['families'][family]['tpr_1e2']:.2f} / {found['families'][family]['tpr_1e3']:.2f}"
            for found in summary.values()
        ]
        delay = summary["ours"]["families"][family]["delay_s"]
        lines.append(f"| {family} | " + " | ".join(cells) + f" | {'never' if delay is None else f'{delay:.1f}'} |")
    return "\n".join(lines) + "\n"


def _cell(key: str, figures: dict[str, dict[str, float]]) -> str:
    median, worst = figures[key]["median"], figures[key]["worst"]
    if key == "campaigns_found":
        return f"{median:.0f} ({worst:.0f}) of {figures['campaigns']['median']:.0f}"
    digits = 4 if key.startswith(("fpr", "auc")) else 1 if key.endswith("hour") else 3
    return f"{median:.{digits}f} ({worst:.{digits}f})"


def _families(summary: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot as plt

    shown = [name for name in summary if not name.endswith("head")]
    families = list(summary["ours"]["families"])
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(families) + 1.5))
    height = 0.8 / len(shown)
    for i, name in enumerate(shown):
        rates = [summary[name]["families"][family]["tpr_1e3"] for family in families]
        axes.barh(np.arange(len(families)) + i * height, rates, height, label=name)
    axes.set_yticks(np.arange(len(families)) + 0.4 - height / 2, families)
    axes.invert_yaxis()
    axes.set_xlabel("share of the family's flows found at a calibrated 1e-3")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    _save(figure, path)


def _delays(summary: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot as plt

    delays = {name: row["delay_s"] for name, row in summary["ours"]["families"].items()}
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(delays) + 1.2))
    axes.barh(list(delays), [0 if delay is None else delay for delay in delays.values()])
    for i, delay in enumerate(delays.values()):
        axes.text(delay or 0, i, " never" if delay is None else f" {delay:.1f} s", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the campaign's start to the first blame")
    _save(figure, path)


def _trade_off(results: dict[str, Result], path: Path) -> None:
    """Macro detection rate against the false positive rate that was really reached, on a logarithmic axis."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    for name, result in results.items():
        benign = np.sort(result.flow_scores[result.family == BENIGN])
        thresholds = np.quantile(benign, 1 - np.logspace(-4, 0, 60))
        rates = [
            np.mean([(result.flow_scores[result.family == family] > t).mean() for family in result.tpr])
            for t in thresholds
        ]
        axes.semilogx(np.logspace(-4, 0, 60), rates, label=name, linestyle="--" if name.endswith("head") else "-")
    axes.set_xlabel("share of benign flows called strange")
    axes.set_ylabel("macro detection rate")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
