"""Permeability — the policy cell: posture, tolerance, and the one gate that every verdict passes.

Sensors propose, people wish, this cell decides (``gate.py``), writes the decision down (``journal_line.py``) and tells
the cells that hold the kernel. The kernel keeps what it was told whatever happens here: after a start this cell first
recalls what was in force and only then sends the whole desired state. It needs no privileges.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from actors.core.capability import service_identity
from actors.core.cell import Cell, Deferred, answers, receives
from actors.core.errors import Refused, TegumentarError, ToolFailed
from actors.core.messages import (
    BATCH_LIMIT,
    Action,
    Answer,
    CellReport,
    CellState,
    Enforce,
    EnforceAll,
    Entry,
    Order,
    Posture,
    PostureChanged,
    Proved,
    Recorded,
    ReflexEvent,
    ReflexEvents,
    Release,
    SetTolerance,
    Verdict,
)
from actors.hypodermis import explain, ledger, posture, wishes
from actors.hypodermis.gate import Gate, GateSettings, Wish
from actors.hypodermis.guard import AutoimmuneGuard
from actors.hypodermis.hostfacts import HostSource, LinuxHost
from actors.hypodermis.journal_line import MEMORY, JournalLine
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.orders import OrdersDirectory, order_of
from actors.hypodermis.posture import AutomaticBounds, PostureState
from actors.hypodermis.recall import GRACE_S, Recall
from actors.hypodermis.subjects import Prefix, of_source, parse_address, parse_prefix
from actors.hypodermis.tolerance import SafetySet, Tolerance, Toleration

#: The cells that hold the kernel, and the name of their layer in a proof.
RUNGS = {"reflex_arc": "xdp", "keratinocyte": "nft"}
#: Facts of the host change seldom; who administers it changes with every login.
FACTS_FOR_S, SESSIONS_FOR_S = 30.0, 1.0
PROVEN_AT_ONCE = 20
EXPLAIN_LIMIT_S = 1.0
#: At most 20 messages a second towards the enforcing cells.
SEND_EVERY_S = 0.05
#: Orders that one slice of a whole desired state makes: a few milliseconds.
SLICE = 5_000
#: The same refusal or note of the same source is journaled once in so many seconds; and how many of them are known.
SAY_AGAIN_S, SAID_LIMIT = 60.0, 10_000
PAGE_LIMIT = 1_000


class Permeability(Cell):
    """The gate and what it has decided."""

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
        policy, now = self.settings.permeability, time.time()
        self.host: HostSource = self.make_host()
        self.ledger = Ledger(self.settings.reflex.max_bans)
        self.tolerance = Tolerance()
        self.posture = PostureState.initial(Posture(policy.posture), now)
        self.guard = AutoimmuneGuard(policy.autoimmune_bans, policy.autoimmune_window_s, policy.autoimmune_rest_s)
        limits = GateSettings(base_s=policy.ban_seconds, longest_s=policy.ban_seconds_max)
        self.gate = Gate(limits, self.ledger, self.tolerance, self.guard)
        self.bounds = AutomaticBounds()
        self.journal = JournalLine(self)
        self.orders = OrdersDirectory(Path(self.settings.run_dir))
        #: Grows with every change and over restarts, so that receivers can tell old from new.
        self.generation = int(now * 1_000_000)
        self._entries_made = 0
        self._changed: dict[Prefix, None] = {}
        self._sent_at = 0.0
        self._send_timer = 0
        self._states: dict[str, CellState] = {}
        self._proved_by: set[str] = set()
        self._posture_proofs: dict[str, bool] = {}
        self._owed: list[tuple[Deferred, list[Prefix], int]] = []
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._problems: dict[str, tuple[str, str]] = {}
        self._facts_at = self._sessions_at = float("-inf")
        self._tolerate_settings(policy.tolerate, now)
        self._look_around()
        self._posture_timer = self._expiry_timer = 0
        self._arm_posture()
        self.recall = Recall(
            self,
            take_posture=self._take_posture,
            take_tolerance=self._take_tolerance,
            take_bans=self._take_bans,
            known=self._tell_everybody,
            done=self._recalled,
        )
        self.recall.begin(memory_expected=MEMORY not in self.settings.supervisor.off, grace_s=self.recall_grace_s)

    # --- what people ask ---------------------------------------------------------------------------------------------

    @answers("posture.get")
    def posture_get(self, args: dict[str, Any], by: str) -> Any:
        """The posture in force, and what will become of it when."""
        return self._posture_shown()

    @answers("posture.set")
    def posture_set(self, args: dict[str, Any], by: str) -> Any:
        """Take a posture; ``for_s`` ends it, ``confirm_within_s`` takes it back unless it is confirmed."""
        wanted = wishes.posture(args.get("posture"))
        for_s, within = wishes.seconds(args, "for_s"), wishes.seconds(args, "confirm_within_s")
        now, automatic = time.time(), by.startswith("cell ")
        if automatic:
            for_s = self.bounds.admit(self.posture, wanted, for_s, now)
        reason = wishes.sentence(args, "reason")
        state = posture.change(
            self.posture, wanted, now, for_s=for_s, confirm_within_s=within, reason=reason, by=by, automatic=automatic
        )
        return self._answer_posture(state, by)

    @answers("posture.confirm")
    def posture_confirm(self, args: dict[str, Any], by: str) -> Any:
        """Keep the posture that waits for confirmation."""
        return self._answer_posture(posture.confirm(self.posture, by), by)

    @answers("blocks.list")
    def blocks_list(self, args: dict[str, Any], by: str) -> Any:
        """Newest first. ``after``: ``next`` of the page before, or its last subject."""
        limit = wishes.number(args, "limit", 200, PAGE_LIMIT)
        after = args.get("after") or ""
        if not isinstance(after, str):
            raise Refused("after must be text")
        if after and not after.isdigit():
            after = self.ledger.cursor_of(parse_prefix(after)) or "0"
        self._expire()
        bans, following = self.ledger.page(limit, after)
        now, rungs = time.time(), self._rungs()
        rows = wishes.fitting([ledger.row(ban, now, rungs) for ban in bans])
        if len(rows) < len(bans):
            following = str(bans[len(rows) - 1].serial)
        return {"blocks": rows, "total": len(self.ledger), "next": following}

    @answers("block")
    def block(self, args: dict[str, Any], by: str) -> Any:
        """Ban subjects: all of them or, when one is refused, none."""
        subjects = wishes.subjects(args)
        ttl_s, reason = wishes.seconds(args, "ttl_s"), wishes.sentence(args, "reason")
        self._look_around()
        now = time.time()
        bans: list[Ban] = []
        for subject in subjects:
            wish = Wish(
                subject=subject,
                action=Action.BAN,
                origin="operator",
                reason=reason or "blocked by hand",
                ttl_s=ttl_s,
                by=by or "somebody",
            )
            try:
                bans.append(self.gate.judge(wish, self.posture.posture, now, time.monotonic()))
            except Refused as refused:
                more = "; nothing was changed" if len(subjects) > 1 else ""
                raise Refused(f"{refused}{more}", remedy=refused.remedy) from refused
        placed = [self.ledger.place(ban) for ban in bans]
        self.counters["bans_by_hand"] += len(placed)
        owed = self.defer()
        self._commit([self._ban_entry(ban) for ban in placed], subjects, lambda: self._owe(owed, subjects))
        return owed

    @answers("release")
    def release(self, args: dict[str, Any], by: str) -> Any:
        """Take bans back. One that stands for a whole prefix must be named as such."""
        subjects = wishes.subjects(args)
        results: list[dict[str, Any]] = []
        for subject in subjects:
            note = "" if subject in self.ledger.bans else self._not_banned(subject)
            results.append({"subject": subject.text, "released": not note} | ({"note": note} if note else {}))
        released = [subject for subject in subjects if subject in self.ledger.bans]
        if len(subjects) == 1 and not released and (wider := self.ledger.covering(subjects[0])) is not None:
            raise Refused(
                f"{subjects[0].text} is blocked as part of {wider.subject.text}; nothing was released",
                remedy=f"release {wider.subject.text}, or let the one pass with: tolerate {subjects[0].text}",
            )
        owed = self.defer()
        for subject in released:
            self.ledger.offences.forgive(subject)
        self._release(released, "released by hand", by, then=lambda: owed.reply({"results": results}), tell=subjects)
        return owed

    @answers("tolerate")
    def tolerate(self, args: dict[str, Any], by: str) -> Any:
        """Never block these; ``remove`` takes them off the list. All of them or, when one is refused, none."""
        subjects = wishes.subjects(args)
        for_s, comment = wishes.seconds(args, "for_s"), wishes.sentence(args, "comment")
        now, remove = time.time(), bool(args.get("remove"))
        until = now + for_s if for_s else 0.0
        before = {subject: self.tolerance.get(subject) for subject in subjects}
        try:
            for subject in subjects:
                if remove:
                    self.tolerance.remove(subject)
                else:
                    self.tolerance.add(Toleration(subject, comment, by, now, until))
        except Refused:
            self._put_back(before)
            raise
        entries = [self._tolerance_entry(subject, removed=remove) for subject in subjects]
        freed = [] if remove else [ban for subject in subjects for ban in self.ledger.bans.within(subject)]
        owed = self.defer()
        results = [{"subject": s.text, "until_unix_s": until} for s in subjects]

        answer = {"results": results, "released": [ban.text for ban in freed[:BATCH_LIMIT]]}
        self.journal.write(entries, self._tell_tolerance)
        self._release(freed, "tolerated from now on", by, then=lambda: owed.reply(answer))
        self._arm_expiry()
        return owed

    @answers("tolerance.list")
    def tolerance_list(self, args: dict[str, Any], by: str) -> Any:
        """The operators' list, and beside it what the node keeps itself from banning."""
        self._look_around()
        self._expire()
        return {
            "tolerance": [
                {
                    "subject": entry.prefix.text,
                    "comment": entry.comment,
                    "origin": entry.origin,
                    "by": entry.by,
                    "since_unix_s": entry.since_unix_s,
                    "until_unix_s": entry.until_unix_s,
                }
                for entry in sorted(self.tolerance, key=lambda entry: entry.prefix)
            ],
            "never_banned": [{"subject": host.text, "why": what} for host, what in self.gate.safety],
        }

    @answers("why")
    def why(self, args: dict[str, Any], by: str) -> Any:
        """Everything that is known of one address, in sentences, from every cell that answers within a second."""
        address = parse_prefix(args.get("address") or "")
        owed = self.defer()
        told: dict[str, Answer] = {}
        asked: dict[str, dict[str, Any]] = {part: {"address": address.text} for part in explain.PARTS}
        asked["history"] = {"subject": self._named(address).text, "limit": 20}

        def answered(part: str, answer: Answer) -> None:
            told[part] = answer
            if len(told) == len(explain.PARTS):
                owed.reply(self._account(address, told))

        for part, verb in explain.PARTS.items():
            row = self.peers.answering(verb)
            if row is None or not row.up:  # asking would only cost the second
                told[part] = Answer(id=0, code="unavailable", problem="nobody is there to answer")
        if len(told) == len(explain.PARTS):
            return self._account(address, told)
        for part in explain.PARTS.keys() - told.keys():
            self.ask(explain.PARTS[part], asked[part], partial(answered, part), timeout_s=EXPLAIN_LIMIT_S)
        return owed

    # --- what sensors say --------------------------------------------------------------------------------------------

    @receives(Verdict)
    def on_verdict(self, message: Verdict, source: str) -> None:
        self.counters["verdicts"] += 1
        try:
            subject = parse_prefix(message.subject)
        except Refused:
            self.counters["bad_input"] += 1
            return
        self._consider(
            Wish(
                subject=subject,
                action=message.action,
                origin=source,  # who really sent it, whatever it calls itself
                reason=message.reason,
                evidence=message.evidence,
                score=message.score,
                ttl_s=message.ttl_s,
            )
        )

    @receives(ReflexEvents)
    def on_reflex_events(self, message: ReflexEvents, source: str) -> None:
        self.counters["reflex_events_lost"] += message.lost
        for event in message.events:
            try:
                subject = parse_prefix(event.subject)
            except Refused:
                self.counters["bad_input"] += 1
                continue
            self._reflex(subject, event, source)

    def _reflex(self, subject: Prefix, event: ReflexEvent, source: str) -> None:
        """The kernel has banned somebody already, or would have: adopt that, or take it back."""
        standing = self.ledger.get(subject)
        if standing is not None:
            standing.packets = max(standing.packets, event.packets)
        exploring = self.posture.posture is Posture.EXPLORE
        if not event.banned and not exploring:
            return
        port = f" to port {event.dest_port}" if event.dest_port else ""
        wish = Wish(
            subject=subject,
            action=Action.BAN if event.banned else Action.OBSERVE,
            origin=source,
            reason=f"kernel reflex {event.reflex}",
            evidence=f"{event.packets} packets{port} when the reflex fired",
            reflex=event.reflex,
            packets=event.packets,
            enforced_until=event.until_unix_s,
        )
        ban = self._consider(wish)
        if event.banned and (ban is None or not ban.enforced) and not self.guard.resting(time.monotonic()):
            self.counters["kernel_bans_taken_back"] += 1
            self._changed[subject] = None
            self._send_soon()

    def _consider(self, wish: Wish) -> Ban | None:
        """Judge an automatic wish. Returns the ban that stands then; None when it was refused."""
        self._look_around()
        now = time.time()
        was_resting = self.guard.resting(time.monotonic())
        standing = self.ledger.get(wish.subject)
        try:
            ban = self.gate.judge(wish, self.posture.posture, now, time.monotonic())
        except Refused as refused:
            self.counters["verdicts_refused"] += 1
            if not was_resting and self.guard.resting(time.monotonic()):
                self._alarm()
            self._note(wish, str(refused), now)
            return None
        known = standing is not None and standing.in_force(now)
        if known and standing is not None and standing.enforced == ban.enforced and _same_end(standing, ban):
            return standing
        placed = self.ledger.place(ban)
        self.counters["bans_automatic" if placed.enforced else "would_have_banned"] += not known
        self._commit([self._ban_entry(placed)], [placed.subject])
        if placed.enforced:
            self._escalate(placed)
        return placed

    def _escalate(self, ban: Ban) -> None:
        """Enough neighbours were banned: take their prefix, unless the node itself lives there."""
        neighbourhood = self.ledger.crowded(ban.subject)
        if neighbourhood is None or self.gate.safety.on_link(neighbourhood):
            return
        self.counters["escalations"] += 1
        self._consider(
            Wish(
                subject=neighbourhood,
                action=Action.BAN,
                origin=self.name,
                reason=f"{ledger.NEIGHBOURS} or more neighbours were banned",
                evidence=f"the last of them was {ban.subject.text}: {ban.reason}",
            )
        )

    # --- what the kernel says ----------------------------------------------------------------------------------------

    @receives(Proved)
    def on_proved(self, message: Proved, source: str) -> None:
        if RUNGS.get(source) != message.rung:
            self.counters["bad_input"] += 1
            return
        now = time.time()
        self._proved_by.add(message.rung)
        for proof in message.proofs:
            if proof.subject.startswith("posture:"):
                if proof.subject == f"posture:{self.posture.posture}":
                    self._posture_proofs[message.rung] = proof.holds
                continue
            try:
                known = self.ledger.prove(message.rung, parse_prefix(proof.subject), proof.holds, proof.detail, now)
            except Refused:
                known = False
            if known and not proof.holds:
                self.counters["proofs_missing"] += 1
        self._pay()

    @receives(Recorded)
    def on_recorded(self, message: Recorded, source: str) -> None:
        if source == MEMORY:
            self.journal.recorded(message)

    @receives(CellReport)
    def on_cell_report(self, message: CellReport, source: str) -> None:
        if source in RUNGS and source == message.cell:
            self._states[source] = message.state

    def on_peer_up(self, name: str) -> None:
        if name == MEMORY:
            self.journal.up()
        elif name in RUNGS:
            self.ledger.unprove(RUNGS[name])
            self._states.pop(name, None)
        if self.recall.known:
            self._tell_policy(name)
            self._tell_bans(name)

    def on_peer_down(self, name: str) -> None:
        if name == MEMORY:
            self.journal.down()
        elif name in RUNGS:
            self._proved_by.discard(RUNGS[name])
            self._posture_proofs.pop(RUNGS[name], None)
            self._pay()

    # --- telling the enforcing cells ---------------------------------------------------------------------------------

    def _commit(self, entries: list[Entry], subjects: list[Prefix], then: Any = None) -> None:
        """Write down, then enforce, then go on."""

        def written() -> None:
            self._changed.update(dict.fromkeys(subjects))
            if then is None:
                self._send_soon()
            else:  # somebody waits for it
                self._send_changes()
                then()

        self.journal.write(entries, written)
        self._arm_expiry()

    def _send_soon(self) -> None:
        """A lone change goes at once, a storm of them twenty times a second."""
        if self._send_timer:
            return
        wait = self._sent_at + SEND_EVERY_S - time.monotonic()
        if wait <= 0:
            self._send_changes()
        else:
            self._send_timer = self.after(wait, self._send_changes)

    def _send_changes(self) -> None:
        self._send_timer = 0
        batch = list(self._changed)[:BATCH_LIMIT]
        for subject in batch:
            del self._changed[subject]
        bans = [(subject, self.ledger.get(subject)) for subject in batch]
        orders = [order_of(ban) for _, ban in bans if ban is not None and ban.enforced]
        gone = [subject.text for subject, ban in bans if ban is None or not ban.enforced]
        self.generation += 1
        if orders:
            self.publish(Enforce(orders=orders, generation=self.generation))
        if gone:
            self.publish(Release(subjects=gone, generation=self.generation))
        self._sent_at = time.monotonic()
        self.gauges["bans"] = len(self.ledger)
        if self._changed:
            self._send_timer = self.after(SEND_EVERY_S / 5, self._send_changes)

    def _release(
        self, subjects: Iterable[Prefix], reason: str, by: str, *, then: Any = None, tell: Iterable[Prefix] = ()
    ) -> None:
        """Take bans out of the ledger and the kernel; ``tell``: subjects to take out of the kernel in any case."""
        gone = [subject for subject in subjects if self.ledger.release(subject) is not None]
        self.counters["releases"] += len(gone)
        body = {"reason": reason, "by": by}
        self._commit([self._entry("release", subject, body) for subject in gone], [*gone, *tell], then)

    def _tell_everybody(self) -> None:
        """Posture and tolerance are known: every cell that listens hears of them."""
        for row in self.peers:
            if row.up:
                self._tell_policy(row.cell)
                self._tell_bans(row.cell)

    def _recalled(self) -> None:
        self.log.info(
            "recalled", bans=len(self.ledger), tolerated=len(self.tolerance), posture=self.posture.posture.value
        )
        self.gauges["bans"] = len(self.ledger)
        self._arm_expiry()
        for name in RUNGS:
            if self.peers.living(name) is not None:
                self._tell_bans(name)

    def _tell_policy(self, name: str) -> None:
        if self._listens(name, PostureChanged):
            self.tell(name, self._posture_message())
        if self._listens(name, SetTolerance):
            self.tell(name, self._tolerance_message())

    def _tell_bans(self, name: str) -> None:
        """The whole desired state once it is recalled; before that only additions, so that nothing is released."""
        if not self._listens(name, EnforceAll):
            return
        if self.recall.done:
            self.generation += 1
            self._write_orders(name, self.generation, list(self.ledger.enforced()), [])
        else:
            self._changed.update(dict.fromkeys(ban.subject for ban in self.ledger.enforced()))
            if self._changed:
                self._send_soon()

    def _write_orders(self, name: str, generation: int, left: list[Ban], orders: list[Order]) -> None:
        """A slice at a time: the cell stays able to answer while a hundred thousand orders are made."""
        orders.extend(order_of(ban) for ban in left[:SLICE] if self.ledger.get(ban.subject) is ban)
        if len(left) > SLICE:
            self.after(0, self._write_orders, name, generation, left[SLICE:], orders)
            return
        try:
            path, count = self.orders.write(orders, generation)
        except ToolFailed as failed:
            self._problem("orders", f"{failed}; {name} keeps what the kernel holds", failed.remedy)
            return
        self._problem("orders")
        self.tell(name, EnforceAll(path=str(path), count=count, generation=generation))

    def _tell_tolerance(self) -> None:
        self.generation += 1
        self.gauges["tolerated"] = len(self.tolerance)
        self.publish(self._tolerance_message())

    def _tolerance_message(self) -> SetTolerance:
        prefixes = [entry.prefix.text for entry in self.tolerance if entry.in_force(time.time())]
        return SetTolerance(prefixes=prefixes, generation=self.generation)

    def _posture_message(self) -> PostureChanged:
        state = self.posture
        return PostureChanged(
            posture=state.posture,
            previous=state.previous,
            reason=state.reason[:200],
            by=state.by[:200],
            since_unix_s=state.since_unix_s,
            until_unix_s=state.until_unix_s,
            confirm_by_unix_s=state.confirm_by_unix_s,
        )

    # --- posture -----------------------------------------------------------------------------------------------------

    def _posture_shown(self) -> dict[str, Any]:
        shown = posture.to_body(self.posture) | {"deadline_unix_s": self.posture.deadline}
        return shown | {"proven": self._posture_proven(), "summary": self.posture.sentence(time.time())}

    def _answer_posture(self, state: PostureState, by: str) -> Deferred:
        owed = self.defer()
        self._become_posture(state, lambda: self._owe(owed, []))
        return owed

    def _become_posture(self, state: PostureState, then: Any = None) -> None:
        """Write down, then tell everybody; the end of this posture is armed at once."""
        if state.posture is not self.posture.posture:
            self._posture_proofs.clear()
        self.posture = state
        self._arm_posture()
        self.counters["posture_changes"] += 1

        def written() -> None:
            self.publish(self._posture_message())
            if then is not None:
                then()

        self.journal.write([self._entry("posture", None, posture.to_body(state))], written)

    def _arm_posture(self) -> None:
        self.cancel(self._posture_timer)
        if self.posture.deadline:
            wait = max(0.0, self.posture.deadline - time.time())
            self._posture_timer = self.after(min(wait, posture.LONGEST_S), self._lapse, self.posture)

    def _lapse(self, state: PostureState) -> None:
        if self.posture is state:
            self.log.warning("posture_returns", posture=state.return_to.value, before=state.posture.value)
            self._become_posture(posture.lapse(state, time.time()))

    # --- memory ------------------------------------------------------------------------------------------------------

    def _take_posture(self, body: Any) -> None:
        if not isinstance(body, dict):
            return
        try:
            state = posture.from_body(body)
        except ValueError as exc:
            self.counters["bad_memories"] += 1
            self.log.warning("bad_memory", problem=str(exc))
            return
        if self.posture.by != "settings":
            return  # somebody has set one since the start
        self.posture = state
        if posture.due(state, time.time()):
            self._become_posture(posture.lapse(state, time.time()))
        else:
            self._arm_posture()

    def _take_tolerance(self, rows: Any) -> None:
        for body in rows:
            try:
                prefix = parse_prefix(body["subject"])
                if self.tolerance.get(prefix) is None:
                    self.tolerance.add(wishes.toleration(prefix, body))
            except (TegumentarError, KeyError, TypeError, ValueError):
                self.counters["bad_memories"] += 1

    def _take_bans(self, rows: Any) -> None:
        """What was banned stays banned, unless it would now be refused: addresses of the node may have changed."""
        self._look_around()
        now = time.time()
        for body in rows:
            try:
                ban = ledger.from_body(parse_prefix(body["subject"]), body)
            except (TegumentarError, KeyError, TypeError, ValueError):
                self.counters["bad_memories"] += 1
                continue
            if ban.subject in self.ledger.bans or not ban.in_force(now):
                continue
            if self.ledger.full or self.gate.objection(ban.subject, now)[0]:
                self.counters["bans_not_recalled"] += 1
                continue
            self.ledger.place(ban)
            if not ban.by:
                self.ledger.offences.set(ban.subject, ban.repeats + 1, ban.since_unix_s)

    def _entry(self, kind: str, subject: Prefix | None, body: dict[str, Any]) -> Entry:
        self._entries_made += 1
        text = subject.text if subject is not None else ""
        key = f"{self.name}:{os.getpid()}:{self.generation}:{self._entries_made}"
        return Entry(key=key, kind=kind, at_unix_s=time.time(), subject=text, body=body)

    def _ban_entry(self, ban: Ban) -> Entry:
        kind = "verdict" if ban.action is Action.OBSERVE else "ban"
        return self._entry(kind, ban.subject, ledger.to_body(ban))

    def _tolerance_entry(self, subject: Prefix, *, removed: bool) -> Entry:
        entry = self.tolerance.get(subject)
        if removed or entry is None:
            return self._entry("tolerance", subject, {"removed": True})
        body = {"comment": entry.comment, "by": entry.by, "since_unix_s": entry.since_unix_s}
        return self._entry("tolerance", subject, body | {"until_unix_s": entry.until_unix_s})

    def _note(self, wish: Wish, refusal: str, now: float) -> None:
        """Journal a verdict that was not carried out, the same one once a minute."""
        name = (wish.subject.text, wish.origin)
        last = self._said.get(name)
        if last is not None and now - last < SAY_AGAIN_S:
            return
        self._said[name] = now
        self._said.move_to_end(name)
        if len(self._said) > SAID_LIMIT:
            self._said.popitem(last=False)
        body = {"refused": refusal, "origin": wish.origin, "reason": wish.reason, "evidence": wish.evidence}
        self.journal.write([self._entry("verdict", wish.subject, body)])

    # --- small things ------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Who are we, and who administers us, as of now."""
        now = time.monotonic()
        if now - self._facts_at >= FACTS_FOR_S:
            self._facts = self.host.facts()
            self._facts_at, self._sessions_at = now, float("-inf")
            if self._facts.unread:
                self._problem("facts", "; ".join(self._facts.unread), "run `python run.py doctor`")
            else:
                self._problem("facts")
        if now - self._sessions_at >= SESSIONS_FOR_S:
            sessions = self.host.admin_sessions(self.settings.permeability.management_ports)
            self.gate.safety = SafetySet(self._facts, sessions)
            self._sessions_at = now

    def _account(self, address: Prefix, told: dict[str, Answer]) -> dict[str, Any]:
        self._look_around()
        self._expire()
        now = time.time()
        return explain.account(
            address,
            ban=self.ledger.covering(address),
            spared=self.tolerance.covering(address, now),
            safety=self.gate.safety,
            objection=self.gate.objection(address, now)[0],
            posture=self.posture,
            rungs=self._rungs(),
            told=told,
            now=now,
        )

    def _named(self, address: Prefix) -> Prefix:
        """By which name the journal knows this address."""
        ban = self.ledger.covering(address)
        if ban is not None:
            return ban.subject
        wide = of_source(address)
        return wide if address.version == 6 and not self.gate.safety.on_link(wide) else address

    def _not_banned(self, subject: Prefix) -> str:
        wider = self.ledger.covering(subject)
        return f"it is blocked as part of {wider.subject.text}" if wider is not None else "it was not blocked"

    def _put_back(self, before: dict[Prefix, Toleration | None]) -> None:
        for subject, entry in before.items():
            if entry is not None:
                self.tolerance.add(entry)
            elif self.tolerance.get(subject) is not None:
                self.tolerance.remove(subject)

    def _tolerate_settings(self, texts: Iterable[str], now: float) -> None:
        for text in texts:
            try:
                self.tolerance.add(Toleration(parse_prefix(text), "", "settings", now, origin="settings"))
            except Refused as refused:
                self._problem("settings", f"permeability.tolerate: {refused}; it is not tolerated", refused.remedy)

    def _rungs(self) -> tuple[str, ...]:
        """The layers that are there to prove a ban."""
        return tuple(rung for cell, rung in RUNGS.items() if self._stands(cell, rung))

    def _stands(self, cell: str, rung: str) -> bool:
        state = self._states.get(cell, CellState.HEALTHY)
        if self.peers.living(cell) is None or state in (CellState.OFF, CellState.DOWN):
            return False
        return state is CellState.HEALTHY or rung in self._proved_by

    def _listens(self, name: str, kind: type) -> bool:
        row = self.peers.living(name)
        return row is not None and kind.__name__ in row.receives

    def _owe(self, owed: Deferred, subjects: list[Prefix]) -> None:
        """Answer a wish once the kernel has proved it; of many bans, or without a layer that could, answer now.

        No subjects: the wish was a posture."""
        if len(subjects) > PROVEN_AT_ONCE or not self._rungs():
            owed.reply(self._done(subjects))
            return
        self._owed.append((owed, subjects, self.after(self.proof_patience_s, self._pay, owed)))

    def _pay(self, overdue: Deferred | None = None) -> None:
        """Answer those whose bans are all proved, and the one whose time is over."""
        rungs, left = self._rungs(), []
        for owed, subjects, timer in self._owed:
            bans = [self.ledger.get(subject) for subject in subjects]
            proved = all(b is None or all(r in b.proofs and b.proofs[r].holds for r in rungs) for b in bans)
            if owed is overdue or (proved if subjects else self._posture_proven()):
                self.cancel(timer)
                owed.reply(self._done(subjects))
            else:
                left.append((owed, subjects, timer))
        self._owed = left

    def _done(self, subjects: list[Prefix]) -> dict[str, Any]:
        return self._blocked(subjects) if subjects else self._posture_shown()

    def _posture_proven(self) -> bool:
        """The filter says that it stands at this posture. The kernel program has no proof of its own to give."""
        return self._posture_proofs.get("nft", False) if "nft" in self._rungs() else bool(self._rungs())

    def _blocked(self, subjects: list[Prefix]) -> dict[str, Any]:
        now, rungs = time.time(), self._rungs()
        bans = [ban for subject in subjects if (ban := self.ledger.get(subject)) is not None]
        if len(bans) > PROVEN_AT_ONCE:  # the full rows of many would outgrow the message
            brief = [{"subject": ban.subject.text, "until_unix_s": ban.until_unix_s} for ban in bans]
            return {"results": brief, "total": len(self.ledger)}
        results = [ledger.row(ban, now, rungs) for ban in bans]
        if not rungs:
            results = [result | {"note": "no layer of the kernel is there to enforce it yet"} for result in results]
        elif self.posture.posture is Posture.EXPLORE:
            results = [result | {"note": "the posture explore only observes"} for result in results]
        return {"results": results, "total": len(self.ledger)}

    def _expire(self) -> None:
        """Ends of bans and tolerations. The kernel forgets bans by itself; tolerance has to be told."""
        now = time.time()
        self.counters["bans_expired"] += len(self.ledger.expire(now))
        self.gauges["bans"] = len(self.ledger)
        if self.tolerance.expire(now):
            self._tell_tolerance()
        self._arm_expiry()

    def _arm_expiry(self) -> None:
        self.cancel(self._expiry_timer)
        ends = [end for end in (self.ledger.next_end(), self.tolerance.next_end()) if end]
        if ends:
            self._expiry_timer = self.after(max(1.0, min(ends) - time.time()), self._expire)

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


def _same_end(standing: Ban, ban: Ban) -> bool:
    """The renewal changes the end by less than a second, so that nobody needs to be told."""
    if not standing.until_unix_s:
        return True
    return bool(ban.until_unix_s) and ban.until_unix_s < standing.until_unix_s + 1.0


__all__ = ["Permeability", "parse_address"]
