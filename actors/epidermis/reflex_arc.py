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
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from actors.core.cell import answers, receives
from actors.core.errors import Unavailable
from actors.core.lifecycle import Reload
from actors.core.messages import (
    EnforceMany,
    FeedCompiled,
    HookAnswered,
    Posture,
    PostureChanged,
    ReflexEvent,
    ReflexEvents,
    SetBudgets,
    SetTolerance,
    SetVaccines,
    SpentElsewhere,
)
from actors.epidermis import reflex_work
from actors.epidermis.ban_keeper import BanKeeper
from actors.epidermis.desired_state import checked_address
from actors.epidermis.enforcer import Enforcer
from actors.epidermis.ladder import Ladder
from actors.epidermis.link_watch import LinkWatch
from actors.epidermis.places import Places
from actors.epidermis.plane_desk import PlaneDesk
from actors.epidermis.reconcile import Place
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


class ReflexArc(Enforcer):
    """Keeps the kernel program in place and its tables true."""

    section = "reflex"
    make_plane: Callable[[Any, Policy], DataPlane] = staticmethod(open_plane)

    def on_start(self) -> None:
        self.desk = PlaneDesk(self, after=lambda: self.bans.write_portion())
        self.places = Places(self, self.desk, stood=lambda: self.bans.prove_all(), changed=self._show_state)
        self.bans = BanKeeper(
            self,
            self.desk,
            on_program=lambda: self.places.on_program,
            tolerance=lambda: self.tolerance,
            restore=self._set_tolerance,
            report=lambda events: self._events.put_many(events),
        )
        self.ledger = self.bans.ledger
        self.posture = Posture.BALANCED
        self.budget_scale = 1.0
        self._budgets_timer = 0
        self.tolerance: list[str] | None = None
        self.vaccinations = Vaccinations()
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
        self.every(RE_PROVE_EVERY_S, self.bans.re_prove)

    def on_stop(self) -> None:
        self.unwatch(self._links.fd)
        self._links.close()
        self.desk.close()

    def on_peer_up(self, name: str) -> None:
        if name == "keratinocyte":
            self.places.ask_hooks(again=True)

    # --- the desired state ------------------------------------------------------------------------------------------

    def orders_changed(self, subjects: list[str]) -> None:
        self.bans.changed(subjects)

    def many_ordered(self, subjects: list[str], message: EnforceMany, *, whole: bool) -> None:
        self.bans.many(subjects, message, whole=whole)

    def orders_replaced(self, subjects: list[str], places: Mapping[str, Place]) -> None:
        self.bans.replaced(subjects)

    @receives(SetTolerance)
    def on_tolerance(self, message: SetTolerance, source: str) -> None:
        self.tolerance = list(message.prefixes)
        self._set_tolerance()

    @receives(SetVaccines)
    def on_vaccines(self, message: SetVaccines, source: str) -> None:
        self.vaccinations.wish(message)
        self.desk.chore(self._vaccinate)

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
            self.desk.chore(lambda: self.desk.lend(published, reflex_work.publish, feed.snapshot, feed.snapshot6))

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
            self.desk.plane = plane = self.make_plane(self.settings, self._policy())
        except NotMade as exc:
            self._make(exc)
            return
        except (DataPlaneError, ImportError, OSError) as exc:
            self._without_plane(exc)
            self.after(REOPEN_EVERY_S, self._open)
            return
        self._problem = self._remedy = "" if self.ladders else self._problem
        self._set_tolerance()
        if plane.events.fd >= 0:
            self.watch(plane.events.fd, self._drain)
        self.places.hang(plane)
        self._publish_feed()

    def _without_plane(self, exc: Exception) -> None:
        """The filter cell's hooks protect meanwhile."""
        self.desk.plane = None
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
        self.in_thread(made, needed.make)

    @property
    def plane(self) -> DataPlane | None:
        """The data plane, while there is one."""
        return self.desk.plane

    @property
    def ladders(self) -> dict[str, Ladder]:
        """Where the program stands on each interface."""
        return self.places.ladders

    def _on_links(self) -> None:
        if self._links.drain():
            self.desk.chore(self.places.check)

    # --- what the program tells -------------------------------------------------------------------------------------

    def _drain(self) -> None:
        if self.plane is None:
            return
        records = self.plane.events.read(DRAIN_LIMIT)
        if not len(records):
            return
        events = summarize(records, abi.reason_name, time.time(), time.monotonic_ns())
        self.counters["events"] += len(records)
        self.bans.kernel_has_banned({event.subject: event.until_unix_s for event in events if event.banned})
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

    # --- the second hand ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.bans.expire()
        if self.plane is not None and self.plane.events.fd < 0:
            self._drain()
        self._count()
        self.places.ask_hooks_again()
        for chore in (self.places.check, self.bans.compare, self._vaccinate):
            self.desk.chore(chore)
        self.bans.write_portion()

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
            "desired": len(self.bans.ledger),
            "waiting": self.bans.waiting,
            "unproven": self.bans.proofs.waiting,
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
        return answer | {"rungs": rungs, "reported_by_kernel": self.bans.is_kernels_own(address)}
