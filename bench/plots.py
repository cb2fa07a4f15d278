"""One picture per script: ours beside each peer, for the largest number of entries that was measured."""

from pathlib import Path

from bench.claims import Claim

OURS, THEIRS = "#2f6f4f", "#b9b4a8"


def draw(claims: list[Claim], title: str, target: Path) -> bool:
    """Write a PNG of the claims that have a peer. False when there is none to draw."""
    compared = [claim for claim in claims if claim.theirs is not None]
    if not compared:
        return False
    largest = max(claim.entries for claim in compared)
    shown = [claim for claim in compared if claim.entries >= 0.9 * largest] or compared
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    labels = [f"{claim.what}\nagainst {claim.peer}" for claim in shown]
    rows = range(len(shown))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.55 * len(shown)))
    axes.barh([row - 0.2 for row in rows], [claim.theirs or 0 for claim in shown], 0.38, color=THEIRS, label="peer")
    axes.barh([row + 0.2 for row in rows], [claim.ours for claim in shown], 0.38, color=OURS, label="Tegumentar")
    for row, claim in zip(rows, shown, strict=True):
        axes.text(max(claim.ours, claim.theirs or 0), row, f"  {claim.ratio:.2f}x", va="center", fontsize=8)
    axes.set_yticks(list(rows), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(", ".join(dict.fromkeys(claim.unit for claim in shown)))
    axes.set_title(title, fontsize=9, wrap=True)
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return True
