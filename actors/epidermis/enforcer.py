"""Enforcer: what the enforcing cells share. Orders of policy are heard into a ledger; what they change is handed on.

Orders come one by one, many of one decision at a time, or as a whole in a file; which of them still counts is the
ledger's business (``reconcile.py``). What a cell does with a change is its own.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from actors.core import packed
from actors.core.cell import Cell, receives
from actors.core.errors import Refused
from actors.core.messages import Enforce, EnforceAll, EnforceMany, Release
from actors.epidermis.desired_state import off_loop, read_orders
from actors.epidermis.reconcile import Ledger, Place


class Enforcer(Cell):
    """Base of the cells that hold the kernel. ``ledger`` is made in ``on_start``."""

    uses_asyncio = True
    ledger: Ledger

    @abstractmethod
    def orders_changed(self, subjects: list[str]) -> None:
        """The ledger says something else of these now; somebody may be waiting for it."""

    @abstractmethod
    def many_ordered(self, subjects: list[str], message: EnforceMany, *, whole: bool) -> None:
        """Many bans of one decision: those that changed anything. whole: they are all that the message names."""

    @abstractmethod
    def orders_replaced(self, subjects: list[str], places: Mapping[str, Place]) -> None:
        """The whole desired state has come; it differs in these. places: of all of them, worked out already."""

    def on_peer_down(self, name: str) -> None:
        if name == "permeability":
            self.ledger.new_source()

    @receives(Enforce)
    def on_enforce(self, message: Enforce, source: str) -> None:
        self.orders_changed(self.ledger.enforce(message.orders, message.generation))

    @receives(Release)
    def on_release(self, message: Release, source: str) -> None:
        self.orders_changed(self.ledger.release(message.subjects, message.generation))

    @receives(EnforceMany)
    def on_enforce_many(self, message: EnforceMany, source: str) -> None:
        try:
            subjects = packed.unpack(message.subjects)
        except ValueError:
            self.counters["bad_input"] += 1
            return
        changed = self.ledger.enforce_many(subjects, message.until_unix_s, message.reason, message.generation)
        self.many_ordered(changed, message, whole=len(changed) == len(subjects))

    @receives(EnforceAll)
    def on_enforce_all(self, message: EnforceAll, source: str) -> None:
        def arrived(future: Future[Any]) -> None:
            try:
                orders, places = future.result()
            except Refused as refused:
                self.counters["desired_state_refused"] += 1
                self.log.error("desired_state_refused", problem=str(refused))
                return
            self.orders_replaced(self.ledger.replace(orders, message.generation), places)

        self.in_thread(arrived, read_orders, message.path, message.count)

    def in_thread(self, then: Callable[[Future[Any]], Any], work: Callable[..., Any], *args: Any) -> None:
        """Blocking work beside the actor thread; ``then(future)`` follows on it."""
        self.call(off_loop, work, *args, then=then)
