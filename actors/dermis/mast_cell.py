"""MastCell — the stateful inspection and anomaly detection cell: sessions, scans, brute force, and the model's score.

Looks at the kernel's flow table twice a second while there is traffic, once a second while there is none, and changes
nothing in it. Plain rules always act; a promoted model acts beside them. Both only propose: policy decides.
Where there is no flow table (no kernel program on this host) the cell is off and says so; when the program comes later
it has itself started anew, because only a starting cell may open the table.
"""

import os
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.core.capability import service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused
from actors.core.messages import Action, Anomaly, Answer, CellReport, Entry, Record, Verdict
from actors.dermis.mast_cell_model import Eyes, Look
from actors.dermis.scans import Finding, Watchlist
from actors.dermis.sessions import Conduct, Host, conduct
from actors.dermis.sessions_list import heaviest, notable, summary
from actors.dermis.sessions_table import LiveFlows, NoTable, open_live_flows, read_host
from ml.meter import Tick

BUSY_S, IDLE_S = 0.5, 1.0
#: At the first start of a node the kernel program is loaded at the same time; the table is worth this wait.
PATIENCE_S = 5.0
#: Not before this age the cell has itself started anew for a table that came late.
AGAIN_AFTER_S = 2.0
HOST_EVERY_S = 30.0
#: Anomaly is a mean over so much time, and told when it moved by this much.
WINDOW_S, MOVED, TELL_EVERY_S = 10.0, 0.01, 10.0
#: Proposals of one look; the others wait for the next. Policy is told the same twenty a second at most.
PROPOSALS = 10
WAITING = 1_024
OFFENDERS = 1_024
JOURNAL_EVERY_S, JOURNAL_BATCH = 5.0, 50
ROWS = 200
REFLEX = "reflex_arc"


@dataclass(slots=True)
class _Offender:
    """What was proposed of one subject, and how often."""

    finding: Finding
    first_unix_s: float
    last_unix_s: float
    times: int = 1


