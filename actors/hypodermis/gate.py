"""The gate: the one place where a wish to ban becomes a ban, a note, or a refusal in words.

People and detectors pass the same checks. What can never be banned anywhere comes first (``subjects.objection``), then
what this node needs (``SafetySet``), then tolerance. Only automatic wishes then meet the rest: they are widened to the
IPv6 /64 where that is safe, weighed (a weak first suspicion is throttled, not banned), made longer with each
repetition, stopped by the autoimmune guard, and merely noted while the posture is EXPLORE.
"""

from collections.abc import Collection
from dataclasses import dataclass

from actors.core.errors import Refused
from actors.core.messages import Action, Posture
from actors.hypodermis.fences import Fences
from actors.hypodermis.guard import AutoimmuneGuard
from actors.hypodermis.ledger import Ban, Ledger, penalty_s
from actors.hypodermis.subjects import NOT_A_SOURCE, Prefix, objection, of_source
from actors.hypodermis.tolerance import SafetySet, Tolerance

#: A detector that is this sure bans at once; below it the first offence is throttled and the second one banned.
SURE = {Posture.EXPLORE: 0.8, Posture.BALANCED: 0.8, Posture.HARDENED: 0.6, Posture.LOCKDOWN: 0.6}
#: A throttled source that still offends after so many seconds is banned.
PATIENCE_S = 10.0
#: Longer than a year is a mistake; a ban without end is asked for with 0.
LONGEST_TTL_S = 31_536_000.0


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Who wants what, from whom. ttl_s 0: policy chooses (automatic), or until released (people).

    by: the person, empty for automatic wishes. enforced_until: the kernel bans it already, until then."""

    subject: Prefix
    action: Action
    origin: str
    reason: str
    evidence: str = ""
    reflex: str = ""
    score: float = 1.0
    ttl_s: float = 0.0
    by: str = ""
    packets: int = 0
    enforced_until: float = 0.0

    @property
    def automatic(self) -> bool:
        return not self.by


@dataclass(frozen=True)
class GateSettings:
    """base_s: the first automatic ban; longest_s: the longest one. Seconds."""

    base_s: float
    longest_s: float


class Gate:
    """Judges one wish at a time; holds nothing but references to what it judges by."""

    def __init__(self, settings: GateSettings, ledger: Ledger, tolerance: Tolerance, guard: AutoimmuneGuard) -> None:
        self._settings = settings
        self._ledger = ledger
        self._tolerance = tolerance
        self._guard = guard
        self.safety = SafetySet()
        self._fences: tuple[SafetySet, int, Fences] | None = None

    def objection(self, subject: Prefix, now: float) -> tuple[str, str]:
        """Why ``subject`` may not be banned, and what to do about it; two empty texts when it may."""
        if never := objection(subject):
            return never, "ban single addresses or longer prefixes"
        if unsafe := self.safety.objection(subject):
            return unsafe, "a ban of it would cut this node off; ban a longer prefix that leaves it out"
        spared = self._tolerance.covering(subject, now)
        if spared is not None:
            comment = f" ({spared.comment})" if spared.comment else ""
            return (
                f"{subject.text} is tolerated by the entry {spared.prefix.text}{comment}",
                f"to ban it first take it off the list: tolerate --remove {spared.prefix.text}",
            )
        inside = self._tolerance.inside(subject, now)
        if inside is not None:
            return (
                f"{subject.text} contains {inside.prefix.text}, which is tolerated",
                f"ban a longer prefix that leaves it out, or: tolerate --remove {inside.prefix.text}",
            )
        return "", ""

    def make_sure_of_room(self, subjects: Collection[Prefix], to_come: int = 0) -> None:
        """Raises Refused when not all of these fit into the ledger, besides ``to_come`` others."""
        room = max(0, self._ledger.limit - len(self._ledger) - to_come)
        new = sum(subject not in self._ledger.bans for subject in subjects)
        if new > room:
            raise Refused(
                f"there is room for {room} more bans, and {new} were wished; nothing was changed",
                remedy="release some, ban prefixes instead of single addresses, or raise reflex.max_bans",
            )

    def judge(self, wish: Wish, posture: Posture, now: float, monotonic: float) -> Ban:
        """The ban that follows from a wish; not yet in the ledger. Raises Refused with a sentence; nothing is changed.

        Its action is OBSERVE when it is only to be noted (EXPLORE, or OBSERVE was wished)."""
        subject = self._widened(wish, now) if wish.automatic else wish.subject
        problem, remedy = self.objection(subject, now)
        if problem:
            raise Refused(f"{problem}; it was not blocked", remedy=remedy)
        if self._ledger.full and subject not in self._ledger.bans:
            raise Refused(
                f"there are {self._ledger.limit} bans already; {subject.text} was not blocked",
                remedy="release some, ban prefixes instead of single addresses, or raise reflex.max_bans",
            )
        if not 0 <= wish.ttl_s <= LONGEST_TTL_S:
            raise Refused(
                f"{wish.ttl_s:g} s is no usable time for a ban", remedy="give seconds up to one year, or none"
            )
        return self._automatic(wish, subject, posture, now, monotonic) if wish.automatic else self._manual(wish, now)

    def admit_all(self, subjects: Collection[Prefix], now: float, to_come: int = 0) -> None:
        """Raises Refused when a person may not ban all of these: one may not be banned, or there is no room."""
        for subject in self._fenced().doubtful(subjects):
            problem, remedy = self.objection(subject, now)
            if problem:
                raise Refused(f"{problem}; it was not blocked; nothing was changed", remedy=remedy)
        self.make_sure_of_room(subjects, to_come)

    def _fenced(self) -> Fences:
        """All that may not be banned, as ranges; made anew when one of the lists is another."""
        known = self._fences
        if known is None or known[0] is not self.safety or known[1] != self._tolerance.version:
            ranges = [special for special, _ in NOT_A_SOURCE]
            ranges += [host for host, _ in self.safety]
            ranges += [entry.prefix for entry in self._tolerance]
            known = self._fences = (self.safety, self._tolerance.version, Fences(ranges))
        return known[2]

    def _manual(self, wish: Wish, now: float) -> Ban:
        return Ban(
            subject=wish.subject,
            action=wish.action,
            origin=wish.origin,
            reason=wish.reason or "blocked by hand",
            evidence=wish.evidence,
            by=wish.by,
            since_unix_s=now,
            until_unix_s=now + wish.ttl_s if wish.ttl_s else 0.0,
        )

    def _automatic(self, wish: Wish, subject: Prefix, posture: Posture, now: float, monotonic: float) -> Ban:
        standing = self._ledger.get(subject)
        if standing is not None and not standing.in_force(now):
            standing = None
        repeats = standing.repeats if standing is not None else self._ledger.offences.count(subject, now)
        action = self._graduated(wish, posture, repeats, standing, now)
        new = standing is None or (action is Action.BAN and not standing.enforced)
        if new and action is not Action.OBSERVE:
            if not self._guard.admit(monotonic):
                raise Refused(
                    f"{self._guard.reason(monotonic)}; {subject.text} was not blocked", remedy=self._guard.remedy
                )
            self._ledger.offences.add(subject, now)
        base_s = wish.ttl_s or max(self._settings.base_s if not wish.enforced_until else 0.0, wish.enforced_until - now)
        return Ban(
            subject=subject,
            action=action,
            origin=wish.origin,
            reflex=wish.reflex,
            reason=wish.reason,
            evidence=wish.evidence,
            since_unix_s=now,
            until_unix_s=now + penalty_s(base_s, self._settings.longest_s, repeats),
            repeats=repeats,
            packets=wish.packets,
        )

    def _graduated(self, wish: Wish, posture: Posture, repeats: int, standing: Ban | None, now: float) -> Action:
        if posture is Posture.EXPLORE:
            return Action.OBSERVE
        unsure = wish.action is Action.BAN and not wish.enforced_until and wish.score < SURE[posture]
        if not unsure or repeats:
            return wish.action
        throttled = standing is not None and standing.action is Action.THROTTLE
        goes_on = throttled and standing is not None and now - standing.since_unix_s >= PATIENCE_S
        return Action.BAN if goes_on else Action.THROTTLE

    def _widened(self, wish: Wish, now: float) -> Prefix:
        """The /64 of an IPv6 source, unless it is on our own link or holds what may not be banned."""
        wide = of_source(wish.subject)
        if wide == wish.subject or self.safety.on_link(wide) or self.objection(wide, now)[0]:
            return wish.subject
        return wide
