"""ReflexArc — the XDP/eBPF data plane cell.

Hangs the kernel program into the protected interfaces (or adopts it where it hangs), keeps its tables equal to the
desired state, proves every ban with a synthetic packet through the very program, and brings the program's events to
the gate. Where no rung of the kernel program holds, it asks the keratinocyte for the nftables hooks, and climbs back
by itself.

Quick calls on the data plane are made on the actor thread. Slow ones (attach, publish, a read of all bans) are lent to
a worker, one at a time: they touch other maps, only read, or stand back for those who write (the sweep), so bans go on
being written meanwhile.
Nothing here ever takes the program away, except the operator's explicit choice of rungs without it.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any

from actors.core import packed
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused, Unavailable
from actors.core.lifecycle import Reload
from actors.core.messages import (
    BATCH_LIMIT,
    Enforce,
    EnforceAll,
    EnforceMany,
    FeedCompiled,
    HookAnswered,
    Posture,
    PostureChanged,
    Proof,
    ReflexEvent,
    ReflexEvents,
    Release,
    SetBudgets,
    SetTolerance,
    SetVaccines,
    SpentElsewhere,
)
from actors.epidermis import reflex_work
from actors.epidermis.ban_compare import BanDifference, DesiredBans
from actors.epidermis.desired_state import checked_address, off_loop, read_orders
from actors.epidermis.ladder import Ladder
from actors.epidermis.link_watch import LinkWatch
from actors.epidermis.places import Places
from actors.epidermis.proof_line import ProofLine
from actors.epidermis.reconcile import Ledger, alive
from actors.epidermis.reflex_events import policy_of, summarize
from actors.epidermis.reflex_state import (
    counters_message,
    counters_told,
    interfaces_told,
    loader_told,
    shortcoming,
    worst_rung,
)
from actors.epidermis.vaccines import Vaccinations
from bpf import abi
from bpf.dataplane import Charge, DataPlane, DataPlaneError, NotMade, Policy

#: Bans written in one go: 10 ms, so that one more ban never waits long behind many.
PORTION = 4_000
#: How often all bans are compared with the desired ones, and the longest pause when that is slow (it shall take a
#: hundredth of the time). What somebody deletes is back within 5 s.
COMPARE_EVERY_S, COMPARE_REST, COMPARE_CAP_S = 2.0, 100.0, 4.0
#: Bans that are over drop nothing, but take room; what else a sweep tidies makes packets slower by nanoseconds.
SWEEP_EVERY_S, SWEEP_IDLE_S = 6.0, 30.0
PROVE_AT_ONCE = 100
RE_PROVE_EVERY_S = 5.0
REOPEN_EVERY_S, MAKE_EVERY_S = 30.0, 600.0
#: How long incidents gather before they are told.
EVENTS_LINGER_S = 0.05
DRAIN_LIMIT = 65_536
SWITCH_S = 0.0005


def open_plane(settings: Any, policy: Policy) -> DataPlane:
    """The real data plane; ``policy`` holds for tables that are new, adopted ones keep theirs. Imported here, so that
    a host without libbpf still runs the cell and says what is missing."""
    from bpf import choice
    from bpf.program import Build

    return choice.open_plane(settings.bpf_dir, Build(max_bans=settings.reflex.max_bans), policy, settings.reflex.loader)


class ReflexArc(Cell):
    """Keeps the kernel program in place and its tables true."""

    uses_asyncio = True
    section = "reflex"
    make_plane: Callable[[Any, Policy], DataPlane] = staticmethod(open_plane)

    def on_start(self) -> None:
        self.plane: DataPlane | None = None
        self.ledger = Ledger()
        self.places = Places(
            self,
            plane=lambda: self.plane,
            lend=self._lend,
            stood=lambda: self._prove_later(self.ledger.orders),
            changed=self._show_state,
        )
        self.posture = Posture.BALANCED
        self.budget_scale = 1.0
        self._budgets_timer = 0
        self.tolerance: list[str] | None = None
        self.vaccinations = Vaccinations()
        self._lent = False
        self._chores: deque[Callable[[], None]] = deque()
        self._fresh: dict[str, None] = {}
        self._backlog: dict[str, None] = {}
        self._prove_all = False
        self.proofs = ProofLine(
            self,
            self.ledger,
            "xdp",
            prove=lambda subjects: reflex_work.prove(self.plane, subjects) if self.plane is not None else [],
            able=lambda: self.plane is not None and not self._lent,
        )
        self._portion_timer = 0
        self._orders_heard = False
        self._kernel_bans: dict[str, float] = {}
        self._desired = DesiredBans()  #: the worker's, while something is lent to it
        self._moved: set[str] = set()  #: subjects whose order has changed since the last comparison
        self._expired = 0
        self._held: set[str] = set()  #: what this life has written or found, to tell a loss from a first writing
        self._compare_at_s = self._swept_s = 0.0
        self._problem, self._remedy = "", ""
        self._make_again_at_s = 0.0
        self._feed_problem = ""
        self._feed: FeedCompiled | None = None  #: the last that was told, for a program that comes later
        self._told_packets = -1
        self._lost_told = 0
        self._events = self.stream(ReflexEvents, self._make_events, linger_s=EVENTS_LINGER_S)
        self._links = LinkWatch()
        self.watch(self._links.fd, self._on_links)
        # each call into the kernel gives the interpreter away; a worker that compares bans may keep it so long
        sys.setswitchinterval(SWITCH_S)
        self._open()
        self.every(1.0, self._tick)
        self.every(RE_PROVE_EVERY_S, self._re_prove)

    def on_stop(self) -> None:
        self.unwatch(self._links.fd)
        self._links.close()
        if self.plane is not None and not self._lent:
            self.plane.close()

    def on_peer_up(self, name: str) -> None:
        if name == "keratinocyte":
            self.places.ask_hooks(again=True)

    def on_peer_down(self, name: str) -> None:
        if name == "permeability":
            self.ledger.new_source()

    # --- the desired state ------------------------------------------------------------------------------------------

    @receives(Enforce)
    def on_enforce(self, message: Enforce, source: str) -> None:
        self._moved_and_touched(self.ledger.enforce(message.orders, message.generation))

    @receives(EnforceMany)
    def on_enforce_many(self, message: EnforceMany, source: str) -> None:
        """Into the kernel at once, a third of a microsecond each; proved when their turn comes."""
        try:
            subjects = packed.unpack(message.subjects)
        except ValueError:
            self.counters["bad_input"] += 1
            return
        changed = self.ledger.enforce_many(subjects, message.until_unix_s, message.reason, message.generation)
        self._moved.update(changed)
        plane = self.plane if len(changed) == len(subjects) else None
        if plane is not None and reflex_work.enforce_many(plane, message.subjects, message.until_unix_s):
            self.counters["bans_written"] += len(changed)
            self._held.update(changed)
            self._prove_later(changed)
        else:
            self._touch(changed, fresh=False)

    @receives(Release)
    def on_release(self, message: Release, source: str) -> None:
        self._moved_and_touched(self.ledger.release(message.subjects, message.generation))

    @receives(EnforceAll)
    def on_enforce_all(self, message: EnforceAll, source: str) -> None:
        def arrived(future: Future[Any]) -> None:
            try:
                orders, _ = future.result()
            except Refused as refused:
                self.counters["desired_state_refused"] += 1
                self.log.error("desired_state_refused", problem=str(refused))
                return
            self._orders_heard = self._prove_all = True
            self._moved.update(self.ledger.replace(orders, message.generation))
            self._compare_soon()

        self._in_thread(arrived, read_orders, message.path, message.count)

    @receives(SetTolerance)
    def on_tolerance(self, message: SetTolerance, source: str) -> None:
        self.tolerance = list(message.prefixes)
        self._set_tolerance()

    @receives(SetVaccines)
    def on_vaccines(self, message: SetVaccines, source: str) -> None:
        self.vaccinations.wish(message)
        self._chore(self._vaccinate)

    @receives(PostureChanged)
    def on_posture(self, message: PostureChanged, source: str) -> None:
        self.posture = message.posture
        self._set_policy()

    @receives(SetBudgets)
    def on_budgets(self, message: SetBudgets, source: str) -> None:
        """Tighter under strain. Who wished so must go on wishing it: budgets come back when the throttler is silent."""
        self.cancel(self._budgets_timer)
        self._scale_budgets(message.scale)
        if message.scale < 1.0:
            self._budgets_timer = self.after(message.valid_s, self._scale_budgets, 1.0)

    @receives(SpentElsewhere)
    def on_spent_elsewhere(self, message: SpentElsewhere, source: str) -> None:
        if self.plane is None:
            return
        try:
            self.counters["charged"] += self.plane.charge(
                Charge(spent.subject, spent.budget, spent.packets) for spent in message.sources
            )
        except DataPlaneError as error:
            self.counters["bad_input"] += 1
            self.log.error("charge_refused", problem=str(error))

    @receives(Reload)
    def on_reload(self, message: Reload, source: str) -> None:
        """Budgets may be others now. Other interfaces or rungs need a restart of this cell."""
        self._set_policy()

    @receives(FeedCompiled)
    def on_feed(self, message: FeedCompiled, source: str) -> None:
        self._feed = message
        self._publish_feed()

    def _publish_feed(self) -> None:
        def published(future: Future[Any]) -> None:
            error = future.exception()
            self._feed_problem = f"the new blocklist could not be loaded: {error}" if error else ""
            self.counters["feeds_failed" if error else "feeds_loaded"] += 1
            self._show_state()

        feed = self._feed
        if feed is not None and self.plane is not None:
            self._chore(lambda: self._lend(published, reflex_work.publish, feed.snapshot, feed.snapshot6))

    @receives(HookAnswered)
    def on_hook(self, message: HookAnswered, source: str) -> None:
        self.places.hook_answered(message)

    # --- the program and its places ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Get hold of the data plane and hang it in everywhere. Adopting costs a few milliseconds."""
        try:
            self.places.find()
        except (Unavailable, OSError) as exc:
            self._problem, self._remedy = str(exc), getattr(exc, "remedy", "")
        try:
            self.plane = self.make_plane(self.settings, self._policy())
        except NotMade as exc:
            self._make(exc)
            return
        except (DataPlaneError, ImportError, OSError) as exc:
            self._without_plane(exc)
            self.after(REOPEN_EVERY_S, self._open)
            return
        self._problem = self._remedy = "" if self.ladders else self._problem
        self._set_tolerance()
        if self.plane.events.fd >= 0:
            self.watch(self.plane.events.fd, self._drain)
        self.places.hang(self.plane)
        self._publish_feed()

    def _without_plane(self, exc: Exception) -> None:
        """The filter cell's hooks protect meanwhile."""
        self.plane = None
        self._problem = f"the kernel program cannot be loaded: {exc}"
        self._remedy = getattr(exc, "remedy", "") or "see `doctor`"
        self.places.fall(str(exc))
        self._show_state()

    def _make(self, needed: NotMade) -> None:
        """Compile in a thread; afterwards opening takes milliseconds. What failed is not tried again soon, because it
        costs seconds of a processor each time."""

        def made(future: Future[None]) -> None:
            try:
                future.result()
            except (DataPlaneError, OSError) as exc:
                self._make_again_at_s = time.monotonic() + MAKE_EVERY_S
                self._without_plane(exc)
                self.after(REOPEN_EVERY_S, self._open)
                return
            self._open()
            self._set_policy()  # the posture may be another by now

        if time.monotonic() < self._make_again_at_s:
            self.after(REOPEN_EVERY_S, self._open)
            return
        self._without_plane(needed)
        self._in_thread(made, needed.make)

    @property
    def ladders(self) -> dict[str, Ladder]:
        """Where the program stands on each interface."""
        return self.places.ladders

    def _on_links(self) -> None:
        if self._links.drain():
            self._chore(self.places.check)

    # --- bans -------------------------------------------------------------------------------------------------------

    def _moved_and_touched(self, subjects: list[str]) -> None:
        self._moved.update(subjects)
        self._touch(subjects)

    def _touch(self, subjects: list[str], *, fresh: bool = True) -> None:
        queue = self._fresh if fresh else self._backlog
        queue.update(dict.fromkeys(subjects))
        if fresh:
            self._write_portion()
        else:
            self._more_later()

    def _write_portion(self) -> None:
        """Bring a portion of what changed into the kernel, fresh orders first."""
        subjects = self._portion()
        if self.plane is None or not subjects:
            return
        at_once = PROVE_AT_ONCE if subjects[0] in self._fresh else 0
        now = time.time()
        for subject in subjects:
            self._fresh.pop(subject, None)
            self._backlog.pop(subject, None)
        orders = [order for s in subjects if (order := self.ledger.order(s)) is not None and alive(order, now)]
        banned = {order.subject for order in orders}
        try:
            outcome = reflex_work.enforce(self.plane, orders)
            self.plane.release([s for s in subjects if s not in banned and s not in self._kernel_bans])
        except DataPlaneError as error:
            self.counters["writes_failed"] += 1
            self.log.error("write_failed", problem=str(error))
            self._compare_soon()
            return
        self.counters["bans_written"] += len(orders)
        self._held |= banned - outcome.refused.keys()
        self._take_refused(outcome.refused)
        waiting = [subject for subject in banned if subject not in outcome.refused]
        if self.places.on_program:
            self.proofs.tell(reflex_work.prove(self.plane, waiting[:at_once]))
            self._prove_later(waiting[at_once:])
        self._more_later()

    def _portion(self) -> list[str]:
        """Fresh ones, else some of the backlog."""
        for queue in (self._fresh, self._backlog):
            taken = list(islice(queue, PORTION))
            if taken:
                return taken
        return []

    def _more_later(self) -> None:
        if (self._fresh or self._backlog) and not self._portion_timer:
            self._portion_timer = self.after(0.001, self._next_portion)

    def _prove_later(self, subjects: Iterable[str]) -> None:
        """Where no packet meets the program, its word about one proves nothing."""
        if self.places.on_program:
            self.proofs.ask_later(subjects)

    def _next_portion(self) -> None:
        self._portion_timer = 0
        self._write_portion()

    def _take_refused(self, refused: dict[str, str]) -> None:
        if refused:
            self.counters["bans_refused"] += len(refused)
            self.proofs.tell([Proof(subject=s, holds=False, detail=why[:200]) for s, why in refused.items()])

    # --- comparison and proof ---------------------------------------------------------------------------------------

    def _compare_soon(self) -> None:
        self._compare_at_s = 0.0
        self._chore(self._compare)

    def _compare(self) -> None:
        now = time.monotonic()
        if self.plane is None or now < self._compare_at_s:
            return
        self._compare_at_s = now + COMPARE_EVERY_S
        sweep = now - self._swept_s >= (SWEEP_EVERY_S if self._expired else SWEEP_IDLE_S)
        if sweep:
            self._swept_s = now
        changes = {subject: self.ledger.order(subject) for subject in self._moved}
        self._moved.clear()
        self._lend(self._compared, reflex_work.compare, self._desired, changes, self.tolerance, sweep=sweep)

    def _compared(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self.counters["comparisons_failed"] += 1
            self.log.error("comparison_failed", problem=str(error))
            return
        result: reflex_work.Difference = future.result()
        found, self._expired = result.bans, result.bans.expired
        rest = min(max(COMPARE_EVERY_S, result.took_s * COMPARE_REST), COMPARE_CAP_S)
        self._compare_at_s = time.monotonic() + rest - 0.5
        self.gauges |= {"bans": found.held, "compare_ms": result.took_s * 1000}
        known = [s for s in found.missing if s in self.ledger and s not in self._fresh and s not in self._backlog]
        if known and self._written_before(known):
            self.counters["repairs"] += 1
            self.log.warning("repair", what=f"{len(known)} bans were deleted from outside; they are being restored")
        self._touch(known + found.wrong_time, fresh=False)
        if not result.tolerance_holds:
            self.counters["repairs"] += 1
            self.log.warning("repair", what="the allowlist in the kernel is not as it should be; it is being restored")
            self._set_tolerance()
        if self._prove_all:
            # whoever sends the whole state has no proof yet, or has lost it
            self._prove_all = False
            self._prove_later(self.ledger.orders.keys() - set(known))
        if self._orders_heard:
            self._touch([s for s in found.strangers if s not in self.ledger], fresh=False)
            self._report_kernel_bans(found)

    def _written_before(self, missing: list[str]) -> bool:
        """Tell a loss from bans that this life has yet to write; say the loss to the gate."""
        lost = [subject for subject in missing if subject in self._held]
        told = [Proof(subject=subject, holds=False, detail="deleted from outside") for subject in lost[:BATCH_LIMIT]]
        self.proofs.tell(told)
        return bool(lost)

    def _report_kernel_bans(self, found: BanDifference) -> None:
        """Bans that only the kernel knows: made by the program while nobody listened. The gate adopts them."""
        now = time.time()
        fresh = [row for row in found.made_by_kernel if row[0] not in self._kernel_bans and row[0] not in self.ledger]
        self._kernel_bans = {row[0]: row[2] for row in found.made_by_kernel}
        self._events.put_many(
            [
                ReflexEvent(subject=s, reflex=reason, banned=True, until_unix_s=until, packets=packets, seen_unix_s=now)
                for s, reason, until, packets in fresh
            ]
        )

    def _re_prove(self) -> None:
        """A sample, the next ones each time, for ever."""
        self._prove_later(self.proofs.sample())

    # --- what the program tells -------------------------------------------------------------------------------------

    def _drain(self) -> None:
        if self.plane is None:
            return
        records = self.plane.events.read(DRAIN_LIMIT)
        if not len(records):
            return
        events = summarize(records, abi.reason_name, time.time(), time.monotonic_ns())
        self.counters["events"] += len(records)
        self._kernel_bans.update({event.subject: event.until_unix_s for event in events if event.banned})
        self._events.put_many(events)

    def _make_events(self, items: list[ReflexEvent]) -> ReflexEvents:
        lost = self.counters["events_lost"] + self._events.dropped
        message = ReflexEvents(events=items, lost=max(0, lost - self._lost_told))
        self._lost_told = lost
        return message

    def _count(self) -> None:
        """Totals of the program, each second while they move."""
        if self.plane is None:
            return
        try:
            counters = self.plane.counters()
        except DataPlaneError as error:
            self.log.warning("counters_unknown", problem=str(error))
            return
        self.counters["events_lost"] = counters.tally.get("events_lost", 0)
        if counters.frames == self._told_packets:
            return
        self._told_packets = counters.frames
        self.publish(counters_message(counters, self._worst_rung(), time.monotonic_ns()))

    # --- the second hand, and the plane's one owner -----------------------------------------------------------------

    def _tick(self) -> None:
        over = self.ledger.expire(time.time())
        self._held.difference_update(over)
        self._moved.update(over)
        if self.plane is not None and self.plane.events.fd < 0:
            self._drain()
        self._count()
        self.places.ask_hooks_again()
        for chore in (self.places.check, self._compare, self._vaccinate):
            self._chore(chore)
        self._write_portion()

    def _chore(self, work: Callable[[], None]) -> None:
        """Work that must not run beside another slow call: now, or when that is done."""
        if not self._lent:
            work()
        elif work not in self._chores:
            self._chores.append(work)

    def _lend(self, then: Callable[[Future[Any]], Any], work: Callable[..., Any], *args: Any, **named: Any) -> None:
        """Let a worker make one slow call."""
        if self.plane is None:
            return
        if self._lent:
            self._chores.append(lambda: self._lend(then, work, *args, **named))
            return

        def back(future: Future[Any]) -> None:
            self._lent = False
            then(future)
            while self._chores and not self._lent:
                self._chores.popleft()()
            self._write_portion()

        self._lent = True
        self.call(off_loop, partial(work, self.plane, *args, **named), then=back)

    def _in_thread(self, then: Callable[[Future[Any]], Any], work: Callable[..., Any], *args: Any) -> None:
        self.call(off_loop, work, *args, then=then)

    def _set_tolerance(self) -> None:
        if self.plane is None or self.tolerance is None:
            return
        try:
            self.plane.tolerate(self.tolerance)
        except DataPlaneError as error:
            self.counters["bad_input"] += 1
            self.log.error("tolerance_refused", problem=str(error))

    def _vaccinate(self) -> None:
        """Never beside a sweep, which makes the filter of vaccines anew."""
        if self.plane is None or not self.vaccinations.due(time.monotonic()):
            return
        try:
            lost = self.vaccinations.put_right(self.plane)
        except DataPlaneError as error:
            self.counters["writes_failed"] += 1
            self.log.error("vaccines_failed", problem=str(error))
            return
        self.gauges["vaccines"] = len(self.vaccinations)
        if lost:
            self.counters["repairs"] += 1
            self.log.warning("repair", what=f"{lost} vaccines were deleted from outside; they are back")

    def _set_policy(self) -> None:
        if self.plane is not None:
            self.plane.set_policy(self._policy())

    def _policy(self) -> Policy:
        return policy_of(self.settings.reflex, self.posture, self.budget_scale)

    def _scale_budgets(self, scale: float) -> None:
        if scale != self.budget_scale:
            self.log.warning("budgets", scale=scale, before=self.budget_scale)
            self.budget_scale = scale
            self._set_policy()

    # --- state and verbs --------------------------------------------------------------------------------------------

    def _worst_rung(self) -> str:
        return worst_rung(self.ladders, self.settings.reflex.rungs)

    def _show_state(self) -> None:
        self.gauges["interfaces_hooked"] = sum(ladder.on_program for ladder in self.ladders.values())
        self.gauges["egress_accounted"] = sum(self.places.sight.sees(name) for name in self.ladders)
        reason, remedy = shortcoming(self.ladders)
        one_sided = self.places.sight.shortcoming(self.ladders)
        if self._problem:
            self.degraded(self._problem, self._remedy)
        elif reason:
            self.degraded(reason, remedy)
        elif self._feed_problem:
            self.degraded(self._feed_problem, "see `feeds`")
        elif one_sided[0]:
            self.degraded(*one_sided)
        else:
            self.healthy(", ".join(f"{name} on {ladder.standing}" for name, ladder in self.ladders.items()))

    @answers("reflex.status")
    def status(self, args: dict[str, Any], by: str) -> Any:
        """Where the program stands on each interface and why not higher, and what it has counted."""
        return {
            "interfaces": interfaces_told(self.ladders),
            "flows": self.places.sight.told(self.ladders),
            "rung": self._worst_rung(),
            "loaded": self.plane is not None,
            **loader_told(None if self.plane is None else self.plane.loaded),
            "problem": self._problem,
            "posture": str(self.posture),
            "budget_scale": self.budget_scale,
            "bans": int(self.gauges.get("bans", 0)),
            "desired": len(self.ledger),
            "waiting": len(self._fresh) + len(self._backlog),
            "unproven": self.proofs.waiting,
            "vaccines": len(self.vaccinations),
            "repairs": self.counters["repairs"],
            "counters": {} if self.plane is None else counters_told(self.plane.counters()),
        }

    @answers("reflex.vaccines")
    def vaccines(self, args: dict[str, Any], by: str) -> Any:
        """Each vaccine, what it has dropped, and whether the very program drops such a packet now."""
        return {"vaccines": self.vaccinations.rows(self.plane, hangs=self.places.on_program)}

    @answers("reflex.explain")
    def explain(self, args: dict[str, Any], by: str) -> Any:
        """What the kernel program does with a packet of this address now."""
        address = checked_address(args.get("address"))
        if self.plane is None:
            raise Unavailable("the kernel program is not loaded", remedy=self._remedy)
        try:
            answer = reflex_work.explain(self.plane, address)
        except DataPlaneError as error:
            raise Unavailable(f"the kernel program could not be asked: {error}", remedy=error.remedy) from error
        rungs = {name: ladder.standing for name, ladder in self.ladders.items()}
        return answer | {"rungs": rungs, "reported_by_kernel": address in self._kernel_bans}
