"""A progress bar on stderr for work that a person would wait for, else nothing."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(parts: Sequence[T], said: str, *, long: int) -> Iterator[T]:
    """The parts one by one; with a bar when there are at least ``long`` of them and somebody looks."""
    if len(parts) < long or not sys.stderr.isatty():
        yield from parts
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(parts, said, console=Console(file=sys.stderr), transient=True)
