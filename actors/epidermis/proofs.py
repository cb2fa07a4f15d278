"""Proofs on their way to the gate: the newest word about each subject, lone bans before bulk. Pure."""

from collections.abc import Iterable
from itertools import islice

from actors.core.messages import Proof


class Proofs:
    """A later proof of a subject takes the place of an earlier one that has not left yet."""

    def __init__(self) -> None:
        self._soon: dict[str, Proof] = {}
        self._later: dict[str, Proof] = {}

    def __len__(self) -> int:
        return len(self._soon) + len(self._later)

    def put(self, proofs: Iterable[Proof], *, soon: bool = True) -> None:
        for proof in proofs:
            waits_soon = self._soon.pop(proof.subject, None) is not None
            self._later.pop(proof.subject, None)
            (self._soon if soon or waits_soon else self._later)[proof.subject] = proof

    def take(self, limit: int) -> list[Proof]:
        """Up to ``limit`` of them, in order of arrival, the urgent ones first."""
        taken: list[Proof] = []
        for waiting in (self._soon, self._later):
            for subject in list(islice(waiting, limit - len(taken))):
                taken.append(waiting.pop(subject))
        return taken
