"""Attacks below every budget: a slow scan, a scan by many together, and passwords guessed one by one.

No reflex sees these; the mast cell does, from what conversations amount to. Judged are the reason in words, the proof
of the ban, silence for the attacker afterwards, and the innocent client, who makes as many short equal connections as
any attacker here, but to a service where that is ordinary.
"""

import time
from typing import Any, Final

from actors.admin.lab.children import Child
from actors.admin.lab.report import Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.stage import AFTER_S, BEFORE_S, MANAGEMENT_PORT, SETTLE_S, Stage

SENSOR: Final = "mast_cell"
#: Less than one door a second: ten within ten seconds, the quick rule, is never reached.
SLOW_PACE_S, SLOW_PORTS, SLOW_LIMIT_S = 1.25, range(1000, 1060), 25.0
#: Each of the sources tries six doors, too few to be a scanner by himself.
TOGETHER, DOORS_EACH, TOGETHER_RATE, TOGETHER_LIMIT_S = 8, 6, 12, 8.0
GUESS_PACE_S, GUESS_BYTES, GUESS_LIMIT_S = 0.2, 1500, 20.0
NUMBER: Final = 99
#: So much longer he tries, to see that nobody answers.
GRACE_S = 1.0


class Caller(Child):
    """The patient attacker of one family; ``calls`` are (port, when, end). His usual address is the node's way to the
    forged ones, which is never banned, so he takes another."""

    def __init__(self, stage: Stage, family: int, pace_s: float, size: int, ports: list[int]) -> None:
        self.source = stage.source(family, NUMBER)
        attacker = stage.net.attacker
        attacker.namespace.ip(f"addr add {self.source}/{32 if family == 4 else 128} dev {attacker.interface} nodad")
        self.calls: list[tuple[int, int, str]] = []
        super().__init__(
            attacker.namespace, "caller", str(family), self.source, stage.net.node.address(family), str(pace_s),
            str(size), *map(str, ports), errors=stage.directory / "helpers.log",
        )  # fmt: skip

    def take(self, report: dict[str, Any]) -> None:
        self.calls.append((report["port"], report["at_ns"], report["end"]))


def slow_scan(stage: Stage, report: Report) -> None:
    """One door after the other, less than one a second."""
    _call(stage, report, "slow port scan", SLOW_PACE_S, 0, list(SLOW_PORTS), SLOW_LIMIT_S)


def brute_force(stage: Stage, report: Report) -> None:
    """Short sessions of the same size to the management port."""
    _call(stage, report, "brute force", GUESS_PACE_S, GUESS_BYTES, [MANAGEMENT_PORT], GUESS_LIMIT_S)


def distributed_scan(stage: Stage, report: Report) -> None:
    """Many sources, few doors each, all doors together."""
    stage.phase("before")
    stage.rest(BEFORE_S)
    began_ns = stage.phase("during")
    doors = TOGETHER * DOORS_EACH
    senders = [
        stage.stream(
            family, "syn", rate=TOGETHER_RATE, seconds=doors / TOGETHER_RATE, sources=TOGETHER,
            ports=tuple(range(2000, 2000 + doors)),
        )
        for family in stage.options.families
    ]  # fmt: skip
    stage.timeline.note("attack", f"{TOGETHER} sources try {doors} doors, {DOORS_EACH} each", at_ns=began_ns)
    for sender in senders:
        sender.begin()
    sources = [source for sender in senders for source in sender.spec.source_list()]
    for source in sources:
        _must_ban(stage, report, source, "distributed port scan", TOGETHER_LIMIT_S)
    for sender in senders:
        sender.stop()
    report.reaction_ms = (time.monotonic_ns() - began_ns) / 1e6
    stage.phase("after")
    stage.rest(AFTER_S)
    report.sent, report.dropped = stage.sent(), stage.dropped()
    judge_innocent(report, stage.innocent_figures())


def _call(
    stage: Stage, report: Report, reason: str, pace_s: float, size: int, ports: list[int], limit_s: float
) -> None:
    callers = [Caller(stage, family, pace_s, size, ports) for family in stage.options.families]
    try:
        stage.phase("before")
        stage.rest(BEFORE_S)
        began_ns = stage.phase("during")
        for caller in callers:
            caller.wait_ready()
            caller.tell("go")
            stage.timeline.note("attack", f"{caller.source}: one call every {pace_s} s")
        for caller in callers:
            _must_ban(stage, report, caller.source, reason, limit_s)
        report.reaction_ms = (time.monotonic_ns() - began_ns) / 1e6
        banned_ns = time.monotonic_ns() + int(SETTLE_S * 1e9)
        stage.rest(2 * pace_s + GRACE_S)
        stage.phase("after")
        stage.rest(AFTER_S)
    finally:
        for caller in callers:
            caller.close()
    for caller in callers:
        later = [end for _, at_ns, end in caller.calls if at_ns > banned_ns]
        report.sent += len(caller.calls)
        report.leaked += sum(end != "silence" for end in later)
        report.must(f"{caller.source} met silence from then on ({len(later)} calls)", set(later) == {"silence"})
    report.dropped = stage.dropped()
    judge_innocent(report, stage.innocent_figures())


def _must_ban(stage: Stage, report: Report, source: str, reason: str, limit_s: float) -> None:
    """Banned by the sensor for this reason, proven, and explained with evidence."""

    def banned() -> bool:
        row = stage.ban_of(source)
        return row is not None and row["action"] == "ban" and bool(row["proven"])

    took_s = stage.until(banned, limit_s, step_s=0.1)
    row = stage.ban_of(source) or {}
    stage.timeline.note(
        "ban",
        f"{source}: {row.get('reason', 'not banned')}: {row.get('evidence', '')}",
        good=took_s is not None,
    )
    report.must(
        f"{source} is banned for: {reason}",
        took_s is not None and row.get("origin") == SENSOR and reason in str(row.get("reason")),
    )
    report.must(f"why {source} gives the evidence", bool(row) and row["evidence"] in stage.explain(source))
