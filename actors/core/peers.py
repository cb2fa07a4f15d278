"""Peers: what a cell knows of the others. Names only; an address is never kept by anybody else.

The supervisor introduces cells (``Introductions``); a row says who listens where, in which incarnation, and with which
receptors. What is published for a cell that is known but absent is held for a moment: 64 messages, 10 seconds, the
oldest dropped first. A message from an incarnation that is not the living one is not delivered.
"""

import time
from collections import deque
from collections.abc import Iterator
from enum import Enum

from actors.core.lifecycle import Introduction
from actors.core.messages import CellState

HELD_PER_PEER = 64
HELD_FOR_S = 10.0


class Standing(Enum):
    """How a frame's claimed source stands with the registry."""

    KNOWN = "known"
    STALE = "stale"  #: an earlier incarnation, or a process that is not the one introduced by that name
    NEW = "new"  #: not introduced yet, or not as living; its introduction may be on the way


class Peers:
    """The registry as one cell sees it."""

    def __init__(self, own_name: str) -> None:
        self._own = own_name
        self._rows: dict[str, Introduction] = {}
        self._held: dict[str, deque[tuple[float, bytes]]] = {}

    def __iter__(self) -> Iterator[Introduction]:
        return iter(list(self._rows.values()))

    def get(self, cell: str) -> Introduction | None:
        """The row of ``cell``, living or absent."""
        return self._rows.get(cell)

    def living(self, cell: str) -> Introduction | None:
        """The row of ``cell`` when it is there now."""
        row = self._rows.get(cell)
        return row if row is not None and row.up else None

    def learn(self, row: Introduction) -> tuple[Introduction | None, bool, bool]:
        """Take over a row. Returns the row before, and whether that peer has gone and whether one has come.

        A row about ourselves or about an older incarnation changes nothing."""
        old = self._rows.get(row.cell)
        if row.cell == self._own or (old is not None and row.incarnation < old.incarnation):
            return old, False, False
        self._rows[row.cell] = row
        same = old is not None and old.up and row.up and old.incarnation == row.incarnation
        return old, old is not None and old.up and not same, row.up and not same

    def learn_self(self, row: Introduction) -> None:
        """Keep a row about ourselves, to pass it on; only the supervisor has use for it."""
        self._rows[row.cell] = row

    def listening(self, kind: str) -> list[Introduction]:
        """Every peer with a receptor for ``kind``, also those away at the moment, but not those switched off."""
        return [
            row for row in self._rows.values() if kind in row.receives and (row.up or row.state is not CellState.OFF)
        ]

    def answering(self, verb: str) -> Introduction | None:
        """The peer that declared ``verb``, also when it is away."""
        return next((row for row in self._rows.values() if verb in row.answers), None)

    def standing(self, cell: str, incarnation: int, pid: int) -> Standing:
        """Whether a frame that claims this source, sent by process ``pid``, may be believed to come from it."""
        row = self._rows.get(cell)
        if row is None or incarnation > row.incarnation:
            return Standing.NEW
        if incarnation < row.incarnation:
            return Standing.STALE
        if not row.up and row.state is CellState.STARTING:
            return Standing.NEW  # forked, and quicker to speak than the supervisor was to introduce it
        return Standing.KNOWN if row.up and row.pid == pid else Standing.STALE

    def hold(self, cell: str, frame: bytes) -> bool:
        """Keep a frame for an absent peer. Returns False when the oldest had to go for it."""
        queue = self._held.setdefault(cell, deque(maxlen=HELD_PER_PEER))
        full = len(queue) == queue.maxlen
        queue.append((time.monotonic() + HELD_FOR_S, frame))
        return not full

    def release(self, cell: str) -> list[bytes]:
        """What was held for a peer that has come, oldest first, without what has waited too long."""
        now = time.monotonic()
        return [frame for deadline, frame in self._held.pop(cell, ()) if deadline > now]
