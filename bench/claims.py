"""What a measurement says, in one shape for all of them: ours, the peer's, the ratio, and what was promised.

Every script is called as ``python -m bench.NAME [--quick] [--rounds N] [--json FILE]``, prints its table and, with
``--json``, writes it. ``--quick`` shrinks sizes and rounds until the whole takes seconds: it shows that the script
works, and its figures mean nothing.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """quick: a smoke run. rounds: interleaved repetitions, of which the median counts."""

    quick: bool = False
    rounds: int = ROUNDS
    seed: int = 7

    def sizes(self) -> tuple[int, ...]:
        """Numbers of list entries to measure with."""
        return (2_000,) if self.quick else (10_000, 100_000, 1_000_000)

    def packets(self, size: int) -> int:
        """How many packets one run takes with so many entries: the promises are about a million."""
        return 20_000 if self.quick else 1_000_000 if size >= 1_000_000 else 250_000


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One line. limit: the ratio (or, without a peer, the value) that was promised; None: for information."""

    what: str
    entries: int
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    limit: float | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's."""
        return None if self.theirs is None else self.ours / max(self.theirs, 1e-9)

    @property
    def kept(self) -> bool | None:
        """Whether the promise holds; None where there is none."""
        if self.limit is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value >= self.limit if self.more_is_better else value <= self.limit


HEADINGS = ("claim", "entries", "ours", "unit", "peer", "theirs", "ratio", "promised", "")


def cells(claim: Claim) -> tuple[str, ...]:
    """One row of a table."""
    sign = ">=" if claim.more_is_better else "<="
    return (
        claim.what,
        f"{claim.entries:,}" if claim.entries else "",
        _number(claim.ours),
        claim.unit,
        claim.peer,
        "" if claim.theirs is None else _number(claim.theirs),
        "" if claim.ratio is None else f"{claim.ratio:.3f}",
        "" if claim.limit is None else f"{sign} {claim.limit:g}",
        {True: "kept", False: "NOT KEPT", None: ""}[claim.kept],
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_text(claims: Iterable[Claim]) -> str:
    """A table for a terminal."""
    rows = [HEADINGS, *(cells(claim) for claim in claims)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(claims: Iterable[Claim]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*lines, *("| " + " | ".join(cells(claim)) + " |" for claim in claims)])


def median_net(times: list[float], floor: list[float]) -> float:
    """Median of a candidate less the median of the harness; at least half a nanosecond, so that ratios exist."""
    return max(statistics.median(times) - statistics.median(floor), 0.5)


def script(measure: Callable[[Options], list[Claim]], doc: str | None) -> int:
    """The main function of every script here."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--json", type=Path, help="also write the claims to this file")
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else ROUNDS)
    claims = measure(Options(quick=given.quick, rounds=rounds))
    print(as_text(claims))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(claim) for claim in claims], indent=1))
    return 0


def read(path: Path) -> list[Claim]:
    return [Claim(**row) for row in json.loads(path.read_text())]


def run(measure: Callable[[Options], list[Claim]], doc: str | None) -> None:
    """What stands below ``if __name__ == "__main__"``."""
    sys.exit(script(measure, doc))
