"""The gate for vaccines: when packets that begin alike are dropped from everybody, how many, and how long. Pure.

A vaccine has no source, so tolerance and the node's own addresses cannot be asked here (the kernel program asks the
allowlist before every drop). Instead: the head must be specific and not how ordinary clients begin (``payloads.py``),
the port none by which people administer the node, the sensor sure; few vaccines stand at once, each ends, new ones
pass the autoimmune guard like automatic bans, and what somebody has released is not placed again for a day.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from actors.core.errors import Refused
from actors.core.messages import VACCINE_LIMIT, HostilePayload, Posture, VaccineOrder
from actors.core.payloads import LONGEST_S, PROTOCOLS, name_of, number_of, objection
from actors.hypodermis.gate import SURE
from actors.hypodermis.guard import AutoimmuneGuard

#: Released vaccines are remembered so long, and so many of them.
SPARED_S, SPARED_LIMIT = 86_400.0, 1_024
#: The cell that proposes what other nodes taught: half of all places is left for what is found here.
TEACHER = "langerhans"


@dataclass(frozen=True, slots=True)
class Inoculation:
    """One vaccine that stands. origin: the cell that proposed it; seen_from: whose packet it was, when seen here."""

    proto: int
    dest_port: int
    head: bytes
    origin: str
    reason: str
    evidence: str
    seen_from: str
    since_unix_s: float
    until_unix_s: float

    @property
    def name(self) -> str:
        return name_of(self.proto, self.dest_port, self.head)

    def order(self) -> VaccineOrder:
        return VaccineOrder(
            name=self.name,
            number=number_of(self.name),
            proto=self.proto,
            dest_port=self.dest_port,
            head=self.head,
            until_unix_s=self.until_unix_s,
        )


class VaccineBook:
    """The vaccines that stand, by name, and those that somebody has released. Bounded."""

    def __init__(self, limit: int = VACCINE_LIMIT) -> None:
        self.limit = limit
        self._standing: dict[str, Inoculation] = {}
        self._spared: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._standing)

    def __iter__(self) -> Iterator[Inoculation]:
        return iter(self._standing.values())

    def __contains__(self, name: object) -> bool:
        return name in self._standing

    def get(self, name: str) -> Inoculation | None:
        return self._standing.get(name)

    @property
    def taught(self) -> int:
        """How many of them other nodes taught."""
        return sum(one.origin == TEACHER for one in self)

    def by_number(self, number: int) -> Inoculation | None:
        return next((one for name, one in self._standing.items() if number_of(name) == number), None)

    def place(self, vaccine: Inoculation) -> None:
        self._standing[vaccine.name] = vaccine

    def release(self, name: str, now: float) -> Inoculation | None:
        """Take it out and leave it out; None when there was none of this name."""
        gone = self._standing.pop(name, None)
        if gone is not None:
            self.spare(name, now + SPARED_S)
        return gone

    def spare(self, name: str, until_unix_s: float) -> None:
        self._spared[name] = until_unix_s
        if len(self._spared) > SPARED_LIMIT:
            self._spared.popitem(last=False)

    def spared(self, name: str, now: float) -> bool:
        """Somebody has released it not long ago."""
        return self._spared.get(name, 0.0) > now

    def expire(self, now: float) -> list[Inoculation]:
        over = [one for one in self if one.until_unix_s <= now]
        for one in over:
            del self._standing[one.name]
        return over

    def next_end(self) -> float:
        """When the next one ends; 0 when none stands."""
        return min((one.until_unix_s for one in self), default=0.0)


class VaccineGate:
    """Judges one proposal at a time; changes nothing but the guard's count."""

    def __init__(self, book: VaccineBook, guard: AutoimmuneGuard, base_s: float, kept_ports: Collection[int]) -> None:
        """base_s: how long a vaccine of this node's own lasts; kept_ports: by which people reach the node."""
        self._book, self._guard, self._base_s, self._kept_ports = book, guard, base_s, frozenset(kept_ports)

    def objection(self, proto: int, dest_port: int, head: bytes) -> str:
        """Why packets like these are never dropped from everybody; empty when they may be."""
        if dest_port in self._kept_ports:
            return f"people administer this node by port {dest_port}"
        return objection(proto, dest_port, head)

    def judge(self, wish: HostilePayload, origin: str, posture: Posture, now: float, monotonic: float) -> Inoculation:
        """The vaccine that follows; not yet in the book. Raises Refused with a sentence."""
        name = name_of(wish.proto, wish.dest_port, wish.head)
        what = f"packets to {PROTOCOLS.get(wish.proto, str(wish.proto))} port {wish.dest_port} that begin like this"
        if problem := self.objection(wish.proto, wish.dest_port, wish.head):
            raise Refused(f"{what} are not dropped from everybody: {problem}")
        if self._book.spared(name, now):
            raise Refused(f"the vaccine {name} was released by hand; it is not placed again for a day")
        if posture is Posture.EXPLORE:
            raise Refused(f"the posture explore only observes; {what} would have been dropped from everybody")
        if wish.score < SURE[posture]:
            raise Refused(f"{what} are not dropped from everybody: the sensor is only {wish.score:.0%} sure")
        standing = self._book.get(name)
        if standing is None:
            if len(self._book) >= self._book.limit:
                raise Refused(f"there are {self._book.limit} vaccines already; {name} was not placed")
            if origin == TEACHER and self._book.taught >= self._book.limit // 2:
                raise Refused(f"other nodes taught {self._book.taught} vaccines already; {name} was not placed")
            if not self._guard.admit(monotonic):
                raise Refused(f"{self._guard.reason(monotonic)}; the vaccine {name} was not placed")
        until = now + min(wish.ttl_s or self._base_s, LONGEST_S)
        return Inoculation(
            proto=wish.proto,
            dest_port=wish.dest_port,
            head=wish.head,
            origin=standing.origin if standing is not None else origin,
            reason=standing.reason if standing is not None else wish.reason,
            evidence=standing.evidence if standing is not None else wish.evidence,
            seen_from=standing.seen_from if standing is not None else wish.seen_from,
            since_unix_s=standing.since_unix_s if standing is not None else now,
            until_unix_s=max(until, standing.until_unix_s) if standing is not None else until,
        )


