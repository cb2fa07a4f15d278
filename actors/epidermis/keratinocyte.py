"""Keratinocyte — the nftables filter cell.

Owns the table ``inet tegumentar_epiderme`` and nothing else. Keeps the desired state (ledger and plan), brings the
kernel to it one transaction at a time off the actor thread, proves every ban afterwards, and watches the generation
of nftables so that what somebody else deletes is back within seconds.

At start it adopts: a table of ours goes on enforcing, and once ``Permeability`` has said what is wanted one transaction
makes the difference. A table that is not as we would have written it stays in force until then, and is replaced in one
step. Nothing here ever removes the table.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.core.cell import answers, receives
from actors.core.errors import TegumentarError, ToolFailed, Unavailable
from actors.core.lifecycle import Reload
from actors.core.messages import (
    EnforceMany,
    FeedCompiled,
    HookAnswered,
    HookWanted,
    PostureChanged,
    Proof,
    SetTolerance,
)
from actors.epidermis import filter_work
from actors.epidermis.desired_state import checked_address
from actors.epidermis.enforcer import Enforcer
from actors.epidermis.filter_plan import FilterPlan, Step
from actors.epidermis.filter_proofs import SWEEP_EVERY_S, FilterProofs
from actors.epidermis.filter_watch import FilterWatch
from actors.epidermis.filter_work import Outcome
from actors.epidermis.interfaces import existing, protected_interfaces
from actors.epidermis.nft import Filter, NftFilter
from actors.epidermis.reconcile import Ledger, Place, disjoint
from actors.epidermis.ruleset import SETS, Layout, declaration, shape

#: How often the generation is read (9 us); a change from outside is seen within this time.
WATCH_EVERY_S = 1.0
#: Many bans gather until none has come for so long, or for the whole of the limit.
GATHER_S, GATHER_LIMIT_S = 0.25, 2.0
RETRY_FIRST_S, RETRY_CAP_S = 0.5, 30.0
#: After the first word of policy, how long the other two are waited for before a foreign table is replaced.
POLICY_GRACE_S = 1.0
_NO_POLICY = "the table found at start is not as this version writes it; it stays in force until policy arrives"


class Keratinocyte(Enforcer):
    """Brings nftables to the desired state and proves it."""

    section = "keratinocyte"
    make_filter: Callable[[], Filter] = NftFilter

    def on_start(self) -> None:
        self.ledger = Ledger()
        self.plan = FilterPlan(self._first_layout(), self.ledger)
        self.filter: Filter | None = None
        self.expected: tuple[str, ...] = ()
        self.generation = -1
        self.contents_known = False
        self._busy = False
        self._foreign_table = False
        self._heard: set[str] = set()
        self._retry_s, self._retry_timer = RETRY_FIRST_S, 0
        self._many_timer, self._many_since = 0, 0.0
        self.proofs = FilterProofs(
            self,
            self.ledger,
            place=self.plan.place,
            able=lambda: self.filter is not None and not self._busy and self.plan.idle,
            ask=self._ask_kernel,
            lost=lambda: self.inspection.want(),
        )
        self.inspection = FilterWatch(self, self.plan, self.proofs, self._heard)
        self._hooks: tuple[str, ...] = ()
        self._hook_problem = ""
        self._feed: dict[str, Any] = {}
        self._feed_too_large = False
        self._feed_sample: dict[str, list[str]] = {}
        self._last_ms = 0.0
        self._open()
        self.every(WATCH_EVERY_S, self._watch_generation)
        self.every(SWEEP_EVERY_S, self.proofs.sweep)

    def on_stop(self) -> None:
        if self.filter is not None:
            self.filter.close()

    # --- the desired state ------------------------------------------------------------------------------------------

    def orders_changed(self, subjects: list[str]) -> None:
        good = []
        for subject in subjects:
            try:
                self.plan.place(subject)
            except ValueError:
                self.counters["bad_input"] += 1
                self.ledger.release([subject], 1 << 62)
                continue
            good.append(subject)
        self.plan.touch(good)
        self._pump()

    def many_ordered(self, subjects: list[str], message: EnforceMany, *, whole: bool) -> None:
        """Behind everything else, and once no more of them come: nft works best on many, the kernel program has them
        already, and a lone ban waits for one portion at most."""
        self.plan.touch(subjects, fresh=False)
        if not self._many_timer:
            self._many_since = time.monotonic()
        self.cancel(self._many_timer)
        patience_s = max(0.0, self._many_since + GATHER_LIMIT_S - time.monotonic())
        self.plan.backlog_rests = True
        self._many_timer = self.after(min(GATHER_S, patience_s), self._gathered)

    def _gathered(self) -> None:
        self._many_timer, self.plan.backlog_rests = 0, False
        self._pump()

    def orders_replaced(self, subjects: list[str], places: Mapping[str, Place]) -> None:
        self.plan.learn_places(places)
        self.plan.touch(subjects, fresh=False)
        self._policy("orders")

    @receives(SetTolerance)
    def on_tolerance(self, message: SetTolerance, source: str) -> None:
        try:
            disjoint(message.prefixes)
        except ValueError as exc:
            self.counters["bad_input"] += 1
            self.log.error("tolerance_refused", problem=str(exc))
            return
        self.plan.want_tolerance(message.prefixes)
        self._policy("tolerance")

    @receives(PostureChanged)
    def on_posture(self, message: PostureChanged, source: str) -> None:
        self.plan.want_layout(replace(self.plan.layout, posture=message.posture.value))
        if self.plan.structure_stands:
            self._confirm_posture()
        self._policy("posture")

    @receives(FeedCompiled)
    def on_feed(self, message: FeedCompiled, source: str) -> None:
        self.plan.want_feed(Path(message.prefixes))
        self._pump()

    @receives(HookWanted)
    def on_hook_wanted(self, message: HookWanted, source: str) -> None:
        self._hooks, self._hook_problem = tuple(sorted(set(message.interfaces))), ""
        self.plan.want_layout(replace(self.plan.layout, ingress=existing(self._hooks)))
        self._pump()
        self._answer_hooks()

    @receives(Reload)
    def on_reload(self, message: Reload, source: str) -> None:
        """Ports and interfaces may be others now."""
        now = self.plan.layout
        self.plan.want_layout(replace(self._first_layout(), posture=now.posture, ingress=now.ingress))
        self._pump()

    # --- one transaction at a time ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Get hold of nftables and of the table that is there."""
        if self.filter is not None:
            self.filter.close()
        try:
            self.filter = self.make_filter()
            self.generation = self.filter.generation()
            found = self.filter.shape(self.plan.layout.table)
        except Unavailable as exc:
            self.off(f"no nftables filter: {exc}", exc.remedy)
            self.after(RETRY_CAP_S, self._open)
            return
        except ToolFailed as exc:
            self.degraded(f"the nftables table cannot be read: {exc}", exc.remedy)
            found = None
        if found is None:
            self.plan.want_whole()
            self._first_table()
        elif self.plan.adopt(found):
            self.expected = found
            self._show_state()
            self.in_thread(self._learn_contents, filter_work.read_hash_sets, self.filter, self.plan.layout.table)
        else:
            self._foreign_table = self.contents_known = True  # nothing is believed: all of it will be written
            self.counters["foreign_tables"] += 1
            self.plan.want_whole()
            self.degraded(_NO_POLICY, "nothing, if this lasts less than a second; else see the permeability cell")

    def _first_table(self) -> None:
        """Nothing protects yet: make the table now rather than in a moment."""
        step = self.plan.next(time.time())
        assert step is not None
        assert self.filter is not None
        self._finish(step, _completed(filter_work.carry_out, self.filter, step, self.plan.layout, self.generation, {}))

    def _learn_contents(self, future: Future[Any]) -> None:
        try:
            self.plan.believe(future.result(), time.time())
        except TegumentarError as exc:
            self.log.warning("contents_unknown", problem=str(exc))
            self.plan.want_whole()
        self.contents_known = True
        if "orders" in self._heard:
            self.plan.remove_strangers()
        self._pump()

    def _policy(self, what: str) -> None:
        """A part of the desired state has arrived."""
        if not self._heard:
            self.after(POLICY_GRACE_S, self._grace_over)
        self._heard.add(what)
        if what == "orders" and self.contents_known:
            self.plan.remove_strangers()
        if self._heard >= {"orders", "tolerance", "posture"}:
            self._foreign_table = False
        self._pump()

    def _grace_over(self) -> None:
        self._foreign_table = False
        self._pump()

    def _pump(self) -> None:
        """Start the next transaction unless one is under way; what waits meanwhile goes together."""
        if self._busy or self.filter is None or self._foreign_table or self._retry_timer:
            return
        if self.inspection.due:
            self._inspect()
            return
        if not self.contents_known:
            return
        step = self.plan.next(time.time())
        if step is None:
            return
        if not (step.commands or step.feed or step.subjects):
            self.proofs.refused(step.refused)
            self._pump()
            return
        proofs = {subject: self.plan.place(subject) for subject in step.subjects[: filter_work.PROVE_AT_ONCE]}
        self.proofs.later(step.subjects[filter_work.PROVE_AT_ONCE :])
        self._busy = True
        self.in_thread(
            lambda future: self._finished(step, future),
            filter_work.carry_out,
            self.filter,
            step,
            self.plan.layout,
            self.generation,
            proofs,
        )

    def _finished(self, step: Step, future: Future[Any]) -> None:
        self._busy = False
        self._finish(step, future)
        self._pump()

    def _finish(self, step: Step, future: Future[Any]) -> None:
        try:
            outcome: Outcome = future.result()
        except ToolFailed as exc:
            self._step_failed(step, exc)
            return
        except Unavailable as exc:
            self.plan.failed(step)
            if self.filter is not None:
                self.filter.close()
            self.filter = None
            self.off(f"no nftables filter any more: {exc}", exc.remedy)
            self.after(RETRY_CAP_S, self._open)
            return
        self.plan.done(step)
        self.generation, self._last_ms = outcome.generation, outcome.took_ms
        self.counters["transactions"] += 1
        self.gauges |= {"last_apply_ms": outcome.took_ms, "bans": len(self.plan.applied)}
        self._retry_s = RETRY_FIRST_S
        if step.whole:
            self.contents_known = True
        if outcome.shape is not None:
            self.expected = shape(declaration(self.plan.layout)) if outcome.foreign else outcome.shape
            self._prove_posture(outcome.shape)
        if step.feed:
            self._feed = {"entries": outcome.feed_entries, "problem": outcome.feed_problem}
            self._feed_too_large = outcome.feed_too_large
            self._feed_sample = outcome.feed_sample
        if outcome.foreign:
            self.inspection.want()
        self.proofs.take(outcome.proofs)
        self.proofs.refused(step.refused)
        self._show_state()

    def _step_failed(self, step: Step, exc: ToolFailed) -> None:
        """Refused, or nobody knows: the whole table is written next, later and later."""
        self.counters["transactions_failed"] += 1
        self.log.error("nft_refused", step=step.what, problem=str(exc), said=exc.said[:400])
        self.plan.failed(step)
        if step.what == "feeds":
            self._feed = {"entries": 0, "problem": str(exc)}
            self._show_state()
            return
        if self.plan.layout.ingress:
            self._hook_problem = str(exc)
            self.plan.want_layout(replace(self.plan.layout, ingress=()))
            self._answer_hooks()
        self.degraded(f"the nftables filter could not be changed: {exc}", exc.remedy)
        self._retry_timer = self.after(self._retry_s, self._retry)
        self._retry_s = min(self._retry_s * 2, RETRY_CAP_S)

    def _retry(self) -> None:
        self._retry_timer = 0
        self.contents_known = True
        self._pump()

    def _show_state(self) -> None:
        """A list too large for nftables is no fault while the kernel program carries it."""
        problem = self._feed.get("problem", "")
        if problem and not (self._feed_too_large and not self._hooks):
            self.degraded(f"nftables holds no new blocklist: {problem}", "see `feeds` and keratinocyte.max_elements")
        else:
            self.healthy(f"only the kernel program holds the blocklist: {problem}" if problem else "")

    # --- proof and repair -------------------------------------------------------------------------------------------

    def _confirm_posture(self) -> None:
        """The posture stands already; whoever asks anew still gets the proof."""
        if self.filter is None:
            return
        layout = self.plan.layout

        def seen(future: Future[Any]) -> None:
            if future.exception() is None and layout == self.plan.layout:
                self._prove_posture(future.result())

        self.in_thread(seen, self.filter.shape, layout.table)

    def _prove_posture(self, found: tuple[str, ...] | None) -> None:
        posture = self.plan.layout.posture
        holds = found in (shape(declaration(self.plan.layout)), self.expected)
        if not holds:
            self.counters["posture_unproven"] += 1
        self.proofs.take([Proof(subject=f"posture:{posture}", holds=holds, detail=f"nftables stands at {posture}")])

    def _ask_kernel(self, subjects: Mapping[str, Place], then: Callable[[Future[Any]], Any]) -> None:
        self.in_thread(then, filter_work.prove_bans, self.filter, self.plan.layout.table, subjects)

    def _watch_generation(self) -> None:
        if self.filter is None or self._busy:
            return
        expired = self.ledger.expire(time.time())
        self.plan.forget(expired)
        try:
            now = self.filter.generation()
        except OSError as exc:
            self.log.warning("generation_unknown", problem=str(exc))
            return
        if self.generation not in (-1, now):
            self.inspection.want()
        self.generation = now
        self._pump()

    def _inspect(self) -> None:
        """Somebody else changed nftables: is our table still what it should be?"""
        self._busy = True
        exact, sample = self.inspection.begin(self._feed_sample)
        self.in_thread(
            self._inspected, filter_work.inspect, self.filter, self.plan.layout, self.expected, exact, sample
        )

    def _inspected(self, future: Future[Any]) -> None:
        self._busy = False
        if not self.inspection.end(future):
            self.plan.want_layout(replace(self.plan.layout, ingress=existing(self._hooks)))
            self.plan.want_whole()
        self._pump()

    # --- verbs ------------------------------------------------------------------------------------------------------

    @answers("nft.status")
    def status(self, args: dict[str, Any], by: str) -> Any:
        """The table, its posture, its counters, and what was found and repaired."""
        told = {
            "table": f"inet {self.plan.layout.table}",
            "posture": self.plan.layout.posture,
            "generation": self.generation,
            "bans": len(self.plan.applied),
            "desired": len(self.ledger),
            "tolerated": len(self.plan.tolerance),
            "feeds": self._feed,
            "ingress": list(self.plan.layout.ingress),
            "waiting": not self.plan.idle or self.plan.waiting > 0 or self._busy,
            "repairs": self.counters["repairs"],
            "last_apply_ms": round(self._last_ms, 1),
        }
        if self.filter is None:
            return told
        owed = self.defer()
        self.in_thread(
            lambda future: owed.reply(told | {"counters": {} if future.exception() else future.result()}),
            self.filter.counters,
            self.plan.layout.table,
        )
        return owed

    @answers("nft.explain")
    def explain(self, args: dict[str, Any], by: str) -> Any:
        """Every set of the table that covers the address, asked of the kernel."""
        address = checked_address(args.get("address"))
        if self.filter is None:
            raise Unavailable("there is no nftables filter on this node", remedy="see `status`")
        owed = self.defer()

        def asked(future: Future[Any]) -> None:
            error = future.exception()
            if isinstance(error, TegumentarError):
                owed.refuse(error)
            else:
                owed.reply({"address": address, "posture": self.plan.layout.posture, "held": future.result()})

        self.in_thread(asked, filter_work.explain, self.filter, self.plan.layout.table, address, tuple(SETS))
        return owed

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _first_layout(self) -> Layout:
        policy = self.settings.permeability
        try:
            outside = protected_interfaces(self.settings.interfaces)
        except (Unavailable, OSError) as exc:
            self.log.info("no_outside_interface", problem=str(exc))
            outside = ()
        return Layout(
            table=self.settings.keratinocyte.table,
            management_ports=tuple(policy.management_ports),
            service_ports=tuple(policy.service_ports),
            interfaces=outside,
            max_elements=self.settings.keratinocyte.max_elements,
        )

    def _answer_hooks(self) -> None:
        """Say where the ingress hook stands, once it does."""
        standing = [name for name in self._hooks if name in self.plan.layout.ingress]
        refused = {
            name: self._hook_problem or "there is no such interface" for name in self._hooks if name not in standing
        }
        self.publish(HookAnswered(interfaces=standing, refused=refused, prerouting=self.filter is not None))


def _completed(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """The work done now, on this thread, as a future."""
    future: Future[Any] = Future()
    try:
        future.set_result(work(*args))
    except TegumentarError as exc:
        future.set_exception(exc)
    return future
