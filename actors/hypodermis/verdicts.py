"""Verdicts: what becomes of the proposals of sensors and of the bans that the kernel program made by itself."""

import time
from collections.abc import Callable

from actors.core.cell import Cell
from actors.core.errors import Refused
from actors.core.messages import Action, Entry, Posture, ReflexEvent, Verdict
from actors.hypodermis.diary import Diary
from actors.hypodermis.gate import Gate, Wish
from actors.hypodermis.guard import AutoimmuneGuard
from actors.hypodermis.herald import Herald
from actors.hypodermis.ledger import NEIGHBOURS, Ban, Ledger
from actors.hypodermis.posture_keeper import PostureKeeper
from actors.hypodermis.subjects import Prefix, parse_prefix

#: A renewal that moves the end of a ban by less is no news for anybody.
SAME_END_S = 1.0


class Verdicts:
    """Belongs to one cell, on its actor thread. ``commit`` writes entries down and then has subjects enforced."""

    def __init__(
        self,
        cell: Cell,
        *,
        gate: Gate,
        ledger: Ledger,
        guard: AutoimmuneGuard,
        posture: PostureKeeper,
        diary: Diary,
        herald: Herald,
        commit: Callable[[list[Entry], list[Prefix]], None],
        alarm: Callable[[], None],
    ) -> None:
        self._cell, self._gate, self._ledger, self._guard = cell, gate, ledger, guard
        self._posture, self._diary, self._herald = posture, diary, herald
        self._commit, self._alarm = commit, alarm

    def proposed(self, message: Verdict, source: str) -> None:
        """A sensor has made up its mind."""
        self._cell.counters["verdicts"] += 1
        subject = self._subject(message.subject)
        if subject is None:
            return
        self._consider(
            Wish(
                subject=subject,
                action=message.action,
                origin=source,  # who really sent it, whatever it calls itself
                reason=message.reason,
                evidence=message.evidence,
                score=message.score,
                ttl_s=message.ttl_s,
            )
        )

    def fired(self, event: ReflexEvent, source: str) -> None:
        """The kernel has banned somebody already, or would have: adopt that, or take it back.

        What the resting guard refuses stays in the kernel for its short time and is not made longer."""
        subject = self._subject(event.subject)
        if subject is None:
            return
        standing = self._ledger.get(subject)
        if standing is not None:
            standing.packets = max(standing.packets, event.packets)
        if not event.banned and self._posture.state.posture is not Posture.EXPLORE:
            return
        port = f" to port {event.dest_port}" if event.dest_port else ""
        ban = self._consider(
            Wish(
                subject=subject,
                action=Action.BAN if event.banned else Action.OBSERVE,
                origin=source,
                reason=f"kernel reflex {event.reflex}",
                evidence=f"{event.packets} packets{port} when the reflex fired",
                reflex=event.reflex,
                packets=event.packets,
                enforced_until=event.until_unix_s,
            )
        )
        unwanted = not ban.enforced if ban is not None else bool(self._gate.objection(subject, time.time())[0])
        if event.banned and unwanted:
            self._cell.counters["kernel_bans_taken_back"] += 1
            self._herald.changed([subject])

    def _consider(self, wish: Wish) -> Ban | None:
        """Judge an automatic wish. Returns the ban that stands then; None when it was refused."""
        now, monotonic = time.time(), time.monotonic()
        rested = self._guard.resting(monotonic)
        try:
            ban = self._gate.judge(wish, self._posture.state.posture, now, monotonic)
        except Refused as refused:
            self._cell.counters["verdicts_refused"] += 1
            if self._guard.resting(monotonic) and not rested:
                self._alarm()
            self._commit(self._diary.refusal(wish, str(refused)), [])
            return None
        standing = self._ledger.get(ban.subject)
        if standing is not None and standing.in_force(now) and _no_news(standing, ban):
            return standing
        self._cell.counters["bans_automatic" if ban.enforced else "would_have_banned"] += standing is None
        placed = self._ledger.place(ban)
        self._commit([self._diary.ban(placed)], [placed.subject])
        if placed.enforced:
            self._escalate(placed)
        return placed

    def _escalate(self, ban: Ban) -> None:
        """Enough neighbours were banned: take their prefix, unless the node itself lives there."""
        neighbourhood = self._ledger.crowded(ban.subject)
        if neighbourhood is None or self._gate.safety.on_link(neighbourhood):
            return
        self._cell.counters["escalations"] += 1
        self._consider(
            Wish(
                subject=neighbourhood,
                action=Action.BAN,
                origin=self._cell.name,
                reason=f"{NEIGHBOURS} or more neighbours were banned",
                evidence=f"the last of them was {ban.subject.text}: {ban.reason}",
            )
        )

    def _subject(self, text: str) -> Prefix | None:
        try:
            return parse_prefix(text)
        except Refused:
            self._cell.counters["bad_input"] += 1
            return None


def _no_news(standing: Ban, ban: Ban) -> bool:
    """The renewal neither strengthens the ban nor moves its end noticeably."""
    if standing.enforced != ban.enforced:
        return standing.enforced
    if not standing.until_unix_s:
        return True
    return bool(ban.until_unix_s) and ban.until_unix_s < standing.until_unix_s + SAME_END_S
