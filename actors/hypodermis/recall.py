"""Recall: after a start, ask memory what was in force, and keep asking until it answers.

Until then nothing may be taken out of the kernel: the file with the whole desired state is only sent once everything is
remembered. A node without memory goes on after ``GRACE_S`` with what its settings say, and adds bans only.
"""

from collections.abc import Callable
from typing import Any

from actors.core.cell import Cell
from actors.core.messages import Answer

GRACE_S = 3.0
#: The first question may be lost between two cells that do not know each other yet: soon asked again, then patiently.
PATIENCE_FIRST_S, PATIENCE_CAP_S = 0.1, 2.0

Take = Callable[[Any], None]


class Recall:
    """Three questions, one after the other: posture, tolerance, bans (in pages). ``take_*`` get what was answered.

    ``known`` is called once posture and tolerance are remembered, or given up on; ``done`` once all is remembered."""

    def __init__(
        self,
        cell: Cell,
        *,
        take_posture: Take,
        take_tolerance: Take,
        take_bans: Take,
        known: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self._cell = cell
        self._known_call, self._done_call = known, done
        self._steps: list[tuple[str, str, Take]] = [
            ("memory.posture", "", take_posture),
            ("memory.tolerance", "tolerance", take_tolerance),
            ("memory.bans", "bans", take_bans),
        ]
        self._after = ""
        self._patience = PATIENCE_FIRST_S
        self.known = False
        self.done = False

    def begin(self, *, memory_expected: bool, grace_s: float = GRACE_S) -> None:
        """Ask. Without a memory to expect, go on at once with what the settings say."""
        if memory_expected:
            self._cell.after(grace_s, self._become_known)
            self._ask()
        else:
            self._cell.after(0, self._become_known)

    def _ask(self) -> None:
        verb, paged, _ = self._steps[0]
        self._cell.ask(verb, {"after": self._after} if paged else {}, self._answered, timeout_s=self._patience)

    def _answered(self, answer: Answer) -> None:
        if answer.problem:
            self._cell.counters["recall_retries"] += 1
            self._patience = min(PATIENCE_CAP_S, self._patience * 2)
            self._cell.after(self._patience / 4, self._ask)
            return
        self._patience = max(self._patience, 1.0)
        _, paged, take = self._steps[0]
        value = answer.value
        take(value.get(paged, []) if paged and isinstance(value, dict) else value)
        self._after = str(value.get("next", "")) if paged and isinstance(value, dict) else ""
        if not self._after:
            self._steps.pop(0)
        if len(self._steps) <= 1:
            self._become_known()
        if self._steps:
            self._ask()
        else:
            self.done = True
            self._done_call()

    def _become_known(self) -> None:
        if not self.known:
            self.known = True
            self._known_call()
