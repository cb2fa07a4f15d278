"""Delivery: carries the journal to a database beyond the node, for ever, at the pace of that database.

Runs in the memory cell's loop and reads the journal through a connection of its own. The database says how far it has
come, so that a database that was emptied or restored gets again what it misses. A server that is away is a mode; it is
tried again after 1, 2, 4 … 60 s (``outbox.py``), or at once when a new journal was begun.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from actors.core.errors import Unavailable
from actors.dermis.outbox import BATCH, Outbox
from actors.dermis.store_sqlite import SqliteStore, StoreError

RETAIN_EVERY_S = 3600.0
#: The journal is looked at this often also when nobody said that something was written.
LOOK_EVERY_S = 30.0
#: A journal that cannot be read is the scribe's to mend.
JOURNAL_RETRY_S = 2.0


class Sink(Protocol):
    """A database that keeps every entry once. Raises Unavailable."""

    async def open(self) -> int: ...
    async def write(self, entries: Any, up_to: int) -> None: ...
    async def retain(self, now: float) -> None: ...
    async def close(self) -> None: ...


class _Reader:
    """The journal as the outbox wants it; the cursor is what the sink says."""

    def __init__(self, store: SqliteStore, noted: Callable[[int], None]) -> None:
        self._store, self._noted, self.cursor = store, noted, 0

    def since(self, seq: int, limit: int = BATCH) -> list[dict[str, Any]]:
        return self._store.since(seq, limit)

    def sent_to(self, sink: str) -> int:
        return self.cursor

    def sent(self, sink: str, seq: int) -> None:
        self.cursor = seq
        self._noted(seq)


class Delivery:
    """``noted(seq)``: the sink has everything up to there. ``mode(reason, remedy)``: empty texts when all is well."""

    def __init__(
        self,
        store: SqliteStore,
        make_sink: Callable[[str], Sink],
        *,
        noted: Callable[[int], None],
        mode: Callable[[str, str], None],
    ) -> None:
        """make_sink: for the journal of this epoch."""
        self._store, self._make_sink, self._noted, self._mode = store, make_sink, noted, mode
        self._wake = asyncio.Event()
        self.delivered = 0

    async def wake(self) -> None:
        """Something was written."""
        self._wake.set()

    async def begin_anew(self) -> None:
        """Another file has taken the journal's place."""
        self._store.close()
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self._store.is_open:
                    self._store.open_reader()
                await self._deliver(self._store.epoch())
            except StoreError:
                self._store.close()
                await asyncio.sleep(JOURNAL_RETRY_S)

    async def _deliver(self, epoch: str) -> None:
        """One journal; returns when another one was begun. Raises StoreError."""
        sink, reader = self._make_sink(epoch), _Reader(self._store, self._noted)
        outbox = Outbox(reader, "postgres")
        opened, retain_at = False, 0.0
        failures = 0
        try:
            while True:
                try:
                    if not opened:
                        reader.cursor = await sink.open()
                        self._noted(reader.cursor)
                        opened, failures = True, 0
                        self._mode("", "")
                    if time.monotonic() >= retain_at:
                        await sink.retain(time.time())
                        retain_at = time.monotonic() + RETAIN_EVERY_S
                    await self._send_all(sink, outbox)
                except Unavailable as away:
                    opened = False
                    await sink.close()
                    self._mode(str(away), away.remedy)
                    await asyncio.sleep(min(60.0, 2.0**failures))
                    failures = min(failures + 1, 10)
                    continue
                await self._pause()
                if self._store.epoch() != epoch:
                    return
        finally:
            await sink.close()

    async def _send_all(self, sink: Sink, outbox: Outbox) -> None:
        while (parcel := outbox.due(time.monotonic())) is not None:
            try:
                await sink.write(parcel.entries, parcel.up_to)
            except Unavailable:
                outbox.failed(parcel, float("-inf"))  # offered again as soon as the server is back; that pause is ours
                raise
            self.delivered += len(parcel.entries)
            outbox.acknowledged(parcel)

    async def _pause(self) -> None:
        with suppress(TimeoutError):  # nobody called: time to look
            await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)
        self._wake.clear()
