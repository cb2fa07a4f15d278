"""Wiring: who receives and who answers what, read from the declarations on the handlers themselves.

A handler names the message it is a receptor for, or the verb that it answers; there is no other list. The table of a
class is computed once, when the class is first asked for it, and refuses a handler that is declared twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from actors.core.messages import Message

Handler = TypeVar("Handler", bound=Callable[..., Any])


def receives(*kinds: type[Message]) -> Callable[[Handler], Handler]:
    """Declare ``handler(self, message, source)`` as the receptor for these messages."""

    def mark(handler: Handler) -> Handler:
        handler.__receives__ = kinds  # type: ignore[attr-defined]
        return handler

    return mark


def answers(*verbs: str) -> Callable[[Handler], Handler]:
    """Declare ``handler(self, args, by)`` as the one that answers these verbs."""

    def mark(handler: Handler) -> Handler:
        handler.__answers__ = verbs  # type: ignore[attr-defined]
        return handler

    return mark


@dataclass(frozen=True)
class Receptors:
    """What one class of cell listens to: message kind → method name, verb → method name."""

    kinds: dict[str, str]
    verbs: dict[str, str]


@cache
def receptors(cell: type) -> Receptors:
    """The declarations of ``cell`` and its bases. An overriding method inherits no declaration: it must repeat it.

    Read once per class: the launcher does it, and what it has read is shared by the cells that it forks.

    Raises TypeError when two methods claim the same kind or verb."""
    kinds: dict[str, str] = {}
    verbs: dict[str, str] = {}
    for name in dir(cell):
        method = getattr(cell, name, None)
        for kind in getattr(method, "__receives__", ()):
            _claim(kinds, kind.__name__, name, cell)
        for verb in getattr(method, "__answers__", ()):
            _claim(verbs, verb, name, cell)
    return Receptors(kinds, verbs)


def _claim(table: dict[str, str], key: str, method: str, cell: type) -> None:
    if key in table:
        raise TypeError(f"{cell.__name__}: both {table[key]} and {method} are declared for {key}")
    table[key] = method


def graph(cells: dict[str, Receptors]) -> dict[str, Any]:
    """The whole wiring for people: message kind → cells that hear it, verb → the cell that answers it."""
    heard: dict[str, list[str]] = {}
    verbs: dict[str, str] = {}
    for name, declared in sorted(cells.items()):
        for kind in declared.kinds:
            heard.setdefault(kind, []).append(name)
        for verb in declared.verbs:
            verbs[verb] = name
    return {"messages": dict(sorted(heard.items())), "verbs": dict(sorted(verbs.items()))}
