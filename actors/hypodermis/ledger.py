"""The ledger: every ban that shall be, whose idea it was, until when, and whether the kernel has proved it.

This is the desired state; kernel tables are made to follow it. One ban costs the same whether there are ten or a
hundred thousand. Nothing here decides: ``gate.py`` does. Times are wall-clock seconds and arguments.
"""

import heapq
import itertools
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from actors.core.messages import Action
from actors.hypodermis.prefix_table import PrefixTable
from actors.hypodermis.subjects import Prefix

#: Sources whose offences are remembered after their ban; the longest silent ones are forgotten first.
OFFENDERS_LIMIT = 200_000
#: One offence is forgiven for each of these without a new one.
FORGIVE_EVERY_S = 6 * 3600.0
#: Neighbours that misbehave before their prefix is taken for the offender: IPv4 hosts of a /24, IPv6 /64s of a /56.
NEIGHBOURS = 8
NEIGHBOURHOOD = {4: 24, 6: 56}
MEMBER = {4: 32, 6: 64}


@dataclass(frozen=True, slots=True)
class RungProof:
    """What one layer of the kernel said last. holds None: not asked since the ban was placed."""

    holds: bool | None = None
    at_unix_s: float = 0.0
    detail: str = ""


NO_PROOFS: Mapping[str, RungProof] = MappingProxyType({})


@dataclass(slots=True)
class Ban:
    """One decision. until_unix_s 0: until released. reflex: the kernel reflex that fired, empty for other origins.

    action OBSERVE: recorded as what *would* have been enforced. repeats: offences before this one that still count.
    proofs: by layer; never changed in place, because bans that were proved together share one mapping."""

    subject: Prefix
    action: Action
    origin: str
    reason: str
    since_unix_s: float
    until_unix_s: float = 0.0
    reflex: str = ""
    evidence: str = ""
    by: str = ""
    repeats: int = 0
    packets: int = 0
    proofs: Mapping[str, RungProof] = field(default_factory=lambda: NO_PROOFS)
    serial: int = 0

    def in_force(self, now: float) -> bool:
        return not self.until_unix_s or now < self.until_unix_s

    @property
    def enforced(self) -> bool:
        """The kernel is asked to drop it. A throttled source stays under its in-kernel budget and is noted here."""
        return self.action is Action.BAN


