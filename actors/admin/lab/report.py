"""The lab's verdict: criteria, figures, and the one JSON object that machines read.

Keys and their meaning are a contract with whoever reads ``lab SCENARIO --json``; nothing is added or renamed lightly.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from actors.admin.lab.timeline import Event, Timeline, draw

#: Medians are a few hundred microseconds, on two CPUs that also run the attacker, the service and the measuring: one
#: wake-up behind another process costs up to a millisecond, whatever the firewall does. Below that, 2x says nothing.
NOISE_MS = 1.0
#: A source spends the burst of its budget first (400 packets: 20 ms at an even 20,000 a second); then the reflex has
#: so long. With the default rate the two make the promised 50 ms from the first packet of a flood.
REACTION_LIMIT_MS = 30.0


@dataclass(frozen=True, kw_only=True)
class InnocentFigures:
    """Of the requests that count in this scenario. Medians in milliseconds, None without an answered request."""

    sent: int
    lost: int
    median_ms_before: float | None
    median_ms_during: float | None
    median_ms_after: float | None

    @property
    def undisturbed(self) -> bool:
        """Nothing lost, and the median under attack within twice the median before (see ``NOISE_MS``)."""
        if self.lost or self.median_ms_before is None or self.median_ms_during is None:
            return False
        return self.median_ms_during <= max(2 * self.median_ms_before, self.median_ms_before + NOISE_MS)


class Criterion(NamedTuple):
    """What must hold in a scenario. ``timed``: it is about how fast, which whoever else uses the machine may spoil."""

    sentence: str
    held: bool
    timed: bool = False


@dataclass(kw_only=True)
class Report:
    """What one run showed. ``ok`` only when every criterion held, and there is at least one."""

    scenario: str
    seed: int
    reaction_ms: float | None = None
    sent: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    leaked: int = 0
    innocent: InnocentFigures | None = None
    cells: list[dict[str, Any]] = field(default_factory=list)
    criteria: list[Criterion] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.criteria) and all(criterion.held for criterion in self.criteria)

    def must(self, sentence: str, held: bool, *, timed: bool = False) -> None:
        """A criterion of this scenario and whether it held."""
        self.criteria.append(Criterion(sentence, bool(held), timed))

    def must_react(self, what: str, limit_ms: float) -> None:
        """``what`` happened at all, and within ``limit_ms`` (see ``reaction_ms``)."""
        self.must(what, self.reaction_ms is not None)
        in_time = self.reaction_ms is not None and self.reaction_ms <= limit_ms
        self.must(f"{what} within {limit_ms:.0f} ms", in_time, timed=True)

    def as_json(self, timeline: Timeline) -> dict[str, Any]:
        """The contract's object."""
        return {
            "scenario": self.scenario,
            "ok": self.ok,
            "seed": self.seed,
            "reaction_ms": self.reaction_ms,
            "sent": self.sent,
            "dropped": self.dropped,
            "leaked": self.leaked,
            "innocent": asdict(self.innocent) if self.innocent else {},
            "cells": self.cells,
            "timeline": timeline.rows(),
        }

    def show(self, timeline: Timeline, console: Console) -> None:
        """The summary for people: events, figures, criteria."""
        if console.is_terminal:
            for event in timeline.events:
                if event.event != "criterion":
                    console.print(draw(event), soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False)
        reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(self.dropped.items())) or "nothing"
        table.add_row("packets sent", f"{self.sent:,}")
        table.add_row("dropped", f"{sum(self.dropped.values()):,} ({reasons})")
        table.add_row("leaked after the reaction", f"{self.leaked:,}")
        table.add_row("reaction", "none" if self.reaction_ms is None else f"{self.reaction_ms:.1f} ms")
        if self.innocent:
            figures = self.innocent
            medians = (figures.median_ms_before, figures.median_ms_during, figures.median_ms_after)
            before, during, after = ("-" if value is None else f"{value:.2f}" for value in medians)
            table.add_row("innocent client", f"{figures.sent:,} requests, {figures.lost:,} lost")
            table.add_row("its median latency", f"{before} ms before, {during} ms during, {after} ms after")
        restarted = ", ".join(f"{cell['name']} {cell['restarts']}x" for cell in self.cells if cell["restarts"])
        table.add_row("cells restarted", restarted or "none")
        console.print()
        console.print(table)
        console.print()
        at_ms = timeline.at_ms()
        for sentence, held, timed in self.criteria:
            event = Event(at_ms=at_ms, event="criterion", text=sentence, good=held, timed=timed)
            console.print(draw(event), soft_wrap=True)
        console.print(f"\n{self.scenario}: {'ok' if self.ok else 'NOT ok'} (seed {self.seed})")
