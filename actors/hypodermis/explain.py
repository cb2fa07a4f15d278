"""Why: what is known about one address, put together into a few plain sentences. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from actors.core.messages import Action, Answer, Posture
from actors.hypodermis.gate import PATIENCE_S
from actors.hypodermis.ledger import Ban, row
from actors.hypodermis.posture import PostureState
from actors.hypodermis.subjects import Prefix
from actors.hypodermis.tolerance import SafetySet, Toleration

#: Part of the account → the verb that tells it.
PARTS = {
    "reflex": "reflex.explain",
    "nft": "nft.explain",
    "feeds": "feeds.explain",
    "history": "memory.history",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is known. told: by name of PARTS, what each cell answered within the time there was.

    stopped: sentences about its packets that were dropped by what they said, not for who sent them."""

    address: Prefix
    ban: Ban | None
    spared: Toleration | None
    safety: SafetySet
    objection: str
    posture: PostureState
    rungs: tuple[str, ...]
    told: Mapping[str, Answer]
    now: float
    stopped: Sequence[str] = ()

    @property
    def enforced(self) -> bool:
        return self.ban is not None and self.ban.enforced

    @cached_property
    def feeds(self) -> list[str]:
        """Names of the feeds that list it."""
        return _feeds(self.told.get("feeds"))

    @cached_property
    def dropped(self) -> str:
        """Why the kernel program drops it now; empty when it does not."""
        return _dropped(self.told.get("reflex"))

    @property
    def blocked(self) -> bool:
        listed = self.enforced or bool(self.feeds or self.dropped)
        return listed and self.spared is None and self.posture.posture is not Posture.EXPLORE


def account(case: Case) -> dict[str, Any]:
    """The answer to ``why``."""
    ban, spared, told = case.ban, case.spared, case.told
    shown = row(ban, case.now, case.rungs) if ban is not None else None
    return {
        "address": case.address.text,
        "verdict": _verdict(case.blocked, ban, case.feeds, spared, case.posture.posture),
        "blocked": case.blocked,
        "sentences": [
            *_about_tolerance(case),
            *_about_ban(case, shown or {}),
            *_about_feeds(case),
            *_about_the_rest(case),
            *case.stopped,
            *([f"A ban of it would be refused: {case.objection}."] if case.objection and spared is None else []),
            *_by_posture(case.address, case.posture, case.safety),
        ],
        "layers": _layers(ban, told),
        "block": shown,
        "proven": bool(shown and shown["proven"]),
        "tolerated_by": spared.prefix.text if spared is not None else None,
        "refusal": case.objection,
        "posture": case.posture.posture.value,
        "feeds": case.feeds,
        "lift": _lift(case),
        "reflex": _value(told.get("reflex")),
        "nft": _value(told.get("nft")),
        "history": (_value(told.get("history")) or {}).get("history", []),
        "not_heard": sorted(verb for part, verb in PARTS.items() if part not in told or told[part].problem),
    }


def _about_tolerance(case: Case) -> list[str]:
    if case.spared is None:
        return []
    wins = ["Tolerance wins: its packets pass although it is also on a list of blocks."]
    return [_spared(case.address, case.spared, case.now), *(wins if case.ban is not None or case.feeds else [])]


def _about_ban(case: Case, shown: Mapping[str, Any]) -> list[str]:
    ban = case.ban
    if ban is None:
        return []
    lines = _banned(case.address, ban, case.now, case.posture)
    lines.append(_proof(shown, case.rungs) if ban.enforced else _not_enforced(ban))
    if ban.enforced and case.spared is None:
        lines.append(f"To lift it: {_release(ban)}")
    return lines


def _about_feeds(case: Case) -> list[str]:
    if not case.feeds:
        return []
    lines = [f"It is on {'the feed' if len(case.feeds) == 1 else 'the feeds'} {', '.join(case.feeds)}."]
    if case.spared is None and not case.enforced:
        lines.append(f"To let it pass: {_tolerate(case)}")
    return lines


def _about_the_rest(case: Case) -> list[str]:
    """What is to be said when neither a ban nor a feed nor tolerance says it."""
    if case.feeds or case.spared is not None:
        return []
    if case.dropped and not case.enforced:
        return [f"The kernel program drops its packets now ({case.dropped}); policy has no entry for it."]
    if case.ban is None:
        return [f"{case.address.text} is not blocked: no ban, no feed and no exception names it."]
    return []


def _lift(case: Case) -> str:
    """The command that lets it pass again."""
    if case.feeds and case.spared is None and not case.enforced:
        return _tolerate(case)
    return _release(case.ban) if case.ban is not None else ""


