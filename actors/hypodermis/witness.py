"""The witness: which layers of the kernel are there, what they have proved, and who waits to hear of it.

A wish by a person is answered when every layer that stands has said that it holds, or when patience ends; then the
answer says what is proved and what is not.
"""

import time
from collections.abc import Callable
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.errors import Refused
from actors.core.messages import CellReport, CellState, Posture, Proved
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.subjects import Prefix, parse_prefix

#: The cells that hold the kernel, and the name of their layer in a proof.
RUNGS = {"reflex_arc": "xdp", "keratinocyte": "nft"}
_POSTURE = "posture:"


class Witness:
    """Belongs to one cell, on its actor thread."""

    def __init__(self, cell: Cell, ledger: Ledger, patience_s: float) -> None:
        self._cell, self._ledger, self._patience_s = cell, ledger, patience_s
        self._states: dict[str, CellState] = {}
        self._idle: set[str] = set()
        self._heard: set[str] = set()
        self._posture_holds = False
        self._owed: list[tuple[Deferred, Callable[[], bool], Callable[[], Any], int]] = []

    def rungs(self) -> tuple[str, ...]:
        """The layers that are there to enforce and to prove."""
        return tuple(rung for cell, rung in RUNGS.items() if self._stands(cell, rung))

    def take(self, message: Proved, source: str, posture: Posture) -> None:
        """Proofs from an enforcing cell; those of anybody else are counted and not believed."""
        if RUNGS.get(source) != message.rung:
            self._cell.counters["bad_input"] += 1
            return
        now = time.time()
        self._heard.add(message.rung)
        for proof in message.proofs:
            if proof.subject.startswith(_POSTURE):
                if proof.subject == _POSTURE + posture.value:
                    self._posture_holds = proof.holds
                continue
            try:
                known = self._ledger.prove(message.rung, parse_prefix(proof.subject), proof.holds, proof.detail, now)
            except Refused:
                known = False
            if known and not proof.holds:
                self._cell.counters["proofs_missing"] += 1
        self._pay()

    def report(self, message: CellReport, source: str) -> None:
        """A healthy program that hangs on no interface (the operator chose nftables alone) has nothing to prove."""
        if source in RUNGS and source == message.cell:
            self._states[source] = message.state
            if message.gauges.get("interfaces_hooked", 1) == 0:
                self._idle.add(source)
                self._heard.discard(RUNGS[source])
            else:
                self._idle.discard(source)
            self._pay()

    def came(self, name: str) -> None:
        """An enforcing cell has started: what it said in an earlier life counts no more."""
        if name in RUNGS:
            self._ledger.unprove(RUNGS[name])
            self._states.pop(name, None)
            self._idle.discard(name)

    def went(self, name: str) -> None:
        if name in RUNGS:
            self._heard.discard(RUNGS[name])
            self._posture_holds = self._posture_holds and name != "keratinocyte"
            self._pay()

    def posture_changed(self) -> None:
        self._posture_holds = False

    def posture_proven(self) -> bool:
        """The filter says that it stands at the posture. The kernel program has no proof of its own to give."""
        rungs = self.rungs()
        return self._posture_holds if "nft" in rungs else bool(rungs)

    def proven(self, subjects: list[Prefix]) -> bool:
        """Every layer that stands has confirmed all of these that are banned."""
        rungs = self.rungs()
        bans = [ban for subject in subjects if (ban := self._ledger.get(subject)) is not None]
        return all(rung in ban.proofs and ban.proofs[rung].holds for ban in bans for rung in rungs)

    def silent(self, ban: Ban) -> bool:
        """A layer that stands has not said a word about this ban."""
        return any(rung not in ban.proofs for rung in self.rungs())

    def owe(self, owed: Deferred, proved: Callable[[], bool], value: Callable[[], Any]) -> None:
        """Answer with ``value()`` as soon as ``proved()``, or when patience ends, or now if no layer could prove."""
        if not self.rungs():
            owed.reply(value())
            return
        self._owed.append((owed, proved, value, self._cell.after(self._patience_s, self._pay, owed)))

    def _pay(self, overdue: Deferred | None = None) -> None:
        left = []
        for owed, proved, value, timer in self._owed:
            if owed is overdue or proved():
                self._cell.cancel(timer)
                owed.reply(value())
            else:
                left.append((owed, proved, value, timer))
        self._owed = left

    def _stands(self, cell: str, rung: str) -> bool:
        """A degraded cell stands when it has proved something; one that has not been heard of is taken for healthy."""
        state = self._states.get(cell, CellState.HEALTHY)
        if self._cell.peers.living(cell) is None or state in (CellState.OFF, CellState.DOWN) or cell in self._idle:
            return False
        return state is CellState.HEALTHY or rung in self._heard
