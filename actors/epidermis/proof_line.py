"""The line of proofs: bans that wait to be proved by the kernel program, and proofs on their way to the gate.

Lone bans go at once, many of them in batches twenty times a second, and a sample of all is asked again for ever.
Belongs to one cell, on its actor thread.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from actors.core.cell import Cell
from actors.core.messages import BATCH_LIMIT, Proof, Proved
from actors.epidermis.proofs import Proofs
from actors.epidermis.reconcile import Ledger

PROOF_EVERY_S = 0.05
#: So many standing bans are asked again in one sweep.
SAMPLE = 50


class ProofLine:
    """``prove`` asks the kernel; ``able`` says whether it can be asked at the moment."""

    def __init__(
        self,
        cell: Cell,
        ledger: Ledger,
        rung: str,
        *,
        prove: Callable[[list[str]], list[Proof]],
        able: Callable[[], bool],
    ) -> None:
        self._cell, self._ledger, self._rung = cell, ledger, rung
        self._prove, self._able = prove, able
        self._waiting: dict[str, None] = {}
        self._proofs = Proofs()
        self._timer = 0
        self._sample_from = 0

    @property
    def waiting(self) -> int:
        """Bans that are still to be proved."""
        return len(self._waiting)

    def ask_later(self, subjects: Iterable[str]) -> None:
        """Have them proved when their turn comes."""
        self._waiting.update(dict.fromkeys(subjects))
        if self._waiting and not self._timer:
            self._timer = self._cell.after(PROOF_EVERY_S, self._send)

    def tell(self, proofs: list[Proof]) -> None:
        """Proofs that are there already, before all that wait."""
        self._cell.counters["proofs_failed"] += sum(not proof.holds for proof in proofs)
        self._proofs.put(proofs)
        if not self._timer:
            self._send()

    def sample(self) -> list[str]:
        """The next few of all bans, to be asked again; none while others wait."""
        if not self._ledger.orders or self._waiting:
            return []
        subjects = list(self._ledger.orders)
        start = self._sample_from % len(subjects)
        self._sample_from = start + SAMPLE
        return subjects[start : start + SAMPLE]

    def _send(self) -> None:
        """One batch; the next not before ``PROOF_EVERY_S``."""
        self._timer = 0
        if self._waiting and len(self._proofs) < BATCH_LIMIT and self._able():
            batch = list(islice(self._waiting, BATCH_LIMIT))
            for subject in batch:
                del self._waiting[subject]
            self._proofs.put(self._prove([s for s in batch if s in self._ledger]), soon=False)
        if self._proofs:
            sent = self._proofs.take(BATCH_LIMIT)
            self._cell.publish(Proved(rung=self._rung, proofs=sent))
            self._cell.counters["proofs"] += len(sent)
        if self._proofs or self._waiting:
            self._timer = self._cell.after(PROOF_EVERY_S, self._send)