class Ledger:
    """All bans by subject. At most ``limit``; ``full`` says when no other can be taken."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bans: PrefixTable[Ban] = PrefixTable()
        self.offences = Offences()
        self._serials = itertools.count(1)
        self._ends: list[tuple[float, int, Prefix]] = []
        self._placed: list[Ban] = []  # by serial; with bans that are no more, until there are too many
        self._shared_at = 0.0  # when the proofs arrived that share their mappings
        self._shared: dict[tuple[int, str, bool, str], tuple[Mapping[str, RungProof], Mapping[str, RungProof]]] = {}
        self._neighbours: dict[Prefix, int] = {}  # neighbourhood → members of it that are banned automatically

    def __len__(self) -> int:
        return len(self.bans)

    @property
    def full(self) -> bool:
        return len(self.bans) >= self.limit

    def get(self, subject: Prefix) -> Ban | None:
        return self.bans.get(subject)

    def covering(self, subject: Prefix) -> Ban | None:
        """The narrowest ban that hits all of ``subject``, enforced ones before observed ones."""
        found = self.bans.covering(subject)
        if found is None or found.enforced:
            return found
        wider = (subject.widened(length) for length in range(found.subject.length - 1, -1, -1))
        return next((b for p in wider if (b := self.bans.get(p)) is not None and b.enforced), found)

    def place(self, ban: Ban) -> Ban:
        """Enter a ban, or renew the one of the same subject, which keeps its start. Returns what stands then.

        A person's wish is taken as it is. An automatic one never shortens or weakens what stands, nor takes a
        person's name off it."""
        old = self.bans.get(ban.subject)
        if old is not None and old.in_force(ban.since_unix_s):
            ban.since_unix_s = old.since_unix_s
            ban.packets = max(ban.packets, old.packets)
            if ban.enforced and old.enforced:
                ban.proofs = old.proofs
            if not ban.by:
                ban.until_unix_s = _later(ban.until_unix_s, old.until_unix_s)
                if old.enforced:
                    ban.action = old.action
                if old.by:
                    ban.by, ban.origin, ban.reason = old.by, old.origin, old.reason
        if old is not None:
            self._forget(old)
        ban.serial = next(self._serials)
        self.bans.put(ban.subject, ban)
        self._placed.append(ban)
        if len(self._placed) > 2 * len(self.bans) + 1_000:
            self._placed = list(self.bans.values())
        self._count_neighbour(ban, +1)
        if ban.until_unix_s:
            heapq.heappush(self._ends, (ban.until_unix_s, ban.serial, ban.subject))
        return ban

    def release(self, subject: Prefix) -> Ban | None:
        """Take a ban out; None when there was none."""
        ban = self.bans.get(subject)
        if ban is not None:
            self._forget(ban)
        return ban

    def expire(self, now: float, limit: int = 1 << 62) -> list[Ban]:
        """Take out and return the bans whose time is over, at most ``limit`` of them."""
        over: list[Ban] = []
        while len(over) < limit and self._ends and self._ends[0][0] <= now:
            _, serial, subject = heapq.heappop(self._ends)
            ban = self.bans.get(subject)
            if ban is not None and ban.serial == serial:
                self._forget(ban)
                over.append(ban)
        return over

    def next_end(self) -> float:
        """When the next ban may end; 0 when none will."""
        return self._ends[0][0] if self._ends else 0.0

    def prove(self, rung: str, subject: Prefix, holds: bool, detail: str, now: float) -> bool:
        """Note what the kernel said of a ban. Returns whether such a ban is in the ledger."""
        ban = self.bans.get(subject)
        if ban is None:
            return False
        if now != self._shared_at:
            self._shared_at, self._shared = now, {}
        before = ban.proofs
        name = (id(before), rung, holds, detail)  # the mapping before is kept beside, so that its id stays its own
        if name not in self._shared:
            self._shared[name] = before, {**before, rung: RungProof(holds, now, detail)}
        ban.proofs = self._shared[name][1]
        return True

    def unprove(self, rung: str) -> None:
        """A layer starts anew: what it said before counts no more."""
        others: dict[int, tuple[Mapping[str, RungProof], Mapping[str, RungProof]]] = {}
        for ban in self.bans.values():
            before = ban.proofs
            if id(before) not in others:
                others[id(before)] = before, {name: proof for name, proof in before.items() if name != rung}
            ban.proofs = others[id(before)][1]
        self._shared = {}

    def page(self, limit: int, after: str = "") -> tuple[list[Ban], str]:
        """The newest ``limit`` bans beyond the cursor ``after``, and the cursor of the next page ('' at the end)."""
        at = len(self._placed)
        if after.isascii() and after.isdigit():
            at = bisect_left(self._placed, int(after), key=attrgetter("serial"))
        rows: list[Ban] = []
        for place in range(at - 1, -1, -1):
            ban = self._placed[place]
            if self.bans.get(ban.subject) is not ban:
                continue
            if len(rows) == limit:
                return rows, str(rows[-1].serial)
            rows.append(ban)
        return rows, ""

    def cursor_of(self, subject: Prefix) -> str:
        """The page cursor behind this subject; '' when it is not here."""
        ban = self.bans.get(subject)
        return str(ban.serial) if ban is not None else ""

    def enforced(self) -> Iterator[Ban]:
        """What the kernel shall hold."""
        return (ban for ban in self.bans.values() if ban.enforced)

    def crowded(self, subject: Prefix) -> Prefix | None:
        """The neighbourhood of ``subject`` when enough of its members are banned, and it is not banned itself."""
        if subject.length != MEMBER[subject.version]:
            return None
        neighbourhood = subject.widened(NEIGHBOURHOOD[subject.version])
        if self._neighbours.get(neighbourhood, 0) < NEIGHBOURS or neighbourhood in self.bans:
            return None
        return neighbourhood

    def _forget(self, ban: Ban) -> None:
        self.bans.pop(ban.subject)
        self._count_neighbour(ban, -1)

    def _count_neighbour(self, ban: Ban, step: int) -> None:
        if ban.by or ban.action is not Action.BAN or ban.subject.length != MEMBER[ban.subject.version]:
            return
        neighbourhood = ban.subject.widened(NEIGHBOURHOOD[ban.subject.version])
        count = self._neighbours.get(neighbourhood, 0) + step
        if count > 0:
            self._neighbours[neighbourhood] = count
        else:
            self._neighbours.pop(neighbourhood, None)


