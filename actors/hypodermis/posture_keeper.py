"""The keeper of the posture: one state, written down before it is told, and ended when its time has come."""

import time
from collections.abc import Callable
from typing import Any

from actors.core.cell import Cell
from actors.core.messages import Posture
from actors.hypodermis import posture, wishes
from actors.hypodermis.diary import Diary
from actors.hypodermis.herald import Herald
from actors.hypodermis.journal_line import JournalLine
from actors.hypodermis.posture import AutomaticBounds, PostureState
from actors.hypodermis.witness import Witness


class PostureKeeper:
    """Belongs to one cell, on its actor thread. ``state`` is the posture in force."""

    def __init__(
        self, cell: Cell, first: Posture, journal: JournalLine, diary: Diary, herald: Herald, witness: Witness
    ) -> None:
        self._cell, self._journal, self._diary, self._herald, self._witness = cell, journal, diary, herald, witness
        self.state = PostureState.initial(first, time.time())
        self._bounds = AutomaticBounds()
        self._timer = 0

    @property
    def posture(self) -> Posture:
        """The one in force."""
        return self.state.posture

    def wished(self, args: dict[str, Any], by: str) -> PostureState:
        """The state that a wish leads to. Raises Refused; nothing is changed yet. Other cells have less freedom."""
        wanted = wishes.posture(args.get("posture"))
        for_s, within = wishes.seconds(args, "for_s"), wishes.seconds(args, "confirm_within_s")
        reason, now, automatic = wishes.sentence(args, "reason"), time.time(), by.startswith("cell ")
        if automatic:
            for_s = self._bounds.admit(self.state, wanted, for_s, now)
        return posture.change(
            self.state, wanted, now, for_s=for_s, confirm_within_s=within, reason=reason, by=by, automatic=automatic
        )

    def become(self, state: PostureState, then: Callable[[], object] | None = None) -> None:
        """Write down, then tell everybody, then go on; the end of this posture is armed at once."""
        if state.posture is not self.state.posture:
            self._witness.posture_changed()
        self.state = state
        self._arm()
        self._cell.counters["posture_changes"] += 1

        def written() -> None:
            self._herald.posture(self.state)
            if then is not None:
                then()

        self._journal.write([self._diary.posture(state)], written)

    def recall(self, body: Any) -> None:
        """Take what memory says was in force, unless somebody has set another since; end it if its time has passed."""
        if not isinstance(body, dict):
            return
        try:
            state = posture.from_body(body)
        except ValueError as exc:
            self._cell.counters["bad_memories"] += 1
            self._cell.log.warning("bad_memory", problem=str(exc))
            return
        if self.state.by != "settings":
            return
        self.state = state
        if posture.due(state, time.time()):
            self.become(posture.lapse(state, time.time()))
        else:
            self._arm()

    def shown(self) -> dict[str, Any]:
        """The posture in force, and what will become of it when."""
        shown = posture.to_body(self.state) | {"deadline_unix_s": self.state.deadline}
        return shown | {"proven": self._witness.posture_proven(), "summary": self.state.sentence(time.time())}

    def _arm(self) -> None:
        self._cell.cancel(self._timer)
        if self.state.deadline:
            wait = max(0.0, self.state.deadline - time.time())
            self._timer = self._cell.after(min(wait, posture.LONGEST_S), self._lapse, self.state)

    def _lapse(self, state: PostureState) -> None:
        if self.state is state:
            self._cell.log.warning("posture_returns", posture=state.return_to.value, before=state.posture.value)
            self.become(posture.lapse(state, time.time()))
