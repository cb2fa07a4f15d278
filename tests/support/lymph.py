"""A fleet in one process: brokers that are a list, for tests of cells. Held to the same contract as the real lymph."""

import asyncio
from collections.abc import Sequence

from actors.core.errors import Unavailable
from actors.dermis.antigen import MAX_BYTES, TOPICS
from actors.dermis.lymph import Heard, Mode, Parcel


class FakeBroker:
    """What was sent, in order. ``away``: nobody is connected, nothing is taken."""

    def __init__(self) -> None:
        self.log: list[Parcel] = []
        self.away = False


class FakeLymph:
    """One node's way to a ``FakeBroker``."""

    poll_s = 0.01

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._connected = False

    async def run(self, heard: Heard, mode: Mode) -> None:
        read = 0
        said: bool | None = None
        while True:
            self._connected = not self._broker.away
            if self._connected is not said:
                said = self._connected
                mode(*(("", "") if said else ("the broker is away", "bring it back")))
            if self._connected and read < len(self._broker.log):
                parcels, read = self._broker.log[read:], len(self._broker.log)
                await heard(parcels)
            await asyncio.sleep(self.poll_s)

    async def send(self, parcels: Sequence[Parcel]) -> None:
        if self._broker.away or not self._connected:
            raise Unavailable("no broker is connected")
        for parcel in parcels:
            if parcel.topic not in TOPICS or len(parcel.payload) > MAX_BYTES * 200:
                raise Unavailable("the broker refused it")
            self._broker.log.append(parcel)
