"""How the reflex arc stands, in words and figures: for its state, for ``reflex.status``, and for who counts. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.core.messages import KernelCounters
from actors.epidermis.ladder import Ladder
from bpf.dataplane import Counters, Loaded

REASON_LIMIT = 1_900


def worst_rung(ladders: Mapping[str, Ladder], rungs: Sequence[str]) -> str:
    """The lowest rung that one of the present interfaces stands on; ``observe`` where there is none yet."""
    order = [*rungs, "observe"]
    standing = [ladder.standing or "observe" for ladder in ladders.values() if not ladder.gone]
    return max(standing, key=lambda rung: order.index(rung) if rung in order else len(order), default="observe")


def shortcoming(ladders: Mapping[str, Ladder]) -> tuple[str, str]:
    """Reason and remedy for the first interface that the program should protect and does not; else empty."""
    for name, ladder in ladders.items():
        if ladder.on_program or not ladder.kernel_rungs:
            continue
        if ladder.gone:
            return f"the interface {name} is not there", "bring it back, or name another with --interface"
        whys = "; ".join(f"{rung}: {why}" for rung, why in ladder.refused.items())
        return f"{name} stands on {ladder.standing or 'no rung yet'} ({whys})"[:REASON_LIMIT], "see `doctor`"
    return "", ""


def interfaces_told(ladders: Mapping[str, Ladder]) -> dict[str, Any]:
    return {
        name: {"rung": ladder.standing, "refused": ladder.refused, "present": not ladder.gone}
        for name, ladder in ladders.items()
    }


def loader_told(loaded: Loaded | None) -> dict[str, Any]:
    """How the program came into the kernel, why not in the first way, and what it does without here."""
    if loaded is None:
        return {"loader": "", "loader_reason": "", "left_out": {}}
    return {"loader": loaded.loader, "loader_reason": loaded.why, "left_out": dict(loaded.left_out)}


def counters_told(counters: Counters) -> dict[str, Any]:
    """Everything that is not zero."""
    return {
        "packets": _moved(counters.did_packets),
        "bytes": _moved(counters.did_bytes),
        "would": _moved(counters.would_packets),
        "tally": _moved(counters.tally),
    }


def counters_message(counters: Counters, rung: str, at_ns: int) -> KernelCounters:
    """Totals by reason; verdicts that were withheld are called ``would_...``."""
    return KernelCounters(
        packets=_moved(counters.did_packets) | _moved(counters.would_packets, "would_"),
        bytes=_moved(counters.did_bytes) | _moved(counters.would_bytes, "would_"),
        rung=rung,
        at_ns=at_ns,
    )


def _moved(counts: Mapping[str, int], prefix: str = "") -> dict[str, int]:
    return {f"{prefix}{name}": count for name, count in counts.items() if count}
