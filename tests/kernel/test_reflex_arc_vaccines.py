"""Vaccines in the real kernel: what begins like this is dropped from everybody, and kept so."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.core.messages import (
    HookWanted,
    Posture,
    PostureChanged,
    ReflexEvent,
    ReflexEvents,
    SetTolerance,
    SetVaccines,
    VaccineOrder,
)
from actors.core.payloads import TCP, UDP, name_of, number_of
from actors.epidermis.reflex_arc import ReflexArc
from config.settings import ReflexSettings, Settings
from tests.support.core import Dish
from tests.support.netns import pins
from tests.support.nft import Wire, inside, wire

pytestmark = pytest.mark.kernel

HEAD = b"WORM/3 spread now to every host "
PORT = 7777


@pytest.fixture
def net() -> Iterator[Wire]:
    with wire() as made, inside(made.node):
        yield made


@pytest.fixture
def home() -> Iterator[Path]:
    with pins() as directory:
        yield directory


def start(home: Path) -> Dish:
    dish = Dish(ReflexArc, Settings(interfaces=("node0",), bpf_dir=home, reflex=ReflexSettings()), name="reflex_arc")
    dish.peer("permeability", ReflexEvents)
    dish.peer("keratinocyte", HookWanted)
    return dish


@pytest.fixture
def dish(net: Wire, home: Path) -> Iterator[Dish]:
    made = start(home)
    yield made
    made.stop()


def order(head: bytes = HEAD, port: int = PORT, ttl_s: float = 600.0, proto: int = UDP) -> VaccineOrder:
    name = name_of(proto, port, head)
    return VaccineOrder(
        name=name, number=number_of(name), proto=proto, dest_port=port, head=head, until_unix_s=time.time() + ttl_s
    )


def wish(dish: Dish, *orders: VaccineOrder, whole: bool = True) -> None:
    dish.give(SetVaccines(vaccines=list(orders), whole=whole), "permeability")


def arrives(net: Wire, payload: bytes, *, port: int = PORT, source: str = "") -> bool:
    """Whether a datagram with these bytes reaches a socket of the node."""
    source = source or net.peer4
    family, target = (socket.AF_INET6, net.node6) if ":" in source else (socket.AF_INET, net.node4)
    with inside(net.node):
        ear = socket.socket(family, socket.SOCK_DGRAM)
    with inside(net.peer):
        mouth = socket.socket(family, socket.SOCK_DGRAM)
    with ear, mouth:
        ear.settimeout(0.15)
        ear.bind((target, port))
        mouth.bind((source, 0))
        mouth.sendto(payload, (target, port))
        try:
            return ear.recv(2_048) == payload
        except TimeoutError:
            return False


def held(dish: Dish) -> list[tuple[int, int]]:
    return sorted((one.proto, one.dest_port) for one in dish.cell.plane.vaccines())


def test_a_payload_passes_before_is_dropped_with_and_passes_after_the_vaccine_in_both_families(net, dish):
    hostile, benign = HEAD + b"and beyond", HEAD[:-1] + b"_and beyond"
    assert arrives(net, hostile)

    wish(dish, order())
    during = [arrives(net, hostile, source=source) for source in (net.peer4, net.peer6)]
    spared = [arrives(net, benign), arrives(net, hostile, port=PORT + 1), arrives(net, HEAD[:31])]
    [row] = dish.ask("reflex.vaccines")["vaccines"]
    wish(dish)

    assert during == [False, False]
    assert spared == [True, True, True]
    assert row == {
        "name": order().name, "packets": 2, "proven": True,
        "detail": "the kernel program drops such a packet: vaccine",
    }  # fmt: skip
    assert arrives(net, hostile)
    assert held(dish) == []


def test_a_tcp_segment_is_dropped_and_the_connection_of_the_innocent_goes_on(net, dish):
    with inside(net.node):
        server = socket.create_server((net.node4, 8088))
    wish(dish, order(port=8088, proto=TCP))

    told = []
    for words in (HEAD + b"!", b"good morning to everybody here, it is nice"):
        with inside(net.peer):
            client = socket.create_connection((net.node4, 8088), 3)
        with client:
            served, _ = server.accept()
            served.settimeout(0.3)
            client.sendall(words)
            with contextlib.suppress(TimeoutError):
                told.append(served.recv(100))
            served.close()
    server.close()

    assert told == [b"good morning to everybody here, it is nice"]


def test_the_allowlist_passes_and_explore_only_observes(net, dish):
    wish(dish, order())
    assert not arrives(net, HEAD)

    dish.give(SetTolerance(prefixes=[net.peer4], generation=1), "permeability")
    assert arrives(net, HEAD)
    dish.give(SetTolerance(prefixes=[], generation=2), "permeability")
    explore = PostureChanged(posture=Posture.EXPLORE, previous=Posture.BALANCED, since_unix_s=time.time())
    dish.give(explore, "permeability")

    assert arrives(net, HEAD)
    assert "would drop" in dish.ask("reflex.vaccines")["vaccines"][0]["detail"]


def test_the_event_of_a_dropped_payload_carries_the_number_of_its_vaccine(net, dish):
    wish(dish, order())
    arrives(net, HEAD)

    def events() -> list[ReflexEvent]:
        return [event for message in dish.sent(ReflexEvents, "permeability") for event in message.events]

    dish.run_until(lambda: bool(events()), 3)

    [event] = events()
    assert (event.reflex, event.subject, event.dest_port) == ("vaccine", net.peer4, PORT)
    assert (event.detail, event.banned) == (number_of(order().name), False)


def test_a_new_life_keeps_what_stands_until_policy_has_spoken_and_then_only_what_it_wants(net, home):
    first = start(home)
    wish(first, order(), order(port=1234))
    first.stop()

    again = start(home)
    assert held(again) == [(UDP, 1234), (UDP, PORT)]
    assert not arrives(net, HEAD)
    wish(again, order(port=5678), whole=False)
    assert held(again) == [(UDP, 1234), (UDP, 5678), (UDP, PORT)]
    wish(again, order())

    assert held(again) == [(UDP, PORT)]
    assert again.ask("reflex.status")["vaccines"] == 1
    again.stop()


@pytest.mark.timed
def test_what_is_deleted_from_outside_comes_back_with_its_hits_and_a_renewal_keeps_them(net, dish):
    wish(dish, order())
    arrives(net, HEAD)
    wish(dish, order(ttl_s=1200.0))
    [standing] = dish.cell.plane.vaccines()
    assert standing.packets == 1

    dish.cell.plane.unvaccinate([standing])
    assert arrives(net, HEAD)

    assert dish.run_until(lambda: held(dish) == [(UDP, PORT)], 10)
    assert not arrives(net, HEAD)
    assert dish.cell.counters["repairs"] == 1


def test_a_vaccine_whose_time_is_over_drops_nothing(net, dish):
    wish(dish, order(ttl_s=1.0))
    assert not arrives(net, HEAD)

    assert dish.run_until(lambda: arrives(net, HEAD), 5)
