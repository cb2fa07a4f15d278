"""Permeability — the policy cell: posture, tolerance, and the one gate that every verdict passes.

Sensors propose, people wish, this cell decides (``gate.py``), writes the decision down (``journal_line.py``) and tells
the cells that hold the kernel. The kernel keeps what it was told whatever happens here: after a start this cell first
recalls what was in force and only then sends the whole desired state. It needs no privileges.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from actors.core.capability import service_identity
from actors.core.cell import Cell, Deferred, answers, receives
from actors.core.errors import Refused
from actors.core.messages import (
    CellReport,
    Entry,
    HostilePayload,
    Posture,
    Proved,
    Recorded,
    ReflexEvents,
    Verdict,
)
from actors.hypodermis import posture, wishes
from actors.hypodermis.decisions import Decisions
from actors.hypodermis.diary import Diary
from actors.hypodermis.gate import Gate, GateSettings
from actors.hypodermis.guard import AutoimmuneGuard
from actors.hypodermis.herald import Herald
from actors.hypodermis.hostfacts import HostSource, LinuxHost
from actors.hypodermis.inquiry import Inquiry
from actors.hypodermis.journal_line import MEMORY, JournalLine
from actors.hypodermis.ledger import Ledger
from actors.hypodermis.orders import OrdersDirectory
from actors.hypodermis.people import People
from actors.hypodermis.posture import PostureState
from actors.hypodermis.posture_keeper import PostureKeeper
from actors.hypodermis.recall import GRACE_S, Recall
from actors.hypodermis.remembered import Remembered
from actors.hypodermis.rewrite import Rewrite
from actors.hypodermis.subjects import parse_prefix
from actors.hypodermis.surroundings import Surroundings
from actors.hypodermis.tolerance import Tolerance, Toleration
from actors.hypodermis.vaccines import Vaccines
from actors.hypodermis.verdicts import Verdicts
from actors.hypodermis.witness import RUNGS, Witness

PAGE_LIMIT = 1_000


class Permeability(Cell):
    """The gate and what it has decided."""

    section = "permeability"
    make_host: Callable[[], HostSource] = LinuxHost
    recall_grace_s = GRACE_S
    proof_patience_s = 0.5  #: a ban by a person is answered when the kernel has proved it, or after so long

    def before_drop(self) -> None:
        identity = service_identity(self.settings.user)
        try:
            OrdersDirectory(Path(self.settings.run_dir)).prepare(identity.uid, identity.gid)
        except OSError as exc:
            self.log.warning("orders_directory", problem=exc.strerror)

    def on_start(self) -> None:
        policy = self.settings.permeability
        self._problems: dict[str, tuple[str, str]] = {}
        self._make_parts()
        self._tolerate_settings(policy.tolerate, time.time())
        self._look_around()
        self.recall = Recall(
            self,
            take_posture=self.posture.recall,
            take_tolerance=self.remembered.tolerance,
            take_bans=self.remembered.bans,
            known=self._tell_everybody,
            done=self._recalled,
        )
        memory_expected = MEMORY not in self.settings.supervisor.off
        self.recall.begin(memory_expected=memory_expected, grace_s=self.recall_grace_s)
        self.vaccines.recall(memory_expected=memory_expected)
        self.after(self.recall_grace_s if memory_expected else 0, self.remembered.all_is_known)

    def _make_parts(self) -> None:
        """What judges, what is known, what writes it down and tells it, and who speaks for whom."""
        policy = self.settings.permeability
        self.surroundings = Surroundings(self.make_host(), policy.management_ports)
        self.ledger = Ledger(self.settings.reflex.max_bans)
        self.tolerance = Tolerance()
        self.guard = AutoimmuneGuard(policy.autoimmune_bans, policy.autoimmune_window_s, policy.autoimmune_rest_s)
        limits = GateSettings(base_s=policy.ban_seconds, longest_s=policy.ban_seconds_max)
        self.gate = Gate(limits, self.ledger, self.tolerance, self.guard)
        self.journal, self.diary = JournalLine(self), Diary(self.name)
        self.witness = Witness(self, self.ledger, self.proof_patience_s)
        self.herald = Herald(self, self.ledger, self.tolerance, self._problem, self.witness.silent)
        self.posture = PostureKeeper(self, Posture(policy.posture), self.journal, self.diary, self.herald, self.witness)
        self.decisions = Decisions(self, self.ledger, self.tolerance, self.journal, self.diary, self.herald)
        self.verdicts = Verdicts(
            self,
            gate=self.gate,
            ledger=self.ledger,
            guard=self.guard,
            posture=self.posture,
            diary=self.diary,
            herald=self.herald,
            commit=self.decisions.commit,
            alarm=self._alarm,
        )
        self.vaccines = Vaccines(
            self,
            self.guard,
            write=self.journal.write,
            posture=lambda: self.posture.posture,
            alarm=self._alarm,
        )
        self.people = People(
            self,
            gate=self.gate,
            ledger=self.ledger,
            tolerance=self.tolerance,
            journal=self.journal,
            diary=self.diary,
            herald=self.herald,
            witness=self.witness,
            posture=self.posture,
            decisions=self.decisions,
            look_around=self._look_around,
        )
        self.remembered = Remembered(self, self.gate, self.ledger, self.tolerance, self._look_around)
        self.inquiry = Inquiry(
            self,
            gate=self.gate,
            ledger=self.ledger,
            tolerance=self.tolerance,
            posture=self.posture,
            witness=self.witness,
            vaccines=self.vaccines,
            remembered=self.remembered,
            up_to_date=self._up_to_date,
        )
        self.rewrite = Rewrite(self, self.journal, self.diary, self.ledger, self.tolerance, self._other_entries)
        self.journal.named = self.rewrite.heard

    # --- what people ask ---------------------------------------------------------------------------------------------

    @answers("posture.get")
    def posture_get(self, args: dict[str, Any], by: str) -> Any:
        """The posture in force, and what will become of it when."""
        return self.remembered.then(self.defer(), self.posture.shown)

    @answers("posture.set")
    def posture_set(self, args: dict[str, Any], by: str) -> Any:
        """Take a posture; ``for_s`` ends it, ``confirm_within_s`` takes it back unless it is confirmed."""
        return self._answer_posture(self.posture.wished(args, by))

    @answers("posture.confirm")
    def posture_confirm(self, args: dict[str, Any], by: str) -> Any:
        """Keep the posture that waits for confirmation."""
        return self._answer_posture(posture.confirm(self.posture.state, by))

    def _answer_posture(self, state: PostureState) -> Deferred:
        """Take the posture, and answer when the filter has proved it."""
        owed, witness = self.defer(), self.witness
        self.posture.become(state, lambda: witness.owe(owed, witness.posture_proven, self.posture.shown))
        return owed

    @answers("blocks.list")
    def blocks_list(self, args: dict[str, Any], by: str) -> Any:
        """Newest first. ``after``: ``next`` of the page before, or its last subject."""
        limit = wishes.number(args, "limit", 200, PAGE_LIMIT)
        after = args.get("after") or ""
        if not isinstance(after, str):
            raise Refused("after must be text")
        if after and not after.isdigit():
            parse_prefix(after)
        return self.remembered.then(self.defer(), lambda: self.people.page(limit, after))

    @answers("block")
    def block(self, args: dict[str, Any], by: str) -> Any:
        """Ban subjects: all of them or, when one is refused, none."""
        return self.people.block(args, by)

    @answers("release")
    def release(self, args: dict[str, Any], by: str) -> Any:
        """Take bans back. One that stands for a whole prefix must be named as such."""
        return self.people.release(args, by)

    @answers("tolerate")
    def tolerate(self, args: dict[str, Any], by: str) -> Any:
        """Never block these; ``remove`` takes them off the list. All of them or, when one is refused, none."""
        return self.people.tolerate(args, by)

    @answers("tolerance.list")
    def tolerance_list(self, args: dict[str, Any], by: str) -> Any:
        """The operators' list, and beside it what the node keeps itself from banning."""
        return self.people.tolerance_list()

    @answers("why")
    def why(self, args: dict[str, Any], by: str) -> Any:
        """Everything that is known of one address, in sentences, from every cell that answers within a second."""
        return self.inquiry.why(parse_prefix(args.get("address") or ""))

    @answers("vaccines.list")
    def vaccines_list(self, args: dict[str, Any], by: str) -> Any:
        """Payloads that are dropped from everybody, and what the kernel says of each."""
        owed = self.defer()
        self.vaccines.listed(owed)
        return owed

    @answers("vaccines.release")
    def vaccines_release(self, args: dict[str, Any], by: str) -> Any:
        """Take vaccines back by ``names``, all or none."""
        owed = self.defer()
        self.vaccines.release(args.get("names"), by, owed)
        return owed

    # --- what sensors say --------------------------------------------------------------------------------------------

    @receives(Verdict)
    def on_verdict(self, message: Verdict, source: str) -> None:
        self._look_around()
        self.verdicts.proposed(message, source)

    @receives(HostilePayload)
    def on_hostile_payload(self, message: HostilePayload, source: str) -> None:
        self.vaccines.proposed(message, source)

    @receives(ReflexEvents)
    def on_reflex_events(self, message: ReflexEvents, source: str) -> None:
        self._look_around()
        self.counters["reflex_events_lost"] += message.lost
        for event in message.events:
            if event.detail and event.reflex == "vaccine":
                self.vaccines.stopped(event)
            self.verdicts.fired(event, source)

    # --- what the kernel says ----------------------------------------------------------------------------------------

    @receives(Proved)
    def on_proved(self, message: Proved, source: str) -> None:
        self.witness.take(message, source, self.posture.state.posture)

    @receives(Recorded)
    def on_recorded(self, message: Recorded, source: str) -> None:
        self.journal.recorded(message)

    @receives(CellReport)
    def on_cell_report(self, message: CellReport, source: str) -> None:
        self.witness.report(message, source)

    def on_peer_up(self, name: str) -> None:
        if name == MEMORY:
            self.journal.up()
        self.witness.came(name)
        if self.recall.known:
            self._tell(name)
        self.vaccines.tell(name)

    def on_peer_down(self, name: str) -> None:
        if name == MEMORY:
            self.journal.down()
        self.witness.went(name)

    # --- memory ------------------------------------------------------------------------------------------------------

    def _tell_everybody(self) -> None:
        """Posture and tolerance are known: every cell that listens hears of them."""
        for row in self.peers:
            if row.up:
                self._tell(row.cell)

    def _tell(self, name: str) -> None:
        self.herald.posture(self.posture.state, name)
        self.herald.tolerance(name)
        self.herald.bans(name, whole=self.recall.done)

    def _recalled(self) -> None:
        """Everything is remembered: the enforcing cells get the whole desired state."""
        self.log.info(
            "recalled", bans=len(self.ledger), tolerated=len(self.tolerance), posture=self.posture.state.posture.value
        )
        self.gauges["bans"] = len(self.ledger)
        self.decisions.arm()
        for name in RUNGS:
            self.herald.bans(name, whole=True)
        self.remembered.all_is_known()

    def _other_entries(self) -> list[Entry]:
        """What else is in force, for a journal that begins anew."""
        return [self.diary.posture(self.posture.state), *self.vaccines.entries()]

    # --- small things ------------------------------------------------------------------------------------------------

    def _up_to_date(self) -> None:
        self._look_around()
        self.decisions.expire()

    def _look_around(self, fresh: bool = False) -> None:
        """Who are we, and who administers us."""
        self.gate.safety = self.surroundings.safety(fresh=fresh)
        self._problem("facts", "; ".join(self.surroundings.unread), "run `python run.py doctor`")

    def _tolerate_settings(self, texts: Iterable[str], now: float) -> None:
        for text in texts:
            try:
                self.tolerance.add(Toleration(parse_prefix(text), "", "settings", now, origin="settings"))
            except Refused as refused:
                self._problem("settings", f"permeability.tolerate: {refused}; it is not tolerated", refused.remedy)

    def _alarm(self) -> None:
        reason = self.guard.reason(time.monotonic())
        self.counters["autoimmune_alarms"] += 1
        self.log.error("autoimmune", reason=reason, remedy=self.guard.remedy)
        self._problem("guard", reason, self.guard.remedy)
        self.after(self.guard.left_s(time.monotonic()) + 0.01, self._problem, "guard")

    def _problem(self, name: str, reason: str = "", remedy: str = "") -> None:
        """Enter a reason to be degraded, or strike it out."""
        if reason:
            self._problems[name] = (reason, remedy)
        elif self._problems.pop(name, None) is None:
            return
        if self._problems:
            self.degraded(*next(iter(self._problems.values())))
        else:
            self.healthy()