class MastCell(Cell):
    """Turns the flow table into verdicts."""

    section = "mast"

    def before_drop(self) -> None:
        self._flows: LiveFlows | NoTable = open_live_flows(Path(self.settings.bpf_dir), PATIENCE_S)
        if os.geteuid() == 0:
            identity = service_identity(self.settings.user)
            with suppress(OSError):  # a model on probation could then not be noted as passed, which its words say
                self._models().mkdir(mode=0o755, parents=True, exist_ok=True)
                os.chown(self._models(), identity.uid, identity.gid, follow_symlinks=False)

    def on_start(self) -> None:
        self._began = time.monotonic()
        self._host = Host(np.zeros(0, "V16"))
        self._login_ports = np.array(self.settings.mast.login_ports, "u2")
        slots = 0 if isinstance(self._flows, NoTable) else self._flows.capacity
        self._eyes, self._watchlist = Eyes(self._models(), slots), Watchlist()
        self._waiting: OrderedDict[str, Finding] = OrderedDict()
        self._offenders: OrderedDict[str, _Offender] = OrderedDict()
        self._entries: list[Entry] = []
        self._recent: deque[tuple[float, float, int, int]] = deque()  # when, sum of anomaly, strange, judged
        self._sieged: set[str] = set()
        self._by_model = False
        self._told, self._told_at = 0.0, float("-inf")
        self._restarting = False
        if isinstance(self._flows, NoTable):
            self.off(
                f"{self._flows.reason}: sessions and scans are not seen", "make `doctor` content with XDP, then restart"
            )
            return
        self._read_host()
        self.every(HOST_EVERY_S, self._read_host)
        self.every(JOURNAL_EVERY_S, self._write_down)
        self.after(BUSY_S, self._look)

    @receives(CellReport)
    def on_cell_report(self, message: CellReport, source: str) -> None:
        """The kernel program is there after all: only a new start may open its table."""
        if source != REFLEX or not message.gauges.get("interfaces_hooked") or self._restarting:
            return
        absent = isinstance(self._flows, NoTable) and self._flows.absent
        if absent and time.monotonic() - self._began >= AGAIN_AFTER_S:
            self._restarting = True
            self.ask("cell.restart", {"name": self.name}, self._restart_answered)

    def _restart_answered(self, answer: Answer) -> None:
        self._restarting = not answer.problem

    def on_peer_up(self, name: str) -> None:
        self._told_at = float("-inf")  # a new Merkel knows nothing yet

    # --- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if isinstance(self._flows, NoTable):
            return
        shown = self.examine(self._flows.tick(time.monotonic_ns()))
        self.after(BUSY_S if shown else IDLE_S, self._look)

    def examine(self, tick: Tick) -> int:
        """One look: what is new, who is to be proposed. Returns how many flows had something new to say."""
        began = time.perf_counter()
        look = self._eyes.look(tick)
        now_s = tick.now_ns * 1e-9
        if len(look.shown):
            seen = conduct(look.shown, self._host, self._login_ports)
            for finding in self._watchlist.observe(now_s, seen):
                self._wish(finding)
            for blamed in look.blamed:
                self._wish(Finding(blamed.subject, "anomaly", blamed.reason, blamed.evidence, blamed.score))
            self._collect(look)
            self._feel(now_s, look, seen)
        self._propose()
        self._tell(now_s)
        self.counters["flows_shown"] += len(look.shown)
        self.counters["sources_evicted"] = self._watchlist.evicted
        self.gauges["flows"] = len(tick.slots)
        self.gauges["suspects"] = len(self._watchlist.suspects)
        self.gauges["look_ms"] = round((time.perf_counter() - began) * 1e3, 2)
        return len(look.shown)

    def _wish(self, finding: Finding) -> None:
        self._waiting[finding.subject] = finding
        if len(self._waiting) > WAITING:
            self._waiting.popitem(last=False)
            self.counters["proposals_dropped"] += 1

    def _propose(self) -> None:
        now = time.time()
        for subject in list(self._waiting)[:PROPOSALS]:
            finding = self._waiting.pop(subject)
            self.counters[f"found_{finding.kind}"] += 1
            self._remember(finding, now)
            self.publish(
                Verdict(
                    subject=subject,
                    action=Action.BAN,
                    reason=finding.reason[:200],
                    evidence=finding.evidence[:2000],
                    score=finding.score,
                    origin=self.name,
                    seen_unix_s=now,
                )
            )

    def _remember(self, finding: Finding, now: float) -> None:
        known = self._offenders.get(finding.subject)
        if known is None:
            self._offenders[finding.subject] = _Offender(finding, now, now)
            if len(self._offenders) > OFFENDERS:
                self._offenders.popitem(last=False)
        else:
            known.finding, known.last_unix_s, known.times = finding, now, known.times + 1
        self._offenders.move_to_end(finding.subject)

    def _collect(self, look: Look) -> None:
        room = 4 * JOURNAL_BATCH - len(self._entries)
        if room > 0:
            near = self._host.near(look.shown.flows["key"])
            self._entries += notable(look.shown, near, time.time(), frozenset(self._offenders), room)

    def _write_down(self) -> None:
        if self._entries:
            batch, self._entries = self._entries[:JOURNAL_BATCH], self._entries[JOURNAL_BATCH:]
            self.counters["sessions_recorded"] += len(batch)
            self.publish(Record(id=0, entries=batch))

    # --- feeling -------------------------------------------------------------------------------------------------

    def _feel(self, now_s: float, look: Look, seen: Conduct) -> None:
        """By the model what it says of each flow; by the rules the share of first sights that led to nothing."""
        self._by_model = look.anomaly is not None
        if look.anomaly is not None:
            self._recent.append((now_s, float(look.anomaly.sum()), look.strange, len(look.anomaly)))
            self._sieged.update(look.sieged[: 64 - len(self._sieged)])
        else:
            vain = len(seen.probes)
            self._recent.append((now_s, float(vain), vain, vain + len(seen.connections)))

    def _tell(self, now_s: float) -> None:
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        total, strange, judged = (sum(part[i] for part in self._recent) for i in (1, 2, 3))
        mean = min(1.0, total / judged) if judged else 0.0
        self.gauges["anomaly"] = round(mean, 4)
        due = now_s - self._told_at >= TELL_EVERY_S
        if abs(mean - self._told) < MOVED and not (due and (mean or self._told_at < 0)) and not self._sieged:
            return
        if not due and now_s - self._told_at < IDLE_S:
            return
        self._told, self._told_at = mean, now_s
        by = "model" if self._by_model else "rules"
        sieged, self._sieged = sorted(self._sieged), set()
        self.publish(
            Anomaly(mean=mean, strange=int(strange), judged=int(judged), by=by, window_s=WINDOW_S, sieged=sieged)
        )

    def _read_host(self) -> None:
        """Own addresses come and go; so may a promoted model."""
        self._host = read_host()
        self._eyes.refresh(self._host)
        if self._eyes.state in ("frozen", "stale"):
            self.degraded(self._eyes.reason, "train on this node's own traffic (python -m ml.train), then ml.promote")
        else:
            self.healthy("" if self._eyes.state == "active" else self._eyes.reason)

    # --- telling -------------------------------------------------------------------------------------------------

    @answers("sessions.list")
    def sessions(self, args: dict[str, Any], by: str) -> Any:
        """Live sessions, the heaviest first. ``by``: bytes (default) or packets; ``limit``: at most 200."""
        order = args.get("by") or "bytes"
        if order not in ("bytes", "packets"):
            raise Refused(f"sessions can be ordered by bytes or packets, not by {str(order)[:40]!r}")
        tick = self._tick()
        flows = tick.table[tick.slots]
        return {"sessions": heaviest(flows, tick.now_ns, order, _limit(args)), **summary(flows)}

    @answers("sessions.top")
    def top(self, args: dict[str, Any], by: str) -> Any:
        """Who was proposed for a ban, worst first, and who is being watched."""
        rows = sorted(self._offenders.items(), key=lambda item: (-item[1].times, -item[1].last_unix_s))
        limit = _limit(args)
        watched = sorted(self._watchlist.suspects.values(), key=lambda suspect: -len(suspect.targets))
        return {
            "attackers": [
                {
                    "subject": subject,
                    "reason": known.finding.reason,
                    "evidence": known.finding.evidence,
                    "score": round(known.finding.score, 2),
                    "times": known.times,
                    "first_unix_s": known.first_unix_s,
                    "last_unix_s": known.last_unix_s,
                }
                for subject, known in rows[:limit]
            ],
            "watched": [
                {"subject": suspect.subject, "targets": len(suspect.targets), "connections": len(suspect.met)}
                for suspect in watched[:limit]
            ],
        }

    @answers("mast.status")
    def status(self, args: dict[str, Any], by: str) -> Any:
        return {
            "model": self._eyes.state,
            "reason": self._eyes.reason,
            "table": self._flows.reason if isinstance(self._flows, NoTable) else f"{self._flows.capacity} flows",
            "flows": int(self.gauges.get("flows", 0)),
            "suspects": len(self._watchlist.suspects),
            "offenders": len(self._offenders),
            "waiting": len(self._waiting),
            "evicted": self._watchlist.evicted,
            "anomaly": self.gauges.get("anomaly", 0.0),
            "own_addresses": len(self._host.own),
            "memory_bytes": self._eyes.nbytes,
            "look_ms": self.gauges.get("look_ms", 0.0),
        }

    def _tick(self) -> Tick:
        if isinstance(self._flows, NoTable):
            raise Refused(self._flows.reason, remedy="`doctor` says what this host cannot do")
        return self._flows.tick(time.monotonic_ns())

    def _models(self) -> Path:
        return Path(self.settings.state_dir) / "models"


def _limit(args: dict[str, Any]) -> int:
    value = args.get("limit", 20)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refused("limit must be a whole number from 1")
    return min(value, ROWS)
