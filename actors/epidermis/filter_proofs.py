"""Proofs of the nftables filter: what was asked of the kernel on its way to the gate, and what is yet to be asked.

A few bans are proved in the same breath as they are applied; the rest of many soon after, and a sample for ever.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from actors.core.cell import Cell
from actors.core.errors import TegumentarError
from actors.core.messages import BATCH_LIMIT, Proof, Proved
from actors.epidermis.proofs import Proofs
from actors.epidermis.reconcile import Ledger, Place

#: The sweep that proves a sample again, for ever.
SWEEP_EVERY_S = 5.0
SWEEP_SAMPLE = 50
#: Proofs leave in batches, at most 20 messages a second.
PROOF_EVERY_S = 0.05
UNPROVEN_EVERY_S = 0.25


class FilterProofs:
    """Belongs to one cell, on its actor thread.

    ``able``: the kernel may be asked now. ``ask(subjects, then)`` has it asked about subjects and their places off the
    actor thread. ``lost``: the kernel does not hold what it should."""

    def __init__(
        self,
        cell: Cell,
        ledger: Ledger,
        *,
        place: Callable[[str], Place],
        able: Callable[[], bool],
        ask: Callable[[Mapping[str, Place], Callable[[Future[Any]], Any]], None],
        lost: Callable[[], None],
    ) -> None:
        self._cell, self._ledger, self._place, self._able, self._ask, self._lost = cell, ledger, place, able, ask, lost
        self._proofs = Proofs()
        self._unproven: deque[str] = deque()
        self._proof_timer = self._rest_timer = 0
        self._sweep_from = 0

    def take(self, proofs: list[Proof], *, soon: bool = True) -> None:
        """What the kernel said; those that somebody waits for go ``soon``."""
        lost = [proof.subject for proof in proofs if not proof.holds and proof.subject in self._ledger]
        if lost:
            self._cell.counters["proofs_failed"] += len(lost)
            self._lost()
        self._proofs.put(proofs, soon=soon)
        if not self._proof_timer:
            self._send()

    def refused(self, refused: Mapping[str, str]) -> None:
        """These found no room, and why."""
        if refused:
            self._cell.counters["bans_refused"] += len(refused)
            self.take([Proof(subject=subject, holds=False, detail=why) for subject, why in refused.items()])

    def later(self, subjects: Iterable[str]) -> None:
        """Have them proved when there is time."""
        self._unproven.extend(subjects)
        if self._unproven and not self._rest_timer:
            self._rest_timer = self._cell.after(UNPROVEN_EVERY_S, self._prove_rest)

    def sweep(self) -> None:
        """Prove a sample again, the next ones each time."""
        if self._ledger.orders:
            subjects = list(self._ledger.orders)
            start = self._sweep_from % len(subjects)
            self._sweep_from = start + SWEEP_SAMPLE
            self._prove(subjects[start : start + SWEEP_SAMPLE])

    def _prove_rest(self) -> None:
        if self._able():
            count = min(BATCH_LIMIT * 2, len(self._unproven))
            self._prove([self._unproven.popleft() for _ in range(count)])
        self._rest_timer = self._cell.after(UNPROVEN_EVERY_S, self._prove_rest) if self._unproven else 0

    def _prove(self, subjects: list[str]) -> None:
        if not self._able():
            return
        sample = {subject: self._place(subject) for subject in subjects if subject in self._ledger}

        def asked(future: Future[Any]) -> None:
            try:
                self.take([proof for proof in future.result() if proof.subject in self._ledger], soon=False)
            except TegumentarError as exc:
                self._cell.log.warning("sweep_failed", problem=str(exc))

        self._ask(sample, asked)

    def _send(self) -> None:
        """One batch now; the next one not before ``PROOF_EVERY_S``."""
        self._proof_timer = 0
        if self._proofs:
            batch = self._proofs.take(BATCH_LIMIT)
            self._cell.publish(Proved(rung="nft", proofs=batch))
            self._cell.counters["proofs"] += len(batch)
            self._proof_timer = self._cell.after(PROOF_EVERY_S, self._send)
