"""Watch over the nftables table: after a change by somebody else it is compared with what it should be, and mended.

A comparison reads all bans, so it rests afterwards: a neighbour who changes his own table all the time costs little.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from actors.core.cell import Cell
from actors.core.errors import TegumentarError
from actors.core.messages import BATCH_LIMIT, Proof
from actors.epidermis.filter_plan import FilterPlan
from actors.epidermis.filter_proofs import FilterProofs
from actors.epidermis.filter_work import Inspection
from actors.epidermis.reconcile import by_family, disjoint

#: A comparison takes 0.3 s for 100,000 bans; it rests this many times as long as the last one took, in these bounds.
REST = 10
REST_S = (0.5, 3.0)


class FilterWatch:
    """Belongs to one cell, on its actor thread. ``heard``: the parts of policy that have arrived."""

    def __init__(self, cell: Cell, plan: FilterPlan, proofs: FilterProofs, heard: Collection[str]) -> None:
        self._cell, self._plan, self._proofs, self._heard = cell, plan, proofs, heard
        self._wanted = False
        self._began_s = self._after_s = 0.0

    def want(self) -> None:
        """Somebody else changed nftables, or the kernel does not hold what it should."""
        self._wanted = True

    @property
    def due(self) -> bool:
        return self._wanted and time.monotonic() >= self._after_s

    def begin(
        self, feed_sample: Mapping[str, list[str]]
    ) -> tuple[Mapping[str, Iterable[str]], Mapping[str, list[str]]]:
        """What to look for: sets whose every interval is known, and addresses that sets should hold among others."""
        self._wanted, self._began_s = False, time.monotonic()
        self._cell.counters["inspections"] += 1
        return self._exact_sets(), {**feed_sample, **self._plan.net_sample(time.time())}

    def end(self, future: Future[Any]) -> bool:
        """Take what was found. False when the table itself must be made anew; what else is wrong is planned here."""
        took = time.monotonic() - self._began_s
        self._after_s = time.monotonic() + min(max(took * REST, REST_S[0]), REST_S[1])
        try:
            seen: Inspection = future.result()
        except TegumentarError as exc:
            self._cell.log.warning("inspection_failed", problem=str(exc))
            self._wanted = True
            return True
        if not seen.shape_holds:
            self._repair("the table was deleted or changed from outside; it is being restored")
            return False
        self._compare(seen)
        return True

    def _compare(self, seen: Inspection) -> None:
        missing = self._plan.compare(seen.contents, time.time()) if "orders" in self._heard else []
        if missing or not seen.sets_hold:
            self._repair(f"{len(missing) or 'some'} elements were deleted from outside; they are being restored")
            told = [Proof(subject=s, holds=False, detail="deleted from outside") for s in missing[:BATCH_LIMIT]]
            self._proofs.take(told)
        if not seen.sets_hold:
            self._plan.want_tolerance(self._plan.tolerance)
            self._plan.want_feed(self._plan.feed)

    def _repair(self, what: str) -> None:
        self._cell.counters["repairs"] += 1
        self._cell.log.warning("repair", what=what)

    def _exact_sets(self) -> Mapping[str, list[str]]:
        if "tolerance" not in self._heard:
            return {}
        nets = by_family(disjoint(self._plan.tolerance))
        return {f"tolerated{family}": [net.partition("/")[0] for net in nets[family]] for family in nets}
