"""What happened when: events and samples, kept for the report and drawn while the lab runs."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

SAMPLE_S = 0.25
#: Lines of history on the screen; the report keeps all.
SHOWN_EVENTS, SHOWN_SAMPLES = 14, 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at everything. Rates are per second over the time since the sample before; latency is that window's."""

    at_ms: int
    phase: str
    sent_pps: int
    passed_pps: int
    dropped_pps: int
    innocent_ms: float | None
    innocent_lost: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """A sentence about one moment. good None: neither good nor bad; timed: a criterion about how fast."""

    at_ms: int
    event: str
    text: str
    good: bool | None = None
    timed: bool = False


@dataclass
class Timeline:
    """Collects on any thread; time starts when it is made."""

    title: str
    began_ns: int = field(default_factory=time.monotonic_ns)
    events: list[Event] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    on_event: Callable[[Event], None] | None = None

    def note(self, event: str, text: str, good: bool | None = None, at_ns: int = 0, *, timed: bool = False) -> None:
        """Something happened, now or at ``at_ns`` (CLOCK_MONOTONIC)."""
        entry = Event(at_ms=self.at_ms(at_ns), event=event, text=text, good=good, timed=timed)
        self.events.append(entry)
        if self.on_event is not None:
            self.on_event(entry)

    def at_ms(self, at_ns: int = 0) -> int:
        return ((at_ns or time.monotonic_ns()) - self.began_ns) // 1_000_000

    def rows(self) -> list[dict[str, Any]]:
        """Events and samples in the order of their time, as plain values."""
        rows: list[dict[str, Any]] = [
            {"at_ms": event.at_ms, "event": event.event, "text": event.text}
            | ({} if event.good is None else {"ok": event.good})
            | ({"timed": True} if event.timed else {})
            for event in self.events
        ]
        rows += [{"event": "sample"} | vars(sample) for sample in self.samples]
        return sorted(rows, key=lambda row: row["at_ms"])

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for column in ("s", "phase", "sent/s", "dropped/s", "passed/s", "innocent ms", "lost"):
            table.add_column(column, justify="left" if column == "phase" else "right")
        for sample in self.samples[-SHOWN_SAMPLES:]:
            latency = "" if sample.innocent_ms is None else f"{sample.innocent_ms:.2f}"
            table.add_row(
                f"{sample.at_ms / 1000:.1f}", sample.phase, f"{sample.sent_pps:,}", f"{sample.dropped_pps:,}",
                f"{sample.passed_pps:,}", latency, str(sample.innocent_lost),
            )  # fmt: skip
        return Group(
            Text(self.title, style="bold"),
            Text(),
            table,
            Text(),
            *(draw(event) for event in self.events[-SHOWN_EVENTS:]),
        )


def draw(event: Event) -> Text:
    """One line: time, sign, sentence."""
    sign, style = {None: ("·", ""), True: ("✓", "green"), False: ("✗", "red")}[event.good]
    return Text(f"{event.at_ms / 1000:7.2f} s {sign} {event.text}", style=style)


class Screen:
    """Draws the timeline while the block runs: live on a terminal, line by line elsewhere, not at all if quiet."""

    def __init__(self, timeline: Timeline, console: Console, quiet: bool) -> None:
        self._timeline = timeline
        self._live: Live | None = None
        if quiet:
            return
        if console.is_terminal:
            self._live = Live(timeline, console=console, refresh_per_second=4, transient=True)
        else:
            timeline.on_event = lambda event: console.print(draw(event), soft_wrap=True)

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._timeline.on_event = None


class Sampler:
    """Calls ``look`` four times a second until closed; a look that fails ends the sampling, never the lab."""

    def __init__(self, timeline: Timeline, look: Callable[[], Sample]) -> None:
        self._timeline, self._look = timeline, look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lab sampler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._timeline.samples.append(self._look())
