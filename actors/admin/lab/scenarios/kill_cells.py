"""Everything dies, nothing opens: SIGKILL for each cell, all cells, supervisor, admin, service; SIGSTOP for one.

A source banned by hand sends without a pause from before the first death to after the last. The program, its maps and
its link lie in the kernel, so not one of its packets may pass at any moment, and what dies must come back: a single
cell healthy within 0.5 s, a hung one within 4 s, everything within 2 s. Nothing of the dead may stay behind.

The launcher's own death ends the service; starting it again is the task of systemd or Kubernetes, and here of the lab.
"""

import os
import signal
import time
from typing import Any

from actors.admin.lab.processes import Process, await_end, look, orphaned_sockets, tree
from actors.admin.lab.report import Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.stage import AFTER_S, BEFORE_S, SETTLE_S, Stage
from actors.core.errors import TegumentarError

RATE = 2_000
SINGLE_LIMIT_S, HUNG_LIMIT_S, ALL_LIMIT_S = 0.5, 4.0, 2.0
#: How long the lab waits beyond the limit before it gives up on a recovery: the figure is shown, late or not.
PATIENCE_S = 10.0
SUPERVISOR = "basal_layer"


def play(stage: Stage, report: Report) -> None:
    """One death after another, with a banned source knocking all the time."""
    senders = [stage.stream(family, "udp", rate=RATE, seconds=600.0) for family in stage.options.families]
    sources = [sender.spec.source for sender in senders]
    stage.service.ask("block", subjects=sources, ttl_s=3600.0, reason="banned before everything dies")
    proven = stage.until(lambda: all(map(stage.is_proven, sources)), 3.0, step_s=0.05) is not None
    report.must("the bans were proven before the first death", proven)
    stage.phase("before")
    stage.rest(BEFORE_S)
    for sender in senders:
        sender.begin()

    stage.phase("during")
    names = [cell["name"] for cell in living_cells(stage)]
    report.must("there are cells to kill", bool(names))
    stage.random.shuffle(names)
    for name in names:
        _kill_one(stage, report, name)
    _hang_one(stage, report, stage.random.choice(names))
    _kill_all(stage, report, names)
    _kill_ancestor(stage, report, "the supervisor", 2)
    _kill_ancestor(stage, report, "the actor system's admin", 1)
    _kill_ancestor(stage, report, "the service itself", 0)
    proven_s = stage.until(lambda: all(map(stage.is_proven, sources)), PATIENCE_S, step_s=0.05)
    said = "not proven any more" if proven_s is None else f"proven again after {proven_s:.1f} s"
    stage.timeline.note("proof", f"the bans are {said}", good=proven_s is not None)
    report.must("afterwards the bans still stand, proven", proven_s is not None)

    stage.phase("after")
    stage.rest(AFTER_S)
    for sender in senders:
        sender.stop()
    stage.rest(SETTLE_S)
    report.sent, report.dropped, report.leaked = stage.sent(), stage.dropped(), stage.passed()
    past_xdp = stage.observer.counters()["past_xdp"]
    stage.timeline.note(
        "witness", f"{past_xdp:,} packets of the banned source came past XDP, {report.leaked:,} past nft"
    )
    report.must("not one packet of the banned source passed at any moment", report.leaked == 0 < report.sent)
    report.must("the witness saw every packet that arrived", stage.witness_complete())
    judge_innocent(report, stage.innocent_figures())


def living_cells(stage: Stage) -> list[dict[str, Any]]:
    """Rows of the verb ``cells`` of those with a process, the supervisor left out."""
    rows = stage.service.ask("cells")
    rows = rows["cells"] if isinstance(rows, dict) else rows
    return [row for row in rows if row.get("pid") and row["name"] != SUPERVISOR]


def _kill_one(stage: Stage, report: Report, name: str) -> None:
    before = _cell(stage, name)
    began = time.monotonic()
    os.kill(before["pid"], signal.SIGKILL)
    took_s = _recovery(stage, {name: before["pid"]}, began)
    _judge(stage, report, f"{name} killed", took_s, SINGLE_LIMIT_S)


