"""Renewal: which cells a change of the settings concerns, and one of them after the other started anew.

Pure: what the settings are is no matter here, only whether two readings of them differ at a place that a cell is born
with. Protection stands in the kernel while a cell is away; with one away at a time, the node keeps answering too.
"""

from collections.abc import Iterable
from typing import Any

from actors.core.anatomy import CellSpec


def changed(paths: Iterable[str], before: Any, after: Any) -> list[str]:
    """Those of ``paths`` (``mast``, ``reflex.rungs``) with another value, or with other mistakes in their section."""
    return [
        path
        for path in paths
        if _value(before, path) != _value(after, path) or _mistake(before, path) != _mistake(after, path)
    ]


def concerned(cells: Iterable[CellSpec], before: Any, after: Any) -> list[str]:
    """Names of the cells that were born with other settings than those of now, in the order given."""
    return [spec.name for spec in cells if changed(spec.born_with, before, after)]


def _value(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = getattr(settings, part, None)
    return settings


def _mistake(settings: Any, path: str) -> str:
    mistakes: dict[str, str] = getattr(settings, "problems", {})
    return mistakes.get(path.partition(".")[0], "")


class Round:
    """The cells that wait for their turn, and the one whose turn it is."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._current, self._until = "", 0.0

    def add(self, names: Iterable[str]) -> None:
        """Put cells in the queue; one that waits already keeps its place."""
        self._waiting += [name for name in names if name not in self._waiting]

    def busy_with(self) -> str:
        """Whose turn it is, or nothing."""
        return self._current

    def next(self, now: float, limit_s: float, *, settled: bool) -> str:
        """The cell to start anew now, or nothing.

        settled: whether the one whose turn it is stands again. After ``limit_s`` it is not waited for any longer."""
        if self._current and not settled and now < self._until:
            return ""
        self._current = self._waiting.pop(0) if self._waiting else ""
        self._until = now + limit_s
        return self._current
