"""Support for tests of the tissue: a cell in this very process, demo cells, and a node of them as real processes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any, TypeVar

from actors.core.asks import raise_for
from actors.core.cell import Cell
from actors.core.codec import decode, encode
from actors.core.lifecycle import Introduction, Introductions
from actors.core.membrane import Frame, Self
from actors.core.messages import ASKERS, Answer, Ask, CellReport, CellState, Message

Kind = TypeVar("Kind", bound=Message)
PEER_PID, SUPERVISOR_PID = 4_000_001, 4_000_002


class Dish:
    """A membrane without processes: what the cell sends is kept, and everything goes through the real codec.

    ``Dish(MyCell, settings)`` makes and starts the cell; ``peer`` introduces another one; ``give`` delivers a message;
    ``run`` lets timers, loop and descriptors work; ``sent`` lists what went out."""

    def __init__(self, factory: type[Cell], settings: Any = None, *, name: str = "cell", start: bool = True) -> None:
        self.socket, self.supervisor_pid = "me", SUPERVISOR_PID
        self.out: list[tuple[str, Message]] = []
        self.crashed: str | None = None
        self.left = False
        self.cell = factory(Self(name=name, layer="test", settings=settings, incarnation=1), self)
        self.cell.supervisor_socket = "supervisor"
        self._peers: dict[str, Introduction] = {}
        self._asked = 0
        if start:
            self.cell.before_drop()
            self.cell.begin()

    # --- the membrane that the cell sees ---

    def send(self, socket: str, frame: bytes) -> None:
        message = decode(frame).message
        assert message is not None
        self.out.append((socket, message))

    def forget(self, socket: str) -> None: ...
    def queued(self) -> int:
        return 0

    def beat(self) -> None: ...
    def beat_loop(self) -> None: ...
    def crash(self, cause: str) -> None:
        self.crashed = cause

    def leave(self) -> None:
        self.left = True

    # --- the world that the test plays ---

    def peer(
        self,
        name: str,
        *receives: type[Message],
        answers: tuple[str, ...] = (),
        up: bool = True,
        incarnation: int = 1,
        state: CellState = CellState.HEALTHY,
    ) -> None:
        """Introduce another cell, or take it away with ``up=False``."""
        row = Introduction(
            cell=name,
            state=state if up else CellState.DOWN,
            incarnation=incarnation,
            up=up,
            socket=name.replace("_", "") if up else "",
            pid=PEER_PID,
            receives=[kind.__name__ for kind in receives],
            answers=list(answers),
        )
        self._peers[name] = row
        self._hear(Introductions(rows=[row]), "basal_layer", SUPERVISOR_PID, 1)

    def give(self, message: Message, source: str) -> None:
        """Deliver a message from an introduced peer; what the handler raises comes out here."""
        self._hear(message, source, PEER_PID, self._peers[source].incarnation)

    def ask(
        self,
        verb: str,
        args: dict[str, Any] | None = None,
        *,
        source: str = "",
        by: str = "test",
        limit_s: float = 2.0,
    ) -> Any:
        """Put a question and return the value of the answer, or raise the error that it carries.

        source: the peer that asks; by default one that may."""
        source = source or max(ASKERS.get(verb, {"asker"}))
        if source not in self._peers:
            self.peer(source)
        self._asked += 1
        number = self._asked
        self.give(Ask(id=number, verb=verb, args=args or {}, by=by), source)

        def answered() -> list[Answer]:
            return [m for _, m in self.out if isinstance(m, Answer) and m.id == number]

        self.run_until(lambda: bool(answered()), limit_s)
        return raise_for(answered()[0])

    def sent(self, kind: type[Kind], to: str | None = None) -> list[Kind]:
        """Everything of one kind that went out so far, oldest first; reports to the supervisor included."""
        return [m for socket, m in self.out if isinstance(m, kind) and (to is None or socket == to.replace("_", ""))]

    def last_report(self) -> CellReport:
        return self.cell.report()

    def run(self, seconds: float = 0.0) -> None:
        """Let timers, posted calls and watched descriptors run for so long."""
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], limit_s: float = 2.0) -> bool:
        """Run until ``done()`` or the limit; returns whether it was done."""
        deadline = time.monotonic() + limit_s
        while not done():
            left = deadline - time.monotonic()
            poll = select.poll()
            for fd in self.cell.descriptors():
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, min(left, 0.02)) * 1000)}
            self.cell.ready(ready)
            if left <= 0:
                return done()
        return True

    def stop(self) -> None:
        """End the cell and close what it held."""
        self.cell.end()
        self.cell.timers.close()
        os.close(self.cell.mailbox.fd)

    def _hear(self, message: Message, source: str, pid: int, incarnation: int) -> None:
        self.cell.hear(Frame(encode(message, source, incarnation), pid, 0, source))