def _hang_one(stage: Stage, report: Report, name: str) -> None:
    before = _cell(stage, name)
    began = time.monotonic()
    os.kill(before["pid"], signal.SIGSTOP)
    took_s = _recovery(stage, {name: before["pid"]}, began)
    _judge(stage, report, f"{name} hung (SIGSTOP)", took_s, HUNG_LIMIT_S)


def _kill_all(stage: Stage, report: Report, names: list[str]) -> None:
    pids = {name: _cell(stage, name)["pid"] for name in names}
    began = time.monotonic()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    _judge(stage, report, "all cells killed at once", _recovery(stage, pids, began), ALL_LIMIT_S)


def _kill_ancestor(stage: Stage, report: Report, who: str, depth: int) -> None:
    """Kill the launcher (depth 0) or what it started (1: admin, 2: supervisor), found by parentage alone."""
    pids = {row["name"]: row["pid"] for row in living_cells(stage)}
    line = _ancestry(next(iter(pids.values())), stage.service.pid())
    if len(line) <= depth:
        report.must(f"{who} is a process of its own", False)
        return
    victim = line[depth]
    family = tree(victim.pid)
    began = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    if depth == 0:
        stage.service.stop()
        report.must(f"with {who} its whole family died", not await_end(family))
        began = time.monotonic()
        stage.service.start()
    took_s = _recovery(stage, pids, began)
    _judge(stage, report, f"{who} killed", took_s, ALL_LIMIT_S)
    left = [process.title for process in family if process.lives()]
    report.must(f"no process was orphaned by the death of {who}", not left)
    sockets = orphaned_sockets(stage.service.run_dir, stage.net.node.namespace)
    report.must(f"nor a socket {sockets or ''}".rstrip(), not sockets)


def _ancestry(pid: int, root: int) -> list[Process]:
    """From the root down to the parent of pid."""
    line: list[Process] = []
    while pid > 1 and pid != root:
        process = look(pid)
        if process is None:
            return []
        line.insert(0, process)
        pid = process.parent
    top = look(root)
    return [top, *line[:-1]] if top is not None and line else []


def _recovery(stage: Stage, old: dict[str, int], began: float) -> float | None:
    """Seconds from ``began`` until every one of these cells is healthy in a new process."""

    def recovered() -> bool:
        rows = {row["name"]: row for row in living_cells(stage)}
        return all(
            name in rows and rows[name]["pid"] != pid and rows[name]["state"] == _usual(stage, name)
            for name, pid in old.items()
        )

    if stage.until(recovered, PATIENCE_S) is None:
        return None
    return time.monotonic() - began


def _usual(stage: Stage, name: str) -> str:
    """The state this cell had at the curtain: healthy, or degraded where this host lacks something."""
    return stage.usual_states.get(name, "healthy")


def _judge(stage: Stage, report: Report, what: str, took_s: float | None, limit_s: float) -> None:
    said = "never came back" if took_s is None else f"healthy again after {took_s * 1000:.0f} ms"
    held = took_s is not None and took_s <= limit_s
    stage.timeline.note("death", f"{what}, {said}", good=held)
    report.must(f"{what}: healthy again", took_s is not None)
    report.must(f"{what}: within {limit_s:g} s", held, timed=True)
    if took_s is not None:
        report.reaction_ms = max(report.reaction_ms or 0.0, round(took_s * 1000, 1))


def _cell(stage: Stage, name: str) -> dict[str, Any]:
    """The row of this cell once it is up; raises TegumentarError when it does not come."""
    rows: list[dict[str, Any]] = []

    def up() -> bool:
        rows[:] = [row for row in living_cells(stage) if row["name"] == name]
        return bool(rows)

    if stage.until(up, PATIENCE_S) is None:
        raise TegumentarError(f"the cell {name} is not up")
    return rows[0]