class Offences:
    """How often a source was banned before, forgiven one by one with time. Bounded: the longest silent go first."""

    def __init__(self, limit: int = OFFENDERS_LIMIT) -> None:
        self._limit = limit
        self._seen: OrderedDict[Prefix, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def count(self, subject: Prefix, now: float) -> int:
        """Offences of this source that still count."""
        times, last = self._seen.get(subject, (0, now))
        return max(0, times - int(max(0.0, now - last) / FORGIVE_EVERY_S))

    def add(self, subject: Prefix, now: float) -> int:
        """One more. Returns how many there were before it."""
        before = self.count(subject, now)
        self._seen[subject] = (before + 1, now)
        self._seen.move_to_end(subject)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return before

    def set(self, subject: Prefix, times: int, last: float) -> None:
        """Restore from the journal."""
        if times > 0 and len(self._seen) < self._limit:
            self._seen[subject] = (times, last)

    def forgive(self, subject: Prefix) -> None:
        """Forget a source: somebody released it on purpose."""
        self._seen.pop(subject, None)


def penalty_s(base_s: float, longest_s: float, repeats: int) -> float:
    """Seconds of a ban: ``base_s`` doubled for each earlier offence, never beyond ``longest_s``."""
    return float(min(longest_s, base_s * 2 ** min(repeats, 40)))


def to_body(ban: Ban) -> dict[str, Any]:
    """For the journal. Proofs are left out: they are asked of the kernel again."""
    return {
        "action": ban.action.value,
        "origin": ban.origin,
        "reflex": ban.reflex,
        "reason": ban.reason,
        "evidence": ban.evidence,
        "by": ban.by,
        "since_unix_s": ban.since_unix_s,
        "until_unix_s": ban.until_unix_s,
        "repeats": ban.repeats,
        "packets": ban.packets,
    }


def from_body(subject: Prefix, body: dict[str, Any]) -> Ban:
    """From the journal. Raises ValueError for what is no ban."""
    try:
        return Ban(
            subject=subject,
            action=Action(body["action"]),
            origin=str(body.get("origin", ""))[:32],
            reflex=str(body.get("reflex", ""))[:200],
            reason=str(body.get("reason", ""))[:200],
            evidence=str(body.get("evidence", ""))[:2000],
            by=str(body.get("by", ""))[:200],
            since_unix_s=float(body["since_unix_s"]),
            until_unix_s=float(body.get("until_unix_s", 0.0)),
            repeats=int(body.get("repeats", 0)),
            packets=int(body.get("packets", 0)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ValueError(f"no ban in the journal for {subject.text}: {exc}") from exc


def row(ban: Ban, now: float, rungs: Iterable[str]) -> dict[str, Any]:
    """A ban as ``blocks.list`` shows it. proven: every layer that is there has confirmed it.

    until_unix_s 0 and left_s None: until released."""
    proofs = {rung: ban.proofs.get(rung) or RungProof() for rung in rungs}
    return {
        "subject": ban.subject.text,
        "action": ban.action.value,
        "enforced": ban.enforced,
        "origin": ban.origin,
        "reflex": ban.reflex,
        "reason": ban.reason,
        "evidence": ban.evidence,
        "by": ban.by,
        "since_unix_s": ban.since_unix_s,
        "until_unix_s": ban.until_unix_s,
        "left_s": round(max(0.0, ban.until_unix_s - now), 1) if ban.until_unix_s else None,
        "repeats": ban.repeats,
        "hits": ban.packets,
        "proven": ban.enforced and bool(proofs) and all(proof.holds for proof in proofs.values()),
        "proofs": {
            rung: {
                "state": "pending" if proof.holds is None else "proven" if proof.holds else "missing",
                "at_unix_s": proof.at_unix_s,
                "detail": proof.detail,
            }
            for rung, proof in proofs.items()
        },
    }


def _later(a: float, b: float) -> float:
    """The later of two ends, where 0 is never."""
    return 0.0 if not a or not b else max(a, b)
