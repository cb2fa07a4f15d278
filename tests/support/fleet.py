"""Two nodes named north and south, each with a network of its own, and one broker between them."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actors.dermis.antigen import TOPIC_ANTIGENS
from actors.dermis.antigen_keys import NodeKey, make_key
from actors.dermis.lymph import KafkaLymph, Parcel
from tests.support.brokers import Broker, Door
from tests.support.service import Node, a_node


@dataclass
class Fleet:
    """``one`` is north, ``two`` is south; both trust each other."""

    broker: Broker
    doors: list[Door]
    one: Node
    two: Node
    keys: dict[str, NodeKey]

    def lose_broker(self) -> None:
        self.broker.kill()
        for door in self.doors:
            door.broker_port = 0
            door.hang_up()

    def new_broker(self) -> None:
        self.broker = Broker()
        for door in self.doors:
            door.broker_port = self.broker.port

    def tell(self, *payloads: bytes) -> None:
        """Put these messages before all nodes, whoever they claim to come from."""
        asyncio.run(self._tell(payloads))

    async def _tell(self, payloads: tuple[bytes, ...]) -> None:
        async def deaf(parcels: list[Parcel]) -> None:
            pass

        lymph, connected = KafkaLymph([f"127.0.0.1:{self.broker.port}"], "test"), asyncio.Event()
        task = asyncio.ensure_future(lymph.run(deaf, lambda reason, remedy: connected.set()))
        await asyncio.wait_for(connected.wait(), 10)
        await lymph.send([Parcel(TOPIC_ANTIGENS, b"", payload) for payload in payloads])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def a_fleet(one: Mapping[str, str] | None = None, two: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """Both services run and are connected. one, two: more settings of the nodes."""
    with contextlib.ExitStack() as stack:
        broker = Broker()
        nodes = [stack.enter_context(a_node(start=False, echo=False)) for _ in range(2)]
        doors = [Door(broker.port, node.net.node.namespace) for node in nodes]
        fleet = Fleet(broker, doors, *nodes, keys={})
        stack.callback(lambda: fleet.broker.kill())
        for door in doors:
            stack.callback(door.close)
        for name, node in zip(("north", "south"), nodes, strict=True):
            path = node.directory / "state" / "lymph" / "node.key"
            make_key(path)
            fleet.keys[name] = NodeKey(name, path)
        known = ",".join(f"{name}={key.public}" for name, key in fleet.keys.items())
        for name, node, door, more in zip(("north", "south"), nodes, doors, (one, two), strict=True):
            node.service.env |= {
                "TEGUMENTAR_KAFKA__BOOTSTRAP_SERVERS": door.address,
                "TEGUMENTAR_LYMPH__NODE": name,
                "TEGUMENTAR_LYMPH__KEYS": known,
                "TEGUMENTAR_LYMPH__TRUSTED_NODES": "north,south",
            } | dict(more or {})
            node.service.start()
        for node in nodes:
            node.until(lambda node=node: node.ask("antigens.list")["connected"], 15)
        yield fleet
