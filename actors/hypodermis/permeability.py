"""Permeability — the policy cell: posture, tolerance, and the one gate that every verdict passes.

Sensors propose, people wish, this cell decides (``gate.py``), writes the decision down (``journal_line.py``) and tells
the cells that hold the kernel. The kernel keeps what it was told whatever happens here: after a start this cell first
recalls what was in force and only then sends the whole desired state. It needs no privileges.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.core.capability import service_identity
from actors.core.cell import Cell, Deferred, answers, receives
from actors.core.errors import Refused, TegumentarError
from actors.core.messages import (
    BATCH_LIMIT,
    Action,
    Answer,
    CellReport,
    Entry,
    HostilePayload,
    Posture,
    Proved,
    Recorded,
    ReflexEvents,
    Verdict,
)
from actors.hypodermis import explain, ledger, long_lists, posture, wishes
from actors.hypodermis.bulk import BulkBans, ManyWishes
from actors.hypodermis.diary import Diary
from actors.hypodermis.gate import Gate, GateSettings, Wish
from actors.hypodermis.guard import AutoimmuneGuard
from actors.hypodermis.herald import Herald
from actors.hypodermis.hostfacts import HostSource, LinuxHost
from actors.hypodermis.journal_line import MEMORY, JournalLine
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.long_lists import LongLists
from actors.hypodermis.orders import OrdersDirectory
from actors.hypodermis.posture import PostureState
from actors.hypodermis.posture_keeper import PostureKeeper
from actors.hypodermis.recall import GRACE_S, Recall
from actors.hypodermis.rewrite import Rewrite
from actors.hypodermis.subjects import Prefix, of_source, parse_prefix
from actors.hypodermis.surroundings import Surroundings
from actors.hypodermis.tolerance import Tolerance, Toleration
from actors.hypodermis.vaccines import Vaccines
from actors.hypodermis.verdicts import Verdicts
from actors.hypodermis.witness import RUNGS, Witness

#: So many bans in one wish are answered only when the kernel has proved them; their rows fit into one message.
PROVEN_AT_ONCE = 20
#: Subjects of one wish to block; the brief rows of the answer fit into one message.
BULK_LIMIT = 1_000
EXPLAIN_LIMIT_S = 1.0
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
        policy, now = self.settings.permeability, time.time()
        self.ledger = Ledger(self.settings.reflex.max_bans)
        self.tolerance = Tolerance()
        self.guard = AutoimmuneGuard(policy.autoimmune_bans, policy.autoimmune_window_s, policy.autoimmune_rest_s)
        limits = GateSettings(base_s=policy.ban_seconds, longest_s=policy.ban_seconds_max)
        self.gate = Gate(limits, self.ledger, self.tolerance, self.guard)
        self.journal = JournalLine(self)
        self.diary = Diary(self.name)
        self.witness = Witness(self, self.ledger, self.proof_patience_s)
        self.herald = Herald(self, self.ledger, self.tolerance, self._problem, self.witness.silent)
        self.lists = LongLists(self.settings.reflex.max_bans)
        self.bulk = BulkBans(self, self.ledger, self.journal, self.diary, self.herald, self._arm_expiry)
        self.posture = PostureKeeper(self, Posture(policy.posture), self.journal, self.diary, self.herald, self.witness)
        self.verdicts = Verdicts(
            self,
            gate=self.gate,
            ledger=self.ledger,
            guard=self.guard,
            posture=self.posture,
            diary=self.diary,
            herald=self.herald,
            commit=self._commit,
            alarm=self._alarm,
        )
        self.vaccines = Vaccines(
            self,
            self.guard,
            write=self.journal.write,
            posture=lambda: self.posture.state.posture,
            alarm=self._alarm,
        )
        self.rewrite = Rewrite(self, self.journal, self.diary, self.ledger, self.tolerance, self._other_entries)
        self.journal.named = self.rewrite.heard
        self.surroundings = Surroundings(self.make_host(), policy.management_ports)
        self._problems: dict[str, tuple[str, str]] = {}
        self._answers_now = False
        self._waiting: list[tuple[Deferred, Callable[[], Any]]] = []
        self._tolerate_settings(policy.tolerate, now)
        self._look_around()
        self._expiry_timer = 0
        self.recall = Recall(
            self,
            take_posture=self.posture.recall,
            take_tolerance=self._take_tolerance,
            take_bans=self._take_bans,
            known=self._tell_everybody,
            done=self._recalled,
        )
        memory_expected = MEMORY not in self.settings.supervisor.off
        self.recall.begin(memory_expected=memory_expected, grace_s=self.recall_grace_s)
        self.vaccines.recall(memory_expected=memory_expected)
        self.after(self.recall_grace_s if memory_expected else 0, self._answer_the_waiting)

    # --- what people ask ---------------------------------------------------------------------------------------------

    @answers("posture.get")
    def posture_get(self, args: dict[str, Any], by: str) -> Any:
        """The posture in force, and what will become of it when."""
        return self._once_recalled(self.posture.shown)

    @answers("posture.set")
    def posture_set(self, args: dict[str, Any], by: str) -> Any:
        """Take a posture; ``for_s`` ends it, ``confirm_within_s`` takes it back unless it is confirmed."""
        return self._answer_posture(self.posture.wished(args, by))

    @answers("posture.confirm")
    def posture_confirm(self, args: dict[str, Any], by: str) -> Any:
        """Keep the posture that waits for confirmation."""
        return self._answer_posture(posture.confirm(self.posture.state, by))

    @answers("blocks.list")
    def blocks_list(self, args: dict[str, Any], by: str) -> Any:
        """Newest first. ``after``: ``next`` of the page before, or its last subject."""
        limit = wishes.number(args, "limit", 200, PAGE_LIMIT)
        after = args.get("after") or ""
        if not isinstance(after, str):
            raise Refused("after must be text")
        if after and not after.isdigit():
            parse_prefix(after)
        return self._once_recalled(lambda: self._page(limit, after))

    @answers("block")
    def block(self, args: dict[str, Any], by: str) -> Any:
        """Ban subjects: all of them or, when one is refused, none."""
        subjects, part_of = wishes.subjects(args, BULK_LIMIT), long_lists.name_of(args.get("list"))
        wish = Wish(
            subject=subjects[0],
            action=Action.BAN,
            origin="operator",
            reason=wishes.sentence(args, "reason") or "blocked by hand",
            ttl_s=wishes.seconds(args, "ttl_s"),
            by=by or "somebody",
        )
        self._look_around(fresh=part_of not in self.lists)
        if part_of:
            kept = self._keep_part(part_of, subjects)
            if args.get("more"):
                return {"kept": kept}
            subjects = self.lists.take(part_of)
            self.gate.make_sure_of_room(subjects, self.bulk.to_come)
        elif len(subjects) > PROVEN_AT_ONCE:
            self.gate.admit_all(subjects, time.time(), self.bulk.to_come)
        if part_of or len(subjects) > PROVEN_AT_ONCE:
            owed = self.defer()
            brief = partial(self._counted if "rows" in args else self._blocked, subjects)
            self.bulk.take(ManyWishes(wish, subjects, owed, brief))
            return owed
        more = "; nothing was changed" if len(subjects) > 1 else ""

        def judge(subject: Prefix) -> Ban:
            try:
                return self.gate.judge(
                    replace(wish, subject=subject), self.posture.state.posture, time.time(), time.monotonic()
                )
            except Refused as refused:
                raise Refused(f"{refused}{more}", remedy=refused.remedy) from refused

        bans = [judge(subject) for subject in subjects]
        owed = self.defer()
        entries = [self.diary.ban(ban) for ban in self._placed(bans)]
        self._commit(entries, subjects, lambda: self._owe_bans(owed, subjects))
        return owed

    def _keep_part(self, part_of: str, subjects: list[Prefix]) -> int:
        """A part of a long list: judged at once, carried out with the last one."""
        try:
            self.gate.admit_all(subjects, time.time(), self.bulk.to_come)
            return self.lists.add(part_of, subjects, time.monotonic())
        except Refused:
            self.lists.forget(part_of)
            raise

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
        entries = [self.diary.tolerance(subject, self.tolerance.get(subject)) for subject in subjects]
        freed = [] if remove else [ban for subject in subjects for ban in self.ledger.bans.within(subject)]
        owed = self.defer()
        results = [{"subject": s.text, "until_unix_s": until} for s in subjects]

        answer = {"results": results, "released": [ban.text for ban in freed[:BATCH_LIMIT]]}
        self.journal.write(entries, self.herald.tolerance)
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
                self._reply_once_recalled(owed, lambda: self._account(address, told))

        for part, verb in explain.PARTS.items():
            row = self.peers.answering(verb)
            if row is None or not row.up:  # asking would only cost the second
                told[part] = Answer(id=0, code="unavailable", problem="nobody is there to answer")
        if len(told) == len(explain.PARTS):
            self._reply_once_recalled(owed, lambda: self._account(address, told))
        for part in explain.PARTS.keys() - told.keys():
            self.ask(explain.PARTS[part], asked[part], partial(answered, part), timeout_s=EXPLAIN_LIMIT_S)
        return owed

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

    # --- carrying it out ---------------------------------------------------------------------------------------------

    def _commit(self, entries: list[Entry], subjects: list[Prefix], then: Callable[[], object] | None = None) -> None:
        """Write down, then enforce, then go on. Somebody waits when there is a ``then``."""
        if not (entries or subjects or then):
            return

        def written() -> None:
            if subjects:
                self.herald.changed(subjects, at_once=then is not None)
            if then is not None:
                then()

        self.journal.write(entries, written)
        self._arm_expiry()

    def _release(
        self,
        subjects: Iterable[Prefix],
        reason: str,
        by: str,
        *,
        then: Callable[[], object] | None = None,
        tell: Iterable[Prefix] = (),
    ) -> None:
        """Take bans out of the ledger and the kernel; ``tell``: subjects to take out of the kernel in any case."""
        gone = [subject for subject in subjects if self.ledger.release(subject) is not None]
        self.counters["releases"] += len(gone)
        self._commit([self.diary.release(subject, reason, by) for subject in gone], [*gone, *tell], then)

    def _answer_posture(self, state: PostureState) -> Deferred:
        """Take the posture, and answer when the filter has proved it."""
        owed, witness = self.defer(), self.witness
        self.posture.become(state, lambda: witness.owe(owed, witness.posture_proven, self.posture.shown))
        return owed

    def _owe_bans(self, owed: Deferred, subjects: list[Prefix]) -> None:
        self.witness.owe(owed, lambda: self.witness.proven(subjects), lambda: self._blocked(subjects))

    def _placed(self, bans: list[Ban]) -> list[Ban]:
        self.counters["bans_by_hand"] += len(bans)
        return [self.ledger.place(ban) for ban in bans]

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
        self._arm_expiry()
        for name in RUNGS:
            self.herald.bans(name, whole=True)
        self._answer_the_waiting()

    def _other_entries(self) -> list[Entry]:
        """What else is in force, for a journal that begins anew."""
        return [self.diary.posture(self.posture.state), *self.vaccines.entries()]

    def _once_recalled(self, answer: Callable[[], Any]) -> Any:
        """A question about what is in force waits until that is remembered, or given up on."""
        if self._answers_now:
            return answer()
        owed = self.defer()
        self._waiting.append((owed, answer))
        return owed

    def _reply_once_recalled(self, owed: Deferred, answer: Callable[[], Any]) -> None:
        if self._answers_now:
            owed.reply(answer())
        else:
            self._waiting.append((owed, answer))

    def _answer_the_waiting(self) -> None:
        self._answers_now = True
        waiting, self._waiting = self._waiting, []
        for owed, answer in waiting:
            owed.reply(answer())

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

    # --- small things ------------------------------------------------------------------------------------------------

    def _look_around(self, *, fresh: bool = False) -> None:
        """Who are we, and who administers us."""
        self.gate.safety = self.surroundings.safety(fresh=fresh)
        self._problem("facts", "; ".join(self.surroundings.unread), "run `python run.py doctor`")

    def _page(self, limit: int, after: str) -> dict[str, Any]:
        if after and not after.isdigit():
            after = self.ledger.cursor_of(parse_prefix(after)) or "0"
        self._expire()
        bans, following = self.ledger.page(limit, after)
        now, rungs = time.time(), self.witness.rungs()
        rows = wishes.fitting([ledger.row(ban, now, rungs) for ban in bans])
        if len(rows) < len(bans):
            following = str(bans[len(rows) - 1].serial)
        return {"blocks": rows, "total": len(self.ledger), "next": following}

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
            posture=self.posture.state,
            rungs=self.witness.rungs(),
            told=told,
            stopped=self.vaccines.account(address.text),
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

    def _blocked(self, subjects: list[Prefix]) -> dict[str, Any]:
        now, rungs = time.time(), self.witness.rungs()
        bans = [ban for subject in subjects if (ban := self.ledger.get(subject)) is not None]
        if len(bans) > PROVEN_AT_ONCE:  # the full rows of many would outgrow the message
            brief = [{"subject": ban.subject.text, "until_unix_s": ban.until_unix_s} for ban in bans]
            return {"results": brief, "total": len(self.ledger)}
        results = [ledger.row(ban, now, rungs) for ban in bans]
        if not rungs:
            results = [result | {"note": "no layer of the kernel is there to enforce it yet"} for result in results]
        elif self.posture.state.posture is Posture.EXPLORE:
            results = [result | {"note": "the posture explore only observes"} for result in results]
        return {"results": results, "total": len(self.ledger)}

    def _counted(self, subjects: list[Prefix]) -> dict[str, Any]:
        """For who sent rows and knows them himself."""
        ban = self.ledger.get(subjects[-1])
        until = ban.until_unix_s if ban is not None else 0.0
        return {"blocked": len(subjects), "until_unix_s": until, "total": len(self.ledger)}

    def _expire(self) -> None:
        """Ends of bans and tolerations. The kernel forgets bans by itself; tolerance has to be told."""
        now = time.time()
        self.counters["bans_expired"] += len(self.ledger.expire(now))
        self.gauges["bans"] = len(self.ledger)
        if self.tolerance.expire(now):
            self.herald.tolerance()
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
