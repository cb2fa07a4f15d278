"""Posture: how closed the skin is, for how long, and what it returns to. A state machine of plain values.

Two deadlines, both in wall-clock seconds so that they survive a restart and a reboot: ``until`` ends a posture that was
set *for* a time; ``confirm_by`` takes back one that nobody confirmed. Both lead to ``return_to``, the last posture that
was meant to stay. Whoever holds a state calls ``lapse`` when ``deadline`` has come; a clock that was set back does not
prolong a posture when the holder also measures the wait itself.

People may do anything. Automatic changes may only close, only up to ``AUTOMATIC_CEILING``, only for a time, and only
``AUTOMATIC_CHANGES`` times an hour: a machine that feels attacked must not lock the operators out of their service.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from actors.core.errors import Refused
from actors.core.messages import Posture

CLOSEDNESS = {Posture.EXPLORE: 0, Posture.BALANCED: 1, Posture.HARDENED: 2, Posture.LOCKDOWN: 3}
LONGEST_S = 31_536_000.0

AUTOMATIC_CEILING = Posture.HARDENED
AUTOMATIC_LONGEST_S = 3_600.0
AUTOMATIC_USUAL_S = 600.0
AUTOMATIC_CHANGES = 6
AUTOMATIC_WINDOW_S = 3_600.0


@dataclass(frozen=True, kw_only=True)
class PostureState:
    """The posture in force. 0 in ``until_unix_s`` or ``confirm_by_unix_s``: no such deadline."""

    posture: Posture
    previous: Posture
    return_to: Posture
    since_unix_s: float
    until_unix_s: float = 0.0
    confirm_by_unix_s: float = 0.0
    reason: str = ""
    by: str = ""
    automatic: bool = False

    @classmethod
    def initial(cls, posture: Posture, now: float) -> "PostureState":
        """What the settings say, before anybody changed it."""
        return cls(
            posture=posture,
            previous=posture,
            return_to=posture,
            since_unix_s=now,
            reason="from the settings",
            by="settings",
        )

    @property
    def temporary(self) -> bool:
        return bool(self.until_unix_s or self.confirm_by_unix_s)

    @property
    def deadline(self) -> float:
        """When this posture ends by itself, in wall-clock seconds; 0: never."""
        return min((d for d in (self.until_unix_s, self.confirm_by_unix_s) if d), default=0.0)

    def sentence(self, now: float) -> str:
        """What is in force and what will happen when, for people."""
        words = f"the posture is {self.posture}"
        if self.confirm_by_unix_s:
            words += (
                f"; unless confirmed it returns to {self.return_to} in {_span(self.confirm_by_unix_s - now)} "
                "(confirm with: posture confirm)"
            )
        if self.until_unix_s:
            words += f"; it ends in {_span(self.until_unix_s - now)} and returns to {self.return_to}"
        return words


def change(
    state: PostureState,
    posture: Posture,
    now: float,
    *,
    for_s: float = 0.0,
    confirm_within_s: float = 0.0,
    reason: str = "",
    by: str = "",
    automatic: bool = False,
) -> PostureState:
    """The state after a wish. for_s and confirm_within_s in seconds, 0: no such limit. Raises Refused; nothing changed.

    A posture that is itself only for a time is no place to return to: the last lasting one is."""
    for name, seconds in (("--for", for_s), ("--confirm-within", confirm_within_s)):
        if not 0 <= seconds <= LONGEST_S:  # false for NaN as well
            raise Refused(f"{name} {seconds:g} s is no usable time", remedy="give seconds from 1 to one year")
    if for_s and confirm_within_s > for_s:
        raise Refused(
            f"the posture would end after {_span(for_s)}, before the {_span(confirm_within_s)} to confirm it are over",
            remedy="make --confirm-within shorter than --for",
        )
    return PostureState(
        posture=posture,
        previous=state.posture,
        return_to=state.return_to if state.temporary else state.posture,
        since_unix_s=now,
        until_unix_s=now + for_s if for_s else 0.0,
        confirm_by_unix_s=now + confirm_within_s if confirm_within_s else 0.0,
        reason=reason,
        by=by,
        automatic=automatic,
    )


def confirm(state: PostureState, by: str = "") -> PostureState:
    """Keep what waits for confirmation. Raises Refused when nothing does."""
    if not state.confirm_by_unix_s:
        raise Refused(f"nothing waits for confirmation: the posture {state.posture} stands", remedy="")
    return replace(state, confirm_by_unix_s=0.0, by=by or state.by)


def lapse(state: PostureState, now: float) -> PostureState:
    """What follows when the deadline has come; the same state when it has none."""
    if not state.temporary:
        return state
    unconfirmed = bool(state.confirm_by_unix_s) and state.deadline == state.confirm_by_unix_s
    why = f"{state.posture} was not confirmed in time" if unconfirmed else f"the time of {state.posture} is over"
    return PostureState(
        posture=state.return_to,
        previous=state.posture,
        return_to=state.return_to,
        since_unix_s=now,
        reason=why,
        by="permeability",
    )


def due(state: PostureState, now: float) -> bool:
    """The deadline has come."""
    return bool(state.deadline) and now >= state.deadline


class AutomaticBounds:
    """What a machine's wish for a posture is cut down to. Keeps the times of its last changes, nothing else."""

    def __init__(self) -> None:
        self._changes: deque[float] = deque(maxlen=AUTOMATIC_CHANGES)

    def admit(self, state: PostureState, posture: Posture, for_s: float, now: float) -> float:
        """How long the automatic change may last, in seconds. Raises Refused with the bound it would break."""
        if CLOSEDNESS[posture] > CLOSEDNESS[AUTOMATIC_CEILING]:
            raise Refused(f"no automatic change may go beyond {AUTOMATIC_CEILING}; {posture} is for people to set")
        if CLOSEDNESS[posture] <= CLOSEDNESS[state.posture]:
            raise Refused(f"an automatic change may only close the skin further, and it is {state.posture} already")
        if len(self._changes) == AUTOMATIC_CHANGES and 0 <= now - self._changes[0] < AUTOMATIC_WINDOW_S:
            raise Refused(f"there were {AUTOMATIC_CHANGES} automatic changes of posture within an hour already")
        self._changes.append(now)
        return min(for_s or AUTOMATIC_USUAL_S, AUTOMATIC_LONGEST_S)


def to_body(state: PostureState) -> dict[str, Any]:
    """For the journal."""
    return {
        "posture": state.posture.value,
        "previous": state.previous.value,
        "return_to": state.return_to.value,
        "since_unix_s": state.since_unix_s,
        "until_unix_s": state.until_unix_s,
        "confirm_by_unix_s": state.confirm_by_unix_s,
        "reason": state.reason,
        "by": state.by,
        "automatic": state.automatic,
    }


def from_body(body: dict[str, Any]) -> PostureState:
    """From the journal. Raises ValueError for what is no posture."""
    try:
        return PostureState(
            posture=Posture(body["posture"]),
            previous=Posture(body["previous"]),
            return_to=Posture(body["return_to"]),
            since_unix_s=float(body["since_unix_s"]),
            until_unix_s=float(body.get("until_unix_s", 0.0)),
            confirm_by_unix_s=float(body.get("confirm_by_unix_s", 0.0)),
            reason=str(body.get("reason", ""))[:200],
            by=str(body.get("by", ""))[:200],
            automatic=bool(body.get("automatic", False)),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"no posture in the journal: {exc}") from exc


def _span(seconds: float) -> str:
    """``90 s``, ``12 min``, ``3 h``: short, and never negative."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
