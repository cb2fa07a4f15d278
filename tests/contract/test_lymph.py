"""The way to the other nodes: the same promises from the real one over the Kafka protocol and from the fake."""

import asyncio
import contextlib
import time

import pytest

from actors.core.errors import Unavailable
from actors.dermis.antigen import TOPIC_ALERTS, TOPIC_ANTIGENS
from actors.dermis.lymph import KafkaLymph, Parcel
from tests.support.brokers import Broker, Door, a_broker
from tests.support.lymph import FakeBroker, FakeLymph

LIMIT_S = 15.0


class Ear:
    """What one node hears and which modes it went through."""

    def __init__(self, lymph):
        self.lymph, self.heard, self.modes = lymph, [], []

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self.lymph.run(self._hear, lambda why, remedy: self.modes.append(why)))
        return self

    async def _hear(self, parcels):
        self.heard += parcels

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def until(self, true, limit_s=LIMIT_S):
        deadline = time.monotonic() + limit_s
        while not true():
            assert not self._task.done(), self._task.exception()
            assert time.monotonic() < deadline, (self.modes, len(self.heard))
            await asyncio.sleep(0.01)

    async def connected(self):
        await self.until(lambda: self.modes and self.modes[-1] == "")


@pytest.fixture(scope="module")
def kafka():
    with a_broker() as address:
        yield address


@pytest.fixture(params=["kafka", "fake"])
def make(request):
    """Makes one node's lymph; all of one test reach the same brokers."""
    if request.param == "fake":
        broker = FakeBroker()
        return lambda: FakeLymph(broker)
    address = request.getfixturevalue("kafka")
    return lambda: KafkaLymph([address], "test")


def parcels(*words, topic=TOPIC_ANTIGENS):
    stamp = f"{time.time_ns()}".encode()
    return [Parcel(topic, b"203.0.113.7", stamp + word.encode()) for word in words]


def test_both_topics_arrive_at_every_node_the_sender_included(make):
    async def play():
        async with Ear(make()) as one, Ear(make()) as two:
            await one.connected()
            await two.connected()
            sent = parcels("lesson") + parcels("felt", topic=TOPIC_ALERTS)

            await one.lymph.send(sent)

            for ear in (one, two):
                await ear.until(lambda ear=ear: all(parcel in ear.heard for parcel in sent))

    asyncio.run(play())


def test_a_newcomer_hears_what_was_said_before(make):
    async def play():
        sent = parcels("early")
        async with Ear(make()) as one:
            await one.connected()
            await one.lymph.send(sent)

        async with Ear(make()) as late:
            await late.until(lambda: sent[0] in late.heard)

    asyncio.run(play())


def test_what_concerns_one_subject_keeps_its_order(make):
    async def play():
        async with Ear(make()) as one:
            await one.connected()
            sent = parcels(*(f"{number:03}" for number in range(100)))

            await one.lymph.send(sent[:50])
            await one.lymph.send(sent[50:])

            await one.until(lambda: sent[-1] in one.heard)
            assert [parcel for parcel in one.heard if parcel in set(sent)] == sent

    asyncio.run(play())


def test_nothing_can_be_sent_before_the_connection_stands(make):
    with pytest.raises(Unavailable):
        asyncio.run(make().send(parcels("early")))


@contextlib.contextmanager
def a_door():
    broker = Broker()
    door = Door(broker.port)
    try:
        yield broker, door
    finally:
        door.close()
        broker.kill()


def test_a_broker_that_is_killed_is_a_mode_and_everything_resumes_when_it_is_back():
    async def play(broker, door):
        async with Ear(KafkaLymph([door.address], "test", retry_cap_s=1.0)) as one:
            await one.connected()
            await one.lymph.send(parcels("before"))
            await one.until(lambda: len(one.heard) == 1)

            broker.kill()
            door.broker_port = 0
            door.hang_up()
            with pytest.raises(Unavailable):
                await one.lymph.send(parcels("lost"))
            await one.until(lambda: "does not answer" in one.modes[-1])
            second = Broker()
            door.broker_port = second.port
            try:
                await one.connected()
                after = parcels("after")
                await one.lymph.send(after)
                await one.until(lambda: after[0] in one.heard)
            finally:
                second.kill()

            assert len(one.modes) < 12, "tried in pauses, not in a loop"

    with a_door() as (broker, door):
        asyncio.run(play(broker, door))


def test_no_broker_at_all_is_tried_in_pauses():
    async def play():
        async with Ear(KafkaLymph(["127.0.0.1:1"], "test")) as one:
            await asyncio.sleep(2.0)

            assert 1 <= len(one.modes) <= 4
            assert "does not answer" in one.modes[-1]

    asyncio.run(play())
