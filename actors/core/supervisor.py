"""BasalLayer — the supervisor: brings every cell to life, keeps it alive, and introduces it to the others.

A cell is started again when it dies (exception, exit, signal, C fault) and when it hangs (its actor thread or its loop
shows no life for three heartbeats: SIGKILL, then a new start). When and how often is ``restart.py``; how a process is
made is ``host.py``. The supervisor has one thread, does no work of its own, and believes no cell about another.
"""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from actors.core import census, frames, log, renewal, restart, wiring
from actors.core.anatomy import Anatomy
from actors.core.asks import Deferred, problem
from actors.core.capability import Identity, service_identity
from actors.core.cell import Cell
from actors.core.codec import Envelope, encode
from actors.core.errors import NotFound, Refused
from actors.core.frames import family
from actors.core.host import Nursery, Seed
from actors.core.life import Life
from actors.core.lifecycle import Birth, Hello, Introduction, Introductions, Reload, Stop, StopNode
from actors.core.membrane import Frame, Membrane, Self
from actors.core.messages import Answer, Ask, CellReport, CellState, Message
from actors.core.peers import Standing
from actors.core.pulse import Pulse
from actors.core.sockets import UnixAddress
from actors.core.wiring import answers, receives

#: How often pages and exit codes are looked at.
SWEEP_S = 0.5
#: Changes of the registry travel together when they happen together.
_GATHER_S = 0.004
_STOP_ONE_S, _STOP_ALL_S = 2.0, 6.0
_RETIREMENT_S = 0.05
_SWITCH_ON = "take {} out of supervisor.off, then `python run.py reload`"


class Nurse(Membrane, Protocol):
    """A membrane that can also fork."""

    def fork(self, seed: Seed, first_frame: bytes) -> Any:
        """Make a process from ``seed`` and send it its first frame. Returns its ``multiprocessing`` process."""
        ...