def _release(ban: Ban) -> str:
    return f"python run.py release {ban.subject.text}"


def _tolerate(case: Case) -> str:
    return f"python run.py tolerate {case.address.text}"


def _verdict(blocked: bool, ban: Ban | None, feeds: list[str], spared: Toleration | None, posture: Posture) -> str:
    if spared is not None:
        return "tolerated"
    if blocked:
        by_feed = feeds and not (ban is not None and ban.enforced)
        return "blocked by a feed" if by_feed else "blocked"
    if ban is not None and ban.enforced:
        return "would be blocked: the posture is explore, which only observes"
    if ban is not None:
        return "noted, not blocked" if ban.action.value == "observe" else "throttled"
    return "would be blocked by a feed" if feeds and posture is Posture.EXPLORE else "not blocked"


def _banned(address: Prefix, ban: Ban, now: float, posture: PostureState) -> list[str]:
    name = address.text if ban.subject == address else f"{address.text} (as part of {ban.subject.text})"
    state = {"ban": "is blocked", "throttle": "is throttled", "observe": "would have been blocked"}[ban.action.value]
    if ban.enforced and posture.posture is Posture.EXPLORE:
        state = "would be blocked, but the posture explore only observes"
    who = f"by {ban.by}" if ban.by else f"by {ban.origin}" + (f", reflex {ban.reflex}" if ban.reflex else "")
    first = f"{name} {state} since {_ago(now - ban.since_unix_s)} ago {who}: {ban.reason}."
    until = f"{_ago(ban.until_unix_s - now)} are left." if ban.until_unix_s else "It lasts until it is released."
    lines = [first, until]
    if ban.evidence:
        lines.insert(1, f"Evidence: {ban.evidence}")
    if ban.repeats:
        lines.append(f"It was banned {ban.repeats} times before, so this ban is longer.")
    return lines


def _proof(shown: Mapping[str, Any], rungs: tuple[str, ...]) -> str:
    if not rungs:
        return "No layer of the kernel is there to enforce it now."
    words = []
    for rung, proof in shown.get("proofs", {}).items():
        state = {"proven": "has confirmed it", "missing": "does not hold it", "pending": "has not been asked yet"}
        detail = f" ({proof['detail']})" if proof["detail"] else ""
        words.append(f"{rung} {state[proof['state']]}{detail}")
    return "Proof: " + "; ".join(words) + "."


def _not_enforced(ban: Ban) -> str:
    if ban.action is Action.THROTTLE:
        return (
            "Nothing of it is dropped because of this entry: it stays under the packet budgets that hold for every "
            f"source. A sensor that wants it banned is followed from {PATIENCE_S:g} s after the first time on."
        )
    return "Nothing of it is dropped because of this entry."


def _spared(address: Prefix, entry: Toleration, now: float) -> str:
    comment = f" ({entry.comment})" if entry.comment else ""
    until = f", for {_ago(entry.until_unix_s - now)} more" if entry.until_unix_s else ""
    how = "the settings name it" if entry.origin == "settings" else f"tolerate --remove {entry.prefix.text} ends that"
    return f"{address.text} is tolerated by the entry {entry.prefix.text}{comment}{until}; {how}."


def _by_posture(address: Prefix, posture: PostureState, safety: SafetySet) -> list[str]:
    if safety.is_own_address(address) or posture.posture not in (Posture.HARDENED, Posture.LOCKDOWN):
        return []
    ports = "management ports" if posture.posture is Posture.LOCKDOWN else "service ports"
    return [f"The posture is {posture.posture}: new connections to anything but the {ports} are refused to everybody."]


def _layers(ban: Ban | None, told: Mapping[str, Answer]) -> list[str]:
    """The layers that are known to hold a drop for it."""
    layers = [rung for rung, proof in ban.proofs.items() if proof.holds] if ban is not None and ban.enforced else []
    return layers + (["feed"] if _feeds(told.get("feeds")) else [])


def _dropped(answer: Answer | None) -> str:
    """The reason for which the kernel program drops this source at this moment; empty when it does not."""
    value = _value(answer)
    return str(value.get("reason") or "drop") if isinstance(value, dict) and value.get("drop") is True else ""


def _feeds(answer: Answer | None) -> list[str]:
    """Names of the feeds that list it."""
    value = _value(answer)
    if not isinstance(value, dict):
        return []
    found = value.get("feeds") or value.get("entries") or []
    names = [entry.get("feed") or entry.get("name") if isinstance(entry, dict) else entry for entry in found]
    return list(dict.fromkeys(str(name) for name in names if name))


def _value(answer: Answer | None) -> Any:
    return answer.value if answer is not None and not answer.problem else None


def _ago(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
