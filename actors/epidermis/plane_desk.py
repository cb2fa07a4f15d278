"""The data plane's desk: it has one owner at a time.

Quick calls are made on the actor thread. A slow one is lent to a worker, and what must not run beside it waits until it
is back.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from actors.core.cell import Cell
from actors.epidermis.desired_state import off_loop
from bpf.dataplane import DataPlane


class PlaneDesk:
    """``plane`` is None while there is none. ``after`` is called each time the plane is back."""

    def __init__(self, cell: Cell, after: Callable[[], None]) -> None:
        self._cell, self._after = cell, after
        self.plane: DataPlane | None = None
        self.lent = False
        self._chores: deque[Callable[[], None]] = deque()

    def chore(self, work: Callable[[], None]) -> None:
        """Work that must not run beside a slow call: now, or when that is done."""
        if not self.lent:
            work()
        elif work not in self._chores:
            self._chores.append(work)

    def lend(self, then: Callable[[Future[Any]], Any], work: Callable[..., Any], *args: Any, **named: Any) -> None:
        """Let a worker make one slow call on the plane; ``then`` gets what came of it, on the actor thread."""
        if self.plane is None:
            return
        if self.lent:
            self._chores.append(lambda: self.lend(then, work, *args, **named))
            return

        def back(future: Future[Any]) -> None:
            self.lent = False
            then(future)
            while self._chores and not self.lent:
                self._chores.popleft()()
            self._after()

        self.lent = True
        self._cell.call(off_loop, partial(work, self.plane, *args, **named), then=back)

    def close(self) -> None:
        """Let go of the plane, unless a worker has it: then it goes with the process."""
        if self.plane is not None and not self.lent:
            self.plane.close()