class BasalLayer(Cell):
    """BasalLayer — the supervisor."""

    _membrane: Nurse

    def __init__(self, me: Self, membrane: Membrane) -> None:
        super().__init__(me, membrane)
        self.anatomy = Anatomy(())
        self.lives: dict[str, Life] = {}
        self._changed: set[str] = set()
        self._gathering = False
        self._stopping = False
        self._since = time.time()
        self._sweeps = 0
        self._last_sweep = time.monotonic()
        self._lenient_until = 0.0
        self._renewal = renewal.Round()
        self._identity: Identity = service_identity(self.settings.user)

    # --- life ----------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        rules = self.settings.supervisor
        self._policy = restart.policy_of(rules)
        self._silence_limit_s = rules.heartbeat_s * rules.missed_heartbeats
        self._introduce_myself()
        for spec in self.anatomy.start_order():
            life = self.lives[spec.name] = Life(spec)
            if spec.name in rules.off:
                self._is_off(life)
            known = spec.loaded_class()
            if known is not None:
                declared = wiring.receptors(known)
                life.receives, life.answers = list(declared.kinds), list(declared.verbs)
            self._meet(life.introduction())
        for life in self.lives.values():
            if life.state is not CellState.OFF:
                self._start(life)
        self.every(SWEEP_S, self.sweep)

    def on_stop(self) -> None:
        self._stopping = True

    def _start(self, life: Life) -> None:
        if self._stopping or life.alive:
            return
        life.incarnation += 1
        me = Self(
            name=life.name,
            layer=life.spec.layer,
            settings=self.settings,
            incarnation=life.incarnation,
            heartbeat_s=self._heartbeat_s,
        )
        pulse = Pulse()
        keeps_root = life.spec.privileges.keep_root or os.geteuid() != 0
        seed = Seed(
            spec=life.spec,
            me=me,
            pulse=pulse,
            identity=None if keeps_root else self._identity,
            read_settings=self.anatomy.read_settings,
        )
        birth = encode(Birth(incarnation=life.incarnation), self.name, self.incarnation)
        process = self._membrane.fork(seed, birth)
        pulse.keep_from_forks()
        life.begin(process, pulse)
        self._announce(life)

    @receives(Hello)
    def on_hello(self, message: Hello, source: str) -> None:
        life = self.lives[source]
        if message.pid != life.pid:
            self.counters["wrong_hello"] += 1
            return
        life.greeted(message)
        self.log.info("cell_up", name=source, incarnation=life.incarnation, pid=life.pid, state=life.state.value)
        self._meet(life.introduction())
        everybody = [row for row in self.peers if row.cell != source]
        self._send_to(source, Introductions(rows=everybody))
        self._announce(life)
        self._renew()

    @receives(CellReport)
    def on_report(self, message: CellReport, source: str) -> None:
        life = self.lives[source]
        if message.cell == source and life.up:
            before = life.state
            life.reported(message)
            if life.state is not before:
                self._announce(life)
                self._renew()

    # --- death ---------------------------------------------------------------------------------------------------

    def look_for_dead(self) -> None:
        """Collect whatever has ended. Thespian's notices come late, twice or not at all; exit codes are the truth."""
        for life in self.lives.values():
            exit_code = life.exit_code_now()
            if exit_code is not None:
                self._died(life, exit_code)

    def sweep(self) -> None:
        """Twice a second: exit codes, start limits, silence."""
        now = time.monotonic()
        if now - self._last_sweep > 3 * SWEEP_S:  # we did not run ourselves; perhaps nobody did
            self._lenient_until = now + self._silence_limit_s
            self.counters["late_sweeps"] += 1
        self._last_sweep = now
        self._sweeps += 1
        self.look_for_dead()
        self._renew()
        for life in self.lives.values():
            if not life.alive or life.condemned:
                continue
            if life.up and now > self._lenient_until:
                why = life.silence(self._silence_limit_s)
            elif not life.up and now > self._lenient_until:
                limit = life.spec.start_limit_s or self.settings.supervisor.start_limit_s
                why = "" if now - life.started_at < limit else f"did not start within {limit:g} s"
            else:
                why = ""
            if why:
                self.counters["hung"] += 1
                self._kill(life, f"hung: {why}")

    def _kill(self, life: Life, cause: str) -> None:
        self.log.warning("cell_killed", name=life.name, incarnation=life.incarnation, cause=cause)
        life.condemned = cause
        life.signal(signal.SIGKILL)

    def _died(self, life: Life, exit_code: int) -> None:
        if life.socket:
            Path(UnixAddress(life.socket).path).unlink(missing_ok=True)
        planned, off_next = life.planned, life.off_next
        lived_s = life.ended(exit_code)
        if self._stopping:
            self._announce(life)
            self._stop_next()
            return
        if off_next:
            self._is_off(life)
            self._announce(life)
            return
        if planned:
            decision = restart.Decision(0.0)
        else:
            life.history, decision = restart.after_failure(
                life.history,
                self._policy,
                time.monotonic(),
                lived_s=lived_s,
                critical=life.spec.critical,
                chance=random.random(),  # noqa: S311
            )
        self.log.warning(
            "cell_down",
            name=life.name,
            incarnation=life.incarnation,
            cause=life.last_cause,
            exit_code=exit_code,
            lived_s=round(lived_s, 3),
            again_in_s=round(decision.delay_s, 3),
        )
        if decision.escalate:
            self.log.critical("giving_up", name=life.name, reason="a critical cell does not stay alive")
            self._membrane.crash(f"the critical cell {life.name} does not stay alive: {life.last_cause}")
        if decision.degraded:
            life.become(
                CellState.DEGRADED,
                f"failed too often, last: {life.last_cause}",
                f"tried again every minute; mend the cause, then `python run.py restart {life.name}`",
            )
        else:
            life.become(CellState.DOWN, life.last_cause, "")
        self.counters["restarts"] += 1
        life.retry_timer = self.after(decision.delay_s, self._start, life)
        self._announce(life)

    # --- the registry --------------------------------------------------------------------------------------------

    def _introduce_myself(self) -> None:
        self.peers.learn_self(
            Introduction(
                cell=self.name,
                state=CellState.HEALTHY,
                incarnation=self.incarnation,
                up=True,
                socket=self._membrane.socket,
                pid=os.getpid(),
                answers=list(self.receptors.verbs),
            )
        )

    def _announce(self, life: Life) -> None:
        """Tell everybody about a change, together with the others of this moment."""
        self._meet(life.introduction())
        self._changed.add(life.name)
        if not self._gathering:
            self._gathering = True
            self.after(_GATHER_S, self._tell_changes)
        if not life.up:
            self.publish(life.report())

    def _tell_changes(self) -> None:
        self._gathering = False
        changed, self._changed = self._changed, set()
        for life in self.lives.values():
            rows = [self.lives[name].introduction() for name in changed if name != life.name]
            if life.up and rows:
                self._send_to(life.name, Introductions(rows=rows))

    def _standing(self, envelope: Envelope, frame: Frame) -> Standing:
        """By our own book: the supervisor knows the process of each cell since it forked it."""
        life = self.lives.get(envelope.cell)
        if life is None:
            return Standing.NEW
        if life.alive and envelope.incarnation == life.incarnation and frame.pid == life.pid:
            return Standing.KNOWN
        return Standing.STALE

    # --- questions from other processes --------------------------------------------------------------------------

    def _from_stranger(self, frame: Frame, envelope: Envelope) -> None:
        """Not a cell: the launcher, or root's command line. Anybody else is refused and counted."""
        message = envelope.message
        if isinstance(message, StopNode) and frame.pid == family.launcher.pid:
            self._stop_all()
        elif isinstance(message, Ask) and frame.uid in (0, os.geteuid()):
            self._answer_outside(message, frame)
        else:
            self.counters["refused_strangers"] += 1

    def _answer_outside(self, ask: Ask, frame: Frame) -> None:
        def reply(answer: Answer) -> None:
            try:
                data = encode(answer, self.name, self.incarnation)
            except Refused as refused:
                data = encode(problem(ask.id, refused), self.name, self.incarnation)
            self._membrane.send(frame.reply_to, data)

        by = f"{ask.by or 'cli'} uid {frame.uid}"[:200]
        if ask.verb in self.receptors.verbs:
            self._answer(Ask(id=ask.id, verb=ask.verb, args=ask.args, by=by), reply)
        else:
            deferred = Deferred(ask.id, reply)
            self.ask(ask.verb, ask.args, deferred.relay, timeout_s=max(0.1, ask.timeout_s - 0.05), by=by)

    # --- verbs ---------------------------------------------------------------------------------------------------

    def report(self) -> CellReport:
        """With what the admin's socket refused: nobody else can tell."""
        report = super().report()
        return replace(report, counters=report.counters | frames.OF_ADMIN.counts("admin_"))

    @answers("cells")
    def cells(self, args: dict[str, Any], by: str) -> Any:
        return [life.row() for life in self.lives.values()]

    @answers("wiring")
    def wiring(self, args: dict[str, Any], by: str) -> Any:
        declared = {
            life.name: wiring.Receptors(dict.fromkeys(life.receives, ""), dict.fromkeys(life.answers, ""))
            for life in self.lives.values()
        }
        declared[self.name] = wiring.Receptors({}, self.receptors.verbs)
        return wiring.graph(declared)

    @answers("node")
    def node(self, args: dict[str, Any], by: str) -> Any:
        return census.of_node(list(self.lives.values())) | {
            "since_unix_s": self._since,
            "pid": os.getpid(),
            "launcher_pid": family.launcher.pid,
            "sweeps": self._sweeps,
        }

    @answers("cell.restart")
    def restart_cell(self, args: dict[str, Any], by: str) -> Any:
        name = str(args.get("name", ""))[:40]
        life = self.lives.get(name)
        if life is None:
            raise NotFound(f"there is no cell named {name!r}", remedy="`cells` lists them")
        if life.state is CellState.OFF and not life.alive:
            raise Refused(
                f"{name} is switched off in the settings",
                remedy=f"take {name} out of supervisor.off, then `python run.py reload`",
            )
        self.log.info("cell_restart", name=name, by=by)
        self._restart(life)
        return {"restarting": name, "incarnation": life.incarnation}

    def _restart(self, life: Life) -> None:
        """Start anew without counting it as a failure: by its own orderly end, or by force when that takes too long."""
        life.history = restart.History()
        if not life.alive:
            if life.retry_timer:
                self.cancel(life.retry_timer)
            self._start(life)
            return
        life.planned = True
        self._end_one(life)

    def _may_ask(self, ask: Ask, source: str) -> bool:
        """A cell may have itself started anew: only a new life may open what root alone may open."""
        itself = ask.verb == "cell.restart" and ask.args.get("name") == source
        return itself or super()._may_ask(ask, source)

    @answers("reload")
    def reload(self, args: dict[str, Any], by: str) -> Any:
        """Read the settings again. Cells with a receptor for ``Reload`` act on them; those that were born with what has
        changed are started anew, one after the other. Says which, and what only a new start of the node takes in."""
        if self.anatomy.read_settings is None:
            raise Refused("this node was started without a way to read its settings again", remedy="restart it")
        before = self.settings
        try:
            self.settings = self.anatomy.read_settings()
        except Exception as exc:
            raise Refused(f"the settings are wrong, those in force stay: {str(exc)[:1000]}") from exc
        log.configure(getattr(self.settings, "log_level", "info"))
        self._policy = restart.policy_of(self.settings.supervisor)
        off = self.settings.supervisor.off
        concerned = renewal.concerned([life.spec for life in self.lives.values()], before, self.settings)
        again = [name for name in concerned if name not in off and self.lives[name].alive]
        for life in self.lives.values():
            if life.name in off and life.state is not CellState.OFF:
                self._switch_off(life)
            elif life.name not in off and life.state is CellState.OFF and not life.alive:
                self._start(life)
            elif life.up and life.name not in again:
                self._send_to(life.name, Reload())
        only_node = renewal.changed(self.anatomy.born_with, before, self.settings)
        self.log.info("reload", by=by, restarting=again, needs_restart_of_node=only_node)
        self._renewal.add(again)
        self._renew()
        return {"reloaded": True, "restarting": again, "needs_restart_of_node": only_node}

    def _renew(self) -> None:
        """Start anew the next cell whose settings have changed, once the one before it stands again."""
        current = self.lives.get(self._renewal.busy_with())
        settled = current is None or (current.up and not current.planned and current.state is not CellState.STARTING)
        limit_s = self.settings.supervisor.start_limit_s + _STOP_ONE_S
        name = self._renewal.next(time.monotonic(), limit_s, settled=settled)
        if name and not self._stopping and name not in self.settings.supervisor.off:
            self._restart(self.lives[name])

    @staticmethod
    def _is_off(life: Life) -> None:
        life.become(CellState.OFF, "switched off in the settings", _SWITCH_ON.format(life.name))

    def _switch_off(self, life: Life) -> None:
        life.off_next = True
        self._end_one(life)

    # --- the end -------------------------------------------------------------------------------------------------

    def _end_one(self, life: Life) -> None:
        incarnation = life.incarnation
        if life.up:
            self._send_to(life.name, Stop())
            self.after(_STOP_ONE_S, self._end_by_force, life, incarnation)
        else:
            self._end_by_force(life, incarnation)

    def _end_by_force(self, life: Life, incarnation: int) -> None:
        if life.alive and life.incarnation == incarnation:
            self._kill(life, "did not end in time when asked to")

    def _stop_all(self) -> None:
        if self._stopping:
            return
        self.log.info("stopping")
        self._stopping = True
        self.after(_STOP_ALL_S, self._stop_now)
        self._stop_next()

    def _stop_next(self) -> None:
        """One after another, the last started first."""
        living = [life for life in reversed(list(self.lives.values())) if life.alive]
        if not living:
            self.after(_RETIREMENT_S, self._retire)
        elif not living[0].planned:
            living[0].planned = True
            self._end_one(living[0])

    def _stop_now(self) -> None:
        for life in self.lives.values():
            if life.alive:
                life.signal(signal.SIGKILL)
        self._retire()

    def _retire(self) -> None:
        self.log.info("stopped")
        Nursery.seed = None
        os._exit(0)

    def _tell_supervisor(self, message: Message) -> None:
        """There is nobody above."""