def to_body(vaccine: Inoculation) -> dict[str, Any]:
    """For the journal."""
    return {
        "proto": vaccine.proto,
        "dest_port": vaccine.dest_port,
        "head": vaccine.head.hex(),
        "origin": vaccine.origin,
        "reason": vaccine.reason,
        "evidence": vaccine.evidence,
        "seen_from": vaccine.seen_from,
        "since_unix_s": vaccine.since_unix_s,
        "until_unix_s": vaccine.until_unix_s,
    }


def from_body(body: dict[str, Any]) -> Inoculation:
    """From the journal. Raises ValueError for what is no vaccine."""
    try:
        vaccine = Inoculation(
            proto=int(body["proto"]),
            dest_port=int(body["dest_port"]),
            head=bytes.fromhex(body["head"]),
            origin=str(body.get("origin", ""))[:32],
            reason=str(body.get("reason", ""))[:200],
            evidence=str(body.get("evidence", ""))[:2000],
            seen_from=str(body.get("seen_from", ""))[:49],
            since_unix_s=float(body["since_unix_s"]),
            until_unix_s=float(body["until_unix_s"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ValueError(f"no vaccine in the journal: {exc}") from exc
    problem = objection(vaccine.proto, vaccine.dest_port, vaccine.head)
    if problem or not math.isfinite(vaccine.since_unix_s + vaccine.until_unix_s):
        raise ValueError(f"no vaccine in the journal: {problem or 'its times are no times'}")
    return vaccine
