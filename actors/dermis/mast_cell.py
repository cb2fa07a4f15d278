"""MastCell — the stateful inspection and anomaly detection cell: sessions, scans, brute force, and the model's score.

Looks at the kernel's flow table twice a second while there is traffic, once a second while there is none, and changes
nothing in it. Plain rules always act; a promoted model acts beside them. Both only propose: policy decides.
Until somebody speaks, or a model is promoted, it only asks whether the table has changed, and the code behind is not
even loaded.

Where there is no flow table (no kernel program on this host) the cell is off and says so; when the program comes later
it has itself started anew, because only a starting cell may open the table.
"""

import os
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core.capability import service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused
from actors.core.lifecycle import Reload
from actors.core.messages import Action, Anomaly, Answer, CellReport, Enforce, Entry, Record, Verdict
from actors.dermis.mast_cell_pool import Samples
from actors.dermis.sessions_table import LiveFlows, NoTable, open_live_flows, own_addresses

if TYPE_CHECKING:
    from actors.dermis.mast_cell_mind import Mind
    from actors.dermis.scans import Finding
    from ml.meter import Tick

BUSY_S, IDLE_S = 0.5, 1.0
#: At the first start of a node the kernel program is loaded at the same time; the table is worth this wait.
PATIENCE_S = 5.0
#: Not before this age the cell has itself started anew for a table that came late.
AGAIN_AFTER_S = 2.0
HOST_EVERY_S = 30.0
#: Anomaly is told when it moved by this much.
MOVED, TELL_EVERY_S = 0.01, 10.0
#: Proposals of one look; the others wait for the next. Policy is told the same twenty a second at most.
PROPOSALS = 10
WAITING = 1_024
OFFENDERS = 1_024
#: The journal, the learning pool and the models folder are seen to when a look is due anyway.
CHORES_S, JOURNAL_BATCH = 5.0, 50
ROWS = 200
REFLEX = "reflex_arc"
#: What is not learned from: whoever policy, or any sensor, holds to be hostile.
HOSTILE = (Action.BAN, Action.THROTTLE)


