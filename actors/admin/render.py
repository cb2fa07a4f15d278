"""What people see: one look for all verbs. Colour says nothing that a word does not; rich honours NO_COLOR."""

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: State of a cell, a layer, the node, a feed, a check → sign and colour.
STATES = {
    "healthy": ("●", "green"),
    "starting": ("◌", "cyan"),
    "degraded": ("◐", "yellow"),
    "down": ("✕", "red"),
    "off": ("○", "bright_black"),
    "new": ("◌", "cyan"),
    "stale": ("◐", "yellow"),
    "quarantined": ("◐", "yellow"),
    "failed": ("✕", "red"),
    "yes": ("●", "green"),
    "no": ("✕", "red"),
    "unknown": ("?", "bright_black"),
}
POSTURES = {"explore": "cyan", "balanced": "green", "hardened": "yellow", "lockdown": "red"}
QUIET = "bright_black"


def screen() -> Console:
    """The terminal, or plain text in long lines where there is none, for grep (``COLUMNS`` decides otherwise)."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160
    return Console(highlight=False, soft_wrap=False, width=width, emoji=False)


def show(*parts: RenderableType) -> None:
    screen().print(Group(*parts))


def state(name: str, word: str | None = None) -> Text:
    sign, colour = STATES.get(name, ("?", QUIET))
    return Text(f"{sign} {word if word is not None else name}", style=colour, no_wrap=True)


def posture(name: str) -> Text:
    return Text(name.upper(), style=f"bold {POSTURES.get(name, 'white')}")


def heading(text: str, after: Text | str = "") -> Text:
    line = Text(text, style="bold")
    return line.append("  ").append_text(after if isinstance(after, Text) else Text(after, style=QUIET))


def quiet(text: str) -> Text:
    return Text(text, style=QUIET)


def indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2))


def table(columns: Iterable[str | tuple[str, dict[str, Any]]], rows: Iterable[Iterable[Any]]) -> Table:
    """A table without a frame: headings in small, cells as text, the last column takes what room is left."""
    titled = [column if isinstance(column, tuple) else (column, {}) for column in columns]
    made = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style=QUIET,
        pad_edge=False,
        collapse_padding=True,
        show_header=any(title for title, _ in titled),
    )
    for title, how in titled:
        made.add_column(title, **({"overflow": "fold"} | how))
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def pairs(rows: Iterable[tuple[str, Any]]) -> Table:
    """Name and value, one pair a line."""
    made = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    made.add_column(style=QUIET, no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return made


def bar(value: float, *, worse_when_full: bool = True, width: int = 20) -> Text:
    """A level from 0 to 1."""
    full = max(0, min(width, round(value * width)))
    strain = value if worse_when_full else 1 - value
    colour = "green" if strain < 0.5 else "yellow" if strain < 0.8 else "red"
    return Text("━" * full, style=colour).append("━" * (width - full), style="grey23")


def problem(sentence: str, remedy: str = "") -> Text:
    text = Text(sentence, style="yellow")
    return text.append(f"\n→ {remedy}", style="default") if remedy else text


def watch(draw: Callable[[], RenderableType], period_s: float = 1.0) -> None:
    """Draw again and again until the reader has seen enough (Ctrl-C)."""
    import time

    from rich.live import Live

    with Live(draw(), console=screen(), auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            time.sleep(period_s)
            live.update(draw(), refresh=True)
