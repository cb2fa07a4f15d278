"""Plays one scenario from curtain to summary; returns the report. Whatever happens, the stage is cleared."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from actors.admin.lab.report import Report
from actors.admin.lab.scenarios import SCENARIOS
from actors.admin.lab.service import Service
from actors.admin.lab.stage import Options, ProtectorFactory, Stage
from actors.admin.lab.timeline import Screen, Timeline
from actors.core.errors import TegumentarError


def play(
    name: str,
    options: Options,
    console: Console,
    *,
    quiet: bool = False,
    settings: Mapping[str, str] | None = None,
    protect: ProtectorFactory = Service,
) -> tuple[Report, Timeline]:
    """One scenario. quiet: nothing is drawn. settings: ``TEGUMENTAR_*`` variables of the node, over the scenario's.

    An error in the middle is a criterion that failed, with its sentence."""
    scenario = SCENARIOS[name]
    timeline = Timeline(title=f"{name}: {scenario.summary}")
    report = Report(scenario=name, seed=options.seed)
    with _signals_raise(), Screen(timeline, console, quiet):
        try:
            with Stage(options, timeline, {**scenario.settings, **(settings or {})}, protect) as stage:
                try:
                    scenario.play(stage, report)
                finally:
                    report.cells = stage.cells()
        except TegumentarError as error:
            timeline.note("error", str(error), good=False)
            report.must(f"the scenario was played to its end: {error}", False)
    for sentence, held, timed in report.criteria:
        timeline.note("criterion", sentence, good=held, timed=timed)
    return report, timeline


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end the lab through its ``finally`` clauses, as Ctrl-C does."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