@dataclass(slots=True)
class _Offender:
    """What was proposed of one subject, and how often."""

    finding: "Finding"
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
            for folder, mode in ((self._models(), 0o755), (self._pool(), 0o700)):
                with suppress(OSError):  # then nothing can be noted or learned there, which the state in words says
                    folder.mkdir(mode=mode, parents=True, exist_ok=True)
                    os.chown(folder, identity.uid, identity.gid, follow_symlinks=False)

    def on_start(self) -> None:
        self._began = time.monotonic()
        self._mind: Mind | None = None
        self._waiting: OrderedDict[str, Finding] = OrderedDict()
        self._offenders: OrderedDict[str, _Offender] = OrderedDict()
        self._entries: list[Entry] = []
        self._told, self._told_at = 0.0, float("-inf")
        self._said: dict[str, Any] = {}
        self._restarting = False
        if isinstance(self._flows, NoTable):
            self._samples = Samples(self._pool(), 0)
            self.off(
                f"{self._flows.reason}: sessions and scans are not seen", "make `doctor` content with XDP, then restart"
            )
            return
        self._samples = Samples(self._pool(), self.settings.mast.pool_megabytes)
        self._chores_at = self._host_at = self._began
        self._do_chores()
        self.after(BUSY_S, self._look)

    def on_stop(self) -> None:
        self._samples.close(time.time())

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

    @receives(Reload)
    def on_reload(self, message: Reload, source: str) -> None:
        """A promoted model is taken up now and not within seconds."""
        if not isinstance(self._flows, NoTable):
            self._chores_at = 0.0
            self._do_chores()

    @receives(Verdict)
    def on_verdict(self, message: Verdict, source: str) -> None:
        """What any sensor blames must not become somebody's normal."""
        if message.action in HOSTILE:
            self._samples.blame(message.subject, time.time())

    @receives(Enforce)
    def on_enforce(self, message: Enforce, source: str) -> None:
        now = time.time()
        for order in message.orders:
            if order.action in HOSTILE:
                self._samples.blame(order.subject, now)

    def on_peer_up(self, name: str) -> None:
        self._told_at = float("-inf")  # a new Merkel knows nothing yet

    # --- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if isinstance(self._flows, NoTable):
            return
        now_ns, shown = time.monotonic_ns(), 0
        quiet = self._flows.quiet()
        if not quiet and (self._mind is not None or self._flows.spoken(now_ns)):
            shown = self.examine(self._flows.tick(now_ns))
        elif self._mind is not None:
            self._mind.rest()
            self._propose()
            self._tell(now_ns * 1e-9)
        self._do_chores()
        self.after(BUSY_S if shown else IDLE_S, self._look)

    def examine(self, tick: "Tick") -> int:
        """One look: what is new, who is to be proposed. Returns how many flows had something new to say."""
        began = time.perf_counter()
        mind = self._awake()
        seen = mind.examine(tick, self._offenders, 4 * JOURNAL_BATCH - len(self._entries))
        self._entries += seen.entries
        for finding in seen.findings:
            self._wish(finding)
        self._propose()
        self._tell(tick.now_ns * 1e-9)
        if mind.eyes.state != self._said.get("state", mind.eyes.state):
            self._say_state()
        self.counters["flows_shown"] += seen.shown
        self.counters["sources_evicted"] = mind.watchlist.evicted
        self.gauges["flows"] = len(tick.slots)
        self.gauges["suspects"] = len(mind.watchlist.suspects)
        self.gauges["look_ms"] = round((time.perf_counter() - began) * 1e3, 2)
        return seen.shown

    def _awake(self) -> "Mind":
        """From the first packet, or the first model, on."""
        if self._mind is None:
            from actors.dermis.mast_cell_mind import Mind

            slots = 0 if isinstance(self._flows, NoTable) else self._flows.capacity
            self._mind = Mind(self._models(), slots, self.settings.mast.login_ports, self._samples)
            self._read_host()
        return self._mind

    def _do_chores(self) -> None:
        """Every few seconds: the journal, the pool, another model; every half minute the host."""
        now = time.monotonic()
        if now < self._chores_at:
            return
        self._chores_at = now + CHORES_S
        self._write_down()
        self._samples.flush(time.time())
        if now >= self._host_at and (self._mind is not None or (self._models() / "current").is_symlink()):
            self._awake()
            self._read_host()
            self._host_at = now + HOST_EVERY_S
        elif self._mind is not None:
            self._mind.eyes.refresh(self._mind.host)
        self._say_state()

    def _wish(self, finding: "Finding") -> None:
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
            self._samples.blame(subject, now)
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

    def _remember(self, finding: "Finding", now: float) -> None:
        known = self._offenders.get(finding.subject)
        if known is None:
            self._offenders[finding.subject] = _Offender(finding, now, now)
            if len(self._offenders) > OFFENDERS:
                self._offenders.popitem(last=False)
        else:
            known.finding, known.last_unix_s, known.times = finding, now, known.times + 1
        self._offenders.move_to_end(finding.subject)

    def _write_down(self) -> None:
        if self._entries:
            batch, self._entries = self._entries[:JOURNAL_BATCH], self._entries[JOURNAL_BATCH:]
            self.counters["sessions_recorded"] += len(batch)
            self.publish(Record(id=0, entries=batch))

    def _tell(self, now_s: float) -> None:
        if self._mind is None:
            return
        from actors.dermis.mast_cell_mind import WINDOW_S

        mood = self._mind.mood(now_s)
        self.gauges["anomaly"] = round(mood.mean, 4)
        due, sieged = now_s - self._told_at >= TELL_EVERY_S, sorted(self._mind.sieged)
        if abs(mood.mean - self._told) < MOVED and not (due and (mood.mean or self._told_at < 0)) and not sieged:
            return
        if not due and now_s - self._told_at < IDLE_S:
            return
        self._told, self._told_at = mood.mean, now_s
        self._mind.sieged.clear()
        self.publish(
            Anomaly(
                mean=mood.mean, strange=mood.strange, judged=mood.judged, by=mood.by, window_s=WINDOW_S, sieged=sieged
            )
        )

    def _read_host(self) -> None:
        if self._mind is not None:
            self._mind.look_at_host()

    def _say_state(self) -> None:
        """The state of the model is the state of the cell; what it feels of the model is in the metrics."""
        if self._mind is None:
            self.healthy(self._reason_of_model())
            return
        eyes = self._mind.eyes
        self.gauges["model_drift"] = round(eyes.drift, 4)
        self.gauges["model_serves"] = float(eyes.state == "active")
        self.gauges["pool_rows"] = self._samples.rows
        said = {"model": eyes.name, "state": eyes.state, "reason": eyes.reason, "drift": round(eyes.drift, 4)}
        if eyes.name and said != self._said:
            self._said = said
            with suppress(OSError):  # then `ml.promote status` says how it would find the model itself
                eyes.say(said)
        if eyes.state in ("frozen", "stale"):
            self.degraded(eyes.reason, "train on this node's own traffic (python -m ml.train), then ml.promote")
        else:
            self.healthy("" if eyes.state == "active" else eyes.reason)

    def _reason_of_model(self) -> str:
        if self._mind is not None:
            return self._mind.eyes.reason
        return f"learning: no model has been promoted in {self._models()}; the plain rules act"

    # --- telling -------------------------------------------------------------------------------------------------

    @answers("sessions.list")
    def sessions(self, args: dict[str, Any], by: str) -> Any:
        """Live sessions, the heaviest first. ``by``: bytes (default) or packets; ``limit``: at most 200."""
        from actors.dermis.sessions_list import heaviest, summary

        order = args.get("by") or "bytes"
        if order not in ("bytes", "packets"):
            raise Refused(f"sessions can be ordered by bytes or packets, not by {str(order)[:40]!r}")
        tick = self._tick()
        flows = tick.table[tick.where]
        return {"sessions": heaviest(flows, tick.now_ns, order, _limit(args)), **summary(flows)}

    @answers("sessions.top")
    def top(self, args: dict[str, Any], by: str) -> Any:
        """Who was proposed for a ban, worst first, and who is being watched."""
        rows = sorted(self._offenders.items(), key=lambda item: (-item[1].times, -item[1].last_unix_s))
        limit = _limit(args)
        suspects = self._mind.watchlist.suspects.values() if self._mind is not None else ()
        watched = sorted(suspects, key=lambda suspect: -len(suspect.targets))
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
        """The model and its state in words, how far traffic has moved from it (drift), and what the pool holds."""
        mind, now = self._mind, time.time()
        return {
            "model": mind.eyes.state if mind is not None else "learning",
            "model_name": mind.eyes.name if mind is not None else "",
            "reason": self._reason_of_model(),
            "drift": round(mind.eyes.drift, 4) if mind is not None else 0.0,
            "pool": self._samples.status(now),
            "table": self._flows.reason if isinstance(self._flows, NoTable) else f"{self._flows.capacity} flows",
            "flows": int(self.gauges.get("flows", 0)),
            "suspects": len(mind.watchlist.suspects) if mind is not None else 0,
            "offenders": len(self._offenders),
            "waiting": len(self._waiting),
            "evicted": mind.watchlist.evicted if mind is not None else 0,
            "anomaly": self.gauges.get("anomaly", 0.0),
            "own_addresses": len(mind.host.own) if mind is not None else len(own_addresses()),
            "memory_bytes": mind.eyes.nbytes if mind is not None else 0,
            "look_ms": self.gauges.get("look_ms", 0.0),
        }

    def _tick(self) -> "Tick":
        if isinstance(self._flows, NoTable):
            raise Refused(self._flows.reason, remedy="`doctor` says what this host cannot do")
        return self._flows.tick(time.monotonic_ns())

    def _models(self) -> Path:
        return Path(self.settings.state_dir) / "models"

    def _pool(self) -> Path:
        return Path(self.settings.state_dir) / "pool"


def _limit(args: dict[str, Any]) -> int:
    value = args.get("limit", 20)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refused("limit must be a whole number from 1")
    return min(value, ROWS)
