"""From records of the kernel program to words for the gate: events, policy, times. Pure."""

import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from actors.core.messages import BATCH_LIMIT, Posture, ReflexEvent
from bpf.dataplane import Budget, Policy, Records, Stance

_BANNED = 1  # TG_EVENT_BANNED
_MAPPED = b"\0" * 10 + b"\xff\xff"

STANCES = {
    Posture.EXPLORE: Stance.OBSERVE,
    Posture.BALANCED: Stance.ENFORCE,
    Posture.HARDENED: Stance.HARDENED,
    Posture.LOCKDOWN: Stance.HARDENED,
}


#: However strained the node is, a source may send so many packets a second where the settings allow that much.
LEAST_PPS = 20


def policy_of(reflex: Any, posture: Posture, scale: float = 1.0) -> Policy:
    """The knobs for a posture. ``reflex``: the settings section of that name. scale: of the per-source budgets."""

    def budget(rate: int, burst: int) -> Budget:
        least = min(rate, LEAST_PPS)
        return Budget(max(rate * scale, least), max(int(burst * scale), least, 1))

    return Policy(
        stance=STANCES[posture],
        syn=budget(reflex.syn_rate, reflex.syn_burst),
        udp=budget(reflex.udp_rate, reflex.udp_burst),
        icmp=budget(reflex.icmp_rate, reflex.icmp_burst),
        total=budget(reflex.total_rate, reflex.total_burst),
        ban_s=reflex.ban_seconds,
        drop_malformed=reflex.drop_malformed,
        syn_cookies=reflex.syn_cookies,
    )


def until_ns(until_unix_s: float, now_unix_s: float, now_ns: int) -> int:
    """The kernel's moment for a wall-clock one; 0 stays 0 (until released), the past is the first moment there is."""
    return 0 if until_unix_s == 0 else max(1, now_ns + round((until_unix_s - now_unix_s) * 1e9))


def until_unix_s(moment_ns: int, now_unix_s: float, now_ns: int) -> float:
    """The wall-clock moment for the kernel's; 0 stays 0."""
    return 0.0 if moment_ns == 0 else now_unix_s + (moment_ns - now_ns) / 1e9


def summarize(
    records: Records,
    reason_name: Callable[[int], str],
    now_unix_s: float,
    now_ns: int,
    limit: int = 20 * BATCH_LIMIT,
) -> list[ReflexEvent]:
    """One event for each source and reflex among the records: the newest word about it, bans first.

    records: EVENT dtype, oldest first. Beyond ``limit`` the ones without a ban are left out: a flood from random
    sources has no message for each of them, and the counters keep the sum."""
    if not len(records):
        return []
    keys = np.zeros(len(records), dtype=[("source", "V16"), ("reason", "u1")])
    keys["source"] = np.ascontiguousarray(records["source"]).view("V16").reshape(-1)
    keys["reason"] = records["reason"]
    newest = records[::-1]
    _, first = np.unique(keys[::-1].view(f"V{keys.dtype.itemsize}"), return_index=True)
    chosen = newest[first]
    order = np.lexsort((chosen["at_ns"], ~(chosen["flags"] & _BANNED).astype(bool)))
    return [_event(record, reason_name, now_unix_s, now_ns) for record in chosen[order[:limit]]]


def _event(record: Any, reason_name: Callable[[int], str], now_unix: float, now_ns: int) -> ReflexEvent:
    banned = bool(record["flags"] & _BANNED)
    return ReflexEvent(
        subject=_subject(record["source"].tobytes(), banned),
        reflex=reason_name(int(record["reason"])),
        banned=banned,
        until_unix_s=until_unix_s(int(record["until_ns"]), now_unix, now_ns) if banned else 0.0,
        packets=int(record["packets"]),
        dest_port=int(record["dest_port"]),
        detail=int(record["detail"]),
        seen_unix_s=until_unix_s(int(record["at_ns"]), now_unix, now_ns),
    )


def _subject(source: bytes, banned: bool) -> str:
    """The address; a ban of IPv6 by the program is of the /64."""
    if source.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, source[12:])
    if banned:
        return socket.inet_ntop(socket.AF_INET6, source[:8] + bytes(8)) + "/64"
    return socket.inet_ntop(socket.AF_INET6, source)
