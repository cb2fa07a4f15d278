"""Lymph: the two Kafka topics, produced and consumed through aiokafka. The only file that imports it.

At least once in both directions: ``send`` returns when the brokers have it (``acks=all``); a listener reads again what
the last day brought (``MAX_LIFE_S``: nothing older can still be believed), and whoever listens ignores what it knows.
A broker that is away is a mode, told once through ``mode``: it is tried again after 0.5, 1, 2 … 10 s, never in a busy
loop, and everything resumes when it is back.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.core.errors import Unavailable
from actors.dermis.antigen import MAX_BYTES, MAX_LIFE_S, TOPICS

RETRY_FIRST_S, RETRY_CAP_S = 0.5, 10.0
#: How long a fetch may wait at the broker; some brokers answer only then, so it bounds the delay of a lesson.
FETCH_WAIT_MS = 100
REQUEST_MS = 5_000
#: A listener that hears nothing asks this often whether the brokers are still there.
ASK_EVERY_S = 5.0
BATCH = 200
#: A connection that held so long was a good one: the next failure is the first again.
STABLE_S = 30.0


@dataclass(frozen=True)
class Parcel:
    """One message. ``key`` keeps the order of what concerns one subject."""

    topic: str
    key: bytes
    payload: bytes


#: Takes what was heard; nothing more is fetched before it has.
Heard = Callable[[list[Parcel]], Awaitable[None]]
Mode = Callable[[str, str], None]


class Lymph(Protocol):
    """The way to the other nodes."""

    async def run(self, heard: Heard, mode: Mode) -> None:
        """Listen until cancelled. ``mode(reason, remedy)``: two empty texts when connected, else why not."""
        ...

    async def send(self, parcels: Sequence[Parcel]) -> None:
        """Returns when all have arrived. Raises Unavailable; then some may have arrived, so send them again."""
        ...


class KafkaLymph:
    """The real one. Belongs to one asyncio loop."""

    def __init__(self, servers: Sequence[str], client: str, retry_cap_s: float = RETRY_CAP_S) -> None:
        self._servers, self._client, self._retry_cap_s = list(servers), client, retry_cap_s
        self._producer: Any = None
        self._lost: Exception | None = None  # why the connection is of no use any more

    async def run(self, heard: Heard, mode: Mode) -> None:
        failures = 0
        while True:
            consumer: Any = None
            connected_at = time.monotonic()
            try:
                consumer = await self._connect()
                connected_at = time.monotonic()
                mode("", "")
                await self._listen(consumer, heard)
            except (OSError, TimeoutError, self._errors()) as exc:
                self._say(mode, exc)
            finally:
                await self._disconnect(consumer)
            failures = 0 if time.monotonic() - connected_at >= STABLE_S else failures + 1
            await asyncio.sleep(min(self._retry_cap_s, RETRY_FIRST_S * 2 ** min(failures, 10)))

    async def send(self, parcels: Sequence[Parcel]) -> None:
        producer = self._producer
        if producer is None:
            raise Unavailable("no Kafka broker is connected")
        try:
            sent = [await producer.send(parcel.topic, parcel.payload, key=parcel.key) for parcel in parcels]
            await asyncio.wait_for(asyncio.gather(*sent), REQUEST_MS / 1000 * 2)
        except (OSError, TimeoutError, self._errors()) as exc:
            self._lost = exc
            raise Unavailable(f"Kafka did not take it: {exc}") from exc

    async def _connect(self) -> Any:
        from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs every try; here a lost broker is told once
        common = {
            "bootstrap_servers": self._servers,
            "client_id": self._client,
            "request_timeout_ms": REQUEST_MS,
            "retry_backoff_ms": 500,
            "metadata_max_age_ms": 30_000,
        }
        self._lost = None
        producer = AIOKafkaProducer(**common, acks="all", compression_type=None, max_request_size=MAX_BYTES * BATCH)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._producer = producer
        consumer = AIOKafkaConsumer(
            *TOPICS,
            **common,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        try:
            await consumer.start()
            await self._catch_up(consumer)
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _catch_up(self, consumer: Any) -> None:
        """Begin where the last day begins; a broker that cannot tell begins at its oldest."""
        since_ms = int((time.time() - MAX_LIFE_S) * 1000)
        offsets = await consumer.offsets_for_times(dict.fromkeys(consumer.assignment(), since_ms))
        for partition, found in offsets.items():
            if found is not None:
                consumer.seek(partition, found.offset)

    async def _listen(self, consumer: Any, heard: Heard) -> None:
        asked = time.monotonic()
        while self._lost is None:
            batches = await consumer.getmany(timeout_ms=500, max_records=BATCH)
            parcels = [
                Parcel(record.topic, record.key or b"", record.value or b"")
                for records in batches.values()
                for record in records
            ]
            if parcels:
                await heard(parcels)
            if time.monotonic() - asked >= ASK_EVERY_S:
                await asyncio.wait_for(consumer.topics(), REQUEST_MS / 1000)
                asked = time.monotonic()
        raise self._lost

    async def _disconnect(self, consumer: Any) -> None:
        producer, self._producer = self._producer, None
        ends = [asyncio.ensure_future(client.stop()) for client in (consumer, producer) if client is not None]
        if not ends:
            return
        done, late = await asyncio.wait(ends, timeout=REQUEST_MS / 1000)
        for end in late:
            end.cancel()
        await asyncio.gather(*done, return_exceptions=True)  # a client that ends badly has ended, too

    def _say(self, mode: Mode, exc: Exception) -> None:
        where = ", ".join(self._servers)
        mode(
            f"Kafka at {where} does not answer or does not take it ({type(exc).__name__})",
            "start the broker, make its topics, or correct kafka.bootstrap_servers; lessons wait in the journal",
        )

    @staticmethod
    def _errors() -> type[Exception]:
        from aiokafka.errors import KafkaError

        found: type[Exception] = KafkaError
        return found
