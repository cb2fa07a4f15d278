"""Keeps the bans in the kernel equal to the orders: writes what changes, compares all of them, and has each one proved.

Belongs to the reflex arc, on its actor thread. Fresh orders go first, in portions; a backlog behind them. Comparing is
a worker's job, and so is the sweep of what is over; bans go on being written meanwhile.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

from actors.core import packed
from actors.core.cell import Cell
from actors.core.messages import BATCH_LIMIT, EnforceMany, Proof, ReflexEvent
from actors.epidermis import reflex_work
from actors.epidermis.ban_compare import BanDifference, DesiredBans
from actors.epidermis.plane_desk import PlaneDesk
from actors.epidermis.proof_line import ProofLine
from actors.epidermis.reconcile import Ledger, alive
from bpf.dataplane import DataPlaneError

#: Bans written in one go: 10 ms, so that one more ban never waits long behind many.
PORTION = 4_000
#: How often all bans are compared with the desired ones, and the longest pause when that is slow (it shall take a
#: hundredth of the time). What somebody deletes is back within 5 s.
COMPARE_EVERY_S, COMPARE_REST, COMPARE_CAP_S = 2.0, 100.0, 4.0
#: Bans that are over drop nothing, but take room; what else a sweep tidies makes packets slower by nanoseconds.
SWEEP_EVERY_S, SWEEP_IDLE_S = 6.0, 30.0
PROVE_AT_ONCE = 100


class BanKeeper:
    """``on_program`` says whether packets meet the program; ``tolerance`` is the allowlist as it should be (None: not
    known yet), ``restore`` puts it right; ``report`` takes bans that only the kernel knew."""

    def __init__(
        self,
        cell: Cell,
        desk: PlaneDesk,
        *,
        on_program: Callable[[], bool],
        tolerance: Callable[[], Sequence[str] | None],
        restore: Callable[[], None],
        report: Callable[[list[ReflexEvent]], None],
    ) -> None:
        self._cell, self._desk = cell, desk
        self._on_program, self._tolerance, self._restore, self._report = on_program, tolerance, restore, report
        self.ledger = Ledger()
        self.proofs = ProofLine(
            cell,
            self.ledger,
            "xdp",
            prove=lambda subjects: reflex_work.prove(desk.plane, subjects) if desk.plane is not None else [],
            able=lambda: desk.plane is not None and not desk.lent,
        )
        self._fresh: dict[str, None] = {}
        self._backlog: dict[str, None] = {}
        self._portion_timer = 0
        self._orders_heard = self._prove_all = False
        self._kernel_bans: dict[str, float] = {}
        self._desired = DesiredBans()  #: the worker's, while something is lent to it
        self._moved: set[str] = set()  #: subjects whose order has changed since the last comparison
        self._expired = 0
        self._held: set[str] = set()  #: what this life has written or found, to tell a loss from a first writing
        self._compare_at_s = self._swept_s = 0.0

    @property
    def waiting(self) -> int:
        """Bans that are still to be written."""
        return len(self._fresh) + len(self._backlog)

    def is_kernels_own(self, subject: str) -> bool:
        """Whether the program itself has banned it."""
        return subject in self._kernel_bans

    def kernel_has_banned(self, until_unix_s: dict[str, float]) -> None:
        """The program has told of these bans."""
        self._kernel_bans.update(until_unix_s)

    # --- what is wished ---------------------------------------------------------------------------------------------

    def changed(self, subjects: list[str]) -> None:
        """The orders about these have changed: now, before all that waits."""
        self._moved.update(subjects)
        self._touch(subjects)

    def many(self, changed: list[str], message: EnforceMany, *, whole: bool) -> None:
        """Hosts go into the kernel at once, a third of a microsecond each, and are proved when their turn comes;
        prefixes go the usual way. whole: all that the message names have changed."""
        self._moved.update(changed)
        hosts = [subject for subject in changed if "/" not in subject]
        rows = message.subjects if whole and len(hosts) == len(changed) else packed.pack(hosts)
        plane = self._desk.plane
        if plane is not None and rows and reflex_work.enforce_many(plane, rows, message.until_unix_s):
            self._cell.counters["bans_written"] += len(hosts)
            self._held.update(hosts)
            self.prove_later(hosts)
            changed = [subject for subject in changed if "/" in subject]
        self._touch(changed, fresh=False)

    def replaced(self, subjects: Iterable[str]) -> None:
        """All orders have been heard; those about ``subjects`` are others than before."""
        self._orders_heard = self._prove_all = True
        self._moved.update(subjects)
        self._compare_soon()

    def expire(self) -> None:
        """Orders whose time is over are none any more."""
        over = self.ledger.expire(time.time())
        self._held.difference_update(over)
        self._moved.update(over)

    # --- writing ----------------------------------------------------------------------------------------------------

    def _touch(self, subjects: list[str], *, fresh: bool = True) -> None:
        queue = self._fresh if fresh else self._backlog
        queue.update(dict.fromkeys(subjects))
        if fresh:
            self.write_portion()
        else:
            self._more_later()

    def write_portion(self) -> None:
        """Bring a portion of what changed into the kernel, fresh orders first."""
        plane, subjects = self._desk.plane, self._portion()
        if plane is None or not subjects:
            return
        at_once = PROVE_AT_ONCE if subjects[0] in self._fresh else 0
        now = time.time()
        for subject in subjects:
            self._fresh.pop(subject, None)
            self._backlog.pop(subject, None)
        orders = [order for s in subjects if (order := self.ledger.order(s)) is not None and alive(order, now)]
        banned = {order.subject for order in orders}
        try:
            outcome = reflex_work.enforce(plane, orders)
            plane.release([s for s in subjects if s not in banned and s not in self._kernel_bans])
        except DataPlaneError as error:
            self._cell.counters["writes_failed"] += 1
            self._cell.log.error("write_failed", problem=str(error))
            self._compare_soon()
            return
        self._cell.counters["bans_written"] += len(orders)
        self._held |= banned - outcome.refused.keys()
        self._take_refused(outcome.refused)
        waiting = [subject for subject in banned if subject not in outcome.refused]
        if self._on_program():
            self.proofs.tell(reflex_work.prove(plane, waiting[:at_once]))
            self.prove_later(waiting[at_once:])
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
            self._portion_timer = self._cell.after(0.001, self._next_portion)

    def _next_portion(self) -> None:
        self._portion_timer = 0
        self.write_portion()

    def _take_refused(self, refused: dict[str, str]) -> None:
        if refused:
            self._cell.counters["bans_refused"] += len(refused)
            self.proofs.tell([Proof(subject=s, holds=False, detail=why[:200]) for s, why in refused.items()])

    # --- proof ------------------------------------------------------------------------------------------------------

    def prove_later(self, subjects: Iterable[str]) -> None:
        """Where no packet meets the program, its word about one proves nothing."""
        if self._on_program():
            self.proofs.ask_later(subjects)

    def prove_all(self) -> None:
        """Packets have begun to meet the program."""
        self.prove_later(self.ledger.orders)

    def re_prove(self) -> None:
        """A sample, the next ones each time, for ever."""
        self.prove_later(self.proofs.sample())

    # --- comparison -------------------------------------------------------------------------------------------------

    def _compare_soon(self) -> None:
        self._compare_at_s = 0.0
        self._desk.chore(self.compare)

    def compare(self) -> None:
        """All bans and the allowlist with what they should be, when it is time again."""
        now = time.monotonic()
        if self._desk.plane is None or now < self._compare_at_s:
            return
        self._compare_at_s = now + COMPARE_EVERY_S
        sweep = now - self._swept_s >= (SWEEP_EVERY_S if self._expired else SWEEP_IDLE_S)
        if sweep:
            self._swept_s = now
        changes = {subject: self.ledger.order(subject) for subject in self._moved}
        self._moved.clear()
        self._desk.lend(self._compared, reflex_work.compare, self._desired, changes, self._tolerance(), sweep=sweep)

    def _compared(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._cell.counters["comparisons_failed"] += 1
            self._cell.log.error("comparison_failed", problem=str(error))
            return
        result: reflex_work.Difference = future.result()
        found, self._expired = result.bans, result.bans.expired
        rest = min(max(COMPARE_EVERY_S, result.took_s * COMPARE_REST), COMPARE_CAP_S)
        self._compare_at_s = time.monotonic() + rest - 0.5
        self._cell.gauges |= {"bans": found.held, "compare_ms": result.took_s * 1000}
        known = [s for s in found.missing if s in self.ledger and s not in self._fresh and s not in self._backlog]
        if known and self._written_before(known):
            self._repair(f"{len(known)} bans were deleted from outside; they are being restored")
        self._touch(known + found.wrong_time, fresh=False)
        if not result.tolerance_holds:
            self._repair("the allowlist in the kernel is not as it should be; it is being restored")
            self._restore()
        if self._prove_all:
            # whoever sends the whole state has no proof yet, or has lost it
            self._prove_all = False
            self.prove_later(self.ledger.orders.keys() - set(known))
        if self._orders_heard:
            self._touch([s for s in found.strangers if s not in self.ledger], fresh=False)
            self._report_kernel_bans(found)

    def _repair(self, what: str) -> None:
        self._cell.counters["repairs"] += 1
        self._cell.log.warning("repair", what=what)

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
        self._report(
            [
                ReflexEvent(subject=s, reflex=reason, banned=True, until_unix_s=until, packets=packets, seen_unix_s=now)
                for s, reason, until, packets in fresh
            ]
        )
