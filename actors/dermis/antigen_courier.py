"""The courier: takes what the journal holds for the other nodes to the brokers, in order, at least once.

The journal is the only queue (``memory.outbox``, ``memory.sent``); one part is under way at a time, and what could not
be sent is offered again after a moment. What memory or brokers that are away owe is asked for again when they are back.
"""

import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from actors.core.cell import Cell
from actors.core.messages import Answer
from actors.dermis import antigen
from actors.dermis.antigen import TOPIC_ALERTS, TOPIC_ANTIGENS, AntigenError, Signer
from actors.dermis.lymph import BATCH, Parcel

SINK = "kafka"
TOPIC_OF = {"antigen": TOPIC_ANTIGENS, "alert": TOPIC_ALERTS}
RETRY_S = 2.0

Send = Callable[[Sequence[Parcel]], Coroutine[Any, Any, None]]


class Courier:
    """Belongs to one cell, on its actor thread. ``send`` runs in the cell's loop; the cell sets ``connected``."""

    def __init__(self, cell: Cell, key: Signer, send: Send) -> None:
        self._cell, self._key, self._send = cell, key, send
        self.connected = False
        self._under_way = self._again = False

    def go(self) -> None:
        """Take the next part of the outbox, if there is one and nothing is under way."""
        if not (self.connected and self._cell.settings.lymph.share):
            return
        if self._under_way:
            self._again = True
            return
        self._under_way, self._again = True, False
        self._cell.ask("memory.outbox", {"sink": SINK, "kinds": list(TOPIC_OF), "limit": BATCH}, self._outbox)

    def _outbox(self, answer: Answer) -> None:
        if answer.problem:
            self._done(retry=True)
            return
        value = answer.value
        parcels = [parcel for entry in value["entries"] if (parcel := self._parcel(entry)) is not None]
        if parcels:
            self._cell.call(self._send, parcels, then=lambda future: self._sent(future, value, len(parcels)))
        else:
            self._arrived(value)

    def _parcel(self, entry: dict[str, Any]) -> Parcel | None:
        """The signed message of a journal entry; None when its time is over or it is none of ours."""
        try:
            found = antigen.from_entry_body(entry["body"])
        except AntigenError:
            self._cell.counters["bad_memories"] += 1
            return None
        if found.expires_unix_s <= time.time():
            return None
        topic = TOPIC_OF[entry["kind"]]
        return Parcel(topic, found.subject.encode(), antigen.seal(found, topic, self._key))

    def _sent(self, future: "Future[Any]", value: dict[str, Any], count: int) -> None:
        if future.cancelled() or future.exception() is not None:
            self._cell.counters["sends_failed"] += 1
            self._done(retry=True)
            return
        self._cell.counters["told"] += count
        self._arrived(value)

    def _arrived(self, value: dict[str, Any]) -> None:
        if value["up_to"] <= value["sent"]:
            self._done()
            return
        self._again = self._again or bool(value["entries"])
        args = {"sink": SINK, "up_to": value["up_to"]}
        self._cell.ask("memory.sent", args, lambda answer: self._done(retry=bool(answer.problem)))

    def _done(self, *, retry: bool = False) -> None:
        self._under_way = False
        if retry:
            self._cell.after(RETRY_S, self.go)
        elif self._again:
            self.go()
