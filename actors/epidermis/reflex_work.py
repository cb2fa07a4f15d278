"""The slow half of the reflex arc: opening, hanging in, reading all bans, comparing. Runs off the actor thread.

The data plane belongs to one thread at a time; the cell hands it over for the length of one of these calls.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.core.messages import Order, Proof
from actors.epidermis.ban_compare import BanDifference, DesiredBans
from actors.epidermis.reflex_events import until_ns
from bpf.dataplane import (
    AllRungsRefused,
    Attachment,
    Ban,
    DataPlane,
    DataPlaneError,
    Egress,
    MapFull,
    NoSuchInterface,
    Rung,
)

#: What a probe packet of a banned source is refused for.
BAN_REASONS = frozenset({"ban", "ban_prefix"})


@dataclass(frozen=True, slots=True)
class Wish:
    """Rungs to try on one interface, best first. climb: it hangs already, and a better rung is looked for."""

    rungs: Sequence[str]
    climb: bool = False


@dataclass(slots=True)
class Hung:
    """What came of hanging the program into one interface."""

    interface: str
    rung: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    gone: bool = False


@dataclass(slots=True)
class Difference:
    """What a comparison of all tables found. took_s: seconds, most of them the kernel's for reading its table."""

    bans: BanDifference
    tolerance_holds: bool
    took_s: float


@dataclass(slots=True)
class Enforced:
    """What came of putting bans in: the subjects that could not be, and why."""

    refused: dict[str, str] = field(default_factory=dict)


def hang(plane: DataPlane, interface: str, wish: Wish) -> Hung:
    """Attach, or adopt what is attached. Never raises: a refusal is a result."""
    rungs = wish.rungs
    try:
        attachment = plane.attach(interface, [Rung(rung) for rung in rungs], climb=wish.climb)
    except NoSuchInterface:
        return Hung(interface, gone=True)
    except AllRungsRefused as refused:
        return Hung(interface, refused=dict(refused.refused) or dict.fromkeys(rungs, str(refused)))
    except DataPlaneError as error:
        return Hung(interface, refused=dict.fromkeys(rungs, str(error)))
    return Hung(interface, str(attachment.rung), dict(attachment.refused))


def hang_all(plane: DataPlane, wishes: Mapping[str, Wish]) -> list[Hung]:
    return [hang(plane, interface, wish) for interface, wish in wishes.items()]


def account_all(plane: DataPlane, interfaces: Sequence[str], *, wanted: bool) -> list[Egress]:
    """Have what leaves each interface accounted, or no longer. Never raises; one that is gone is left out."""
    found = []
    for interface in interfaces:
        try:
            found.append(plane.account_egress(interface, wanted))
        except NoSuchInterface:
            continue
        except DataPlaneError as error:
            found.append(Egress(interface, refused={"program": str(error)}, remedy=error.remedy))
    return found


def standing(attachments: Iterable[Attachment]) -> dict[str, str]:
    """Interface → rung."""
    return {attachment.interface: str(attachment.rung) for attachment in attachments}


def enforce(plane: DataPlane, orders: Sequence[Order]) -> Enforced:
    """Ban all of them; one bad subject does not keep the others out."""
    outcome = Enforced()
    now_unix, now_ns = time.time(), time.monotonic_ns()
    bans = [Ban(order.subject, until_ns(order.until_unix_s, now_unix, now_ns)) for order in orders]
    try:
        plane.ban(bans)
    except MapFull as full:
        outcome.refused = {ban.subject: str(full) for ban in bans[full.done :]}
    except DataPlaneError:
        _enforce_singly(plane, bans, outcome)
    return outcome


def enforce_many(plane: DataPlane, rows: bytes, until_unix_s: float) -> bool:
    """Ban many hosts with one end. False when not all of them could be: one by one it shows which, and why."""
    try:
        plane.ban_many(rows, until_ns(until_unix_s, time.time(), time.monotonic_ns()))
    except DataPlaneError:
        return False
    return True


def prove(plane: DataPlane, subjects: Sequence[str]) -> list[Proof]:
    """Ask the loaded program about a packet of each source. Withheld verdicts (EXPLORE) count as held, and are told."""
    try:
        asked = plane.prove(list(subjects))
    except DataPlaneError as error:
        return [Proof(subject=subject, holds=False, detail=str(error)[:200]) for subject in subjects]
    proofs = []
    for proof in asked:
        would = not proof.drop and proof.reason in BAN_REASONS
        verb = "drops" if proof.drop else "would drop" if would else "passes"
        detail = f"the kernel program {verb} a packet of it: {proof.reason}"
        proofs.append(Proof(subject=proof.subject, holds=proof.drop or would, detail=detail))
    return proofs


def compare(
    plane: DataPlane,
    desired: DesiredBans,
    changes: Mapping[str, Order | None],
    tolerance: Sequence[str] | None,
    *,
    sweep: bool,
) -> Difference:
    """The whole ban table and allowlist against the desired state; an allowlist of None is not known yet. ``desired``
    is brought up to date with the ``changes`` first."""
    began = time.monotonic()
    desired.update(changes)
    if sweep:
        plane.sweep(time.monotonic_ns())
    rows = plane.ban_rows()
    bans = desired.compare(rows, time.time(), time.monotonic_ns())
    holds = tolerance is None or set(plane.tolerated()) == set(tolerance)
    return Difference(bans, holds, time.monotonic() - began)


def publish(plane: DataPlane, snapshot: str, snapshot6: str) -> None:
    """Swap the compiled blocklists in. Raises DataPlaneError."""
    plane.publish(Path(snapshot) if snapshot else None, Path(snapshot6) if snapshot6 else None)


def explain(plane: DataPlane, address: str) -> dict[str, Any]:
    """What the program would do with a packet of this source now. Raises DataPlaneError."""
    [proof] = plane.prove([address])
    return {"address": address, "drop": proof.drop, "reason": proof.reason}


def _enforce_singly(plane: DataPlane, bans: Sequence[Ban], outcome: Enforced) -> None:
    for ban in bans:
        try:
            plane.ban([ban])
        except DataPlaneError as error:
            outcome.refused[ban.subject] = str(error)
