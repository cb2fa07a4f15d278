"""SYN cookies from the kernel program: real clients, real forged floods, real listeners, on every way to hang it in."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from actors.admin.lab.traffic import Forge, Spec
from bpf.dataplane import Budget, Policy, Rung, Stance
from bpf.loader import KernelPlane
from bpf.maps import SYN_COOKIE, SYN_DROP, SYN_PASS
from bpf.program import Build
from tests.support.bcc import bcc_plane, forget_types, needs_bcc
from tests.support.netns import Network

__all__ = ["forget_types"]
pytestmark = pytest.mark.kernel
PORT = 80
CLIENTS = 20
#: Small, so that a flood fills the listener's queue at once and the rate is soon exceeded.
BACKLOG, POLICY = 8, Policy(syn_dest=Budget(20, 20))


@pytest.fixture
def net() -> Iterator[Network]:
    with Network() as network:
        yield network


@contextlib.contextmanager
def plane_on(
    net: Network,
    rung: Rung,
    policy: Policy = POLICY,
    build: Build | None = None,
    loader: Callable[[None, Build, Policy], KernelPlane] = KernelPlane,
) -> Iterator[KernelPlane]:
    plane = loader(None, build or Build(), policy)
    try:
        with net.node.namespace.entered():
            assert plane.attach("skin0", (rung,)).rung is rung
        yield plane
    finally:
        plane.close()


@contextlib.contextmanager
def listener(net: Network, family: int) -> Iterator[None]:
    """A server that greets whoever gets in."""
    with net.node.namespace.entered():
        server = socket.create_server(
            (net.node.address(family), PORT),
            family=socket.AF_INET if family == 4 else socket.AF_INET6, backlog=BACKLOG,
        )  # fmt: skip

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = server.accept()
                with link:
                    link.sendall(b"hello")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


@contextlib.contextmanager
def flood(net: Network, family: int, port: int = PORT) -> Iterator[None]:
    """Forged SYNs, each from another source, until the block ends; it begins when the listener's queue is full."""
    attacker, node = net.attacker, net.node
    forge = Forge(
        Spec(kind="syn", source="10.66.0.1" if family == 4 else "fd66::66", target=node.address(family),
             source_mac=attacker.mac, target_mac=node.mac, interface=attacker.interface, rate=1, seconds=1, port=port,
             sources=60_000)
    )  # fmt: skip
    with attacker.namespace.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        wire.bind((attacker.interface, 0))
    stop, sent = threading.Event(), threading.Event()

    def send() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(50):
                with contextlib.suppress(OSError):
                    wire.send(forge.stamp(number))
                number += 1
            if number > 1_000:
                sent.set()
            time.sleep(0.005)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        assert sent.wait(10)
        yield
    finally:
        stop.set()
        thread.join(5)
        wire.close()


def connected(net: Network, family: int) -> int:
    """How many of the innocent's attempts were greeted, each within 0.9 s: less than a SYN is repeated after."""
    greeted = 0
    for _ in range(CLIENTS):
        with net.innocent.namespace.entered():
            link = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
        with link, contextlib.suppress(OSError):
            link.settimeout(0.9)
            link.connect((net.node.address(family), PORT))
            greeted += link.recv(5) == b"hello"
    return greeted


@pytest.mark.parametrize("family", [4, 6])
def test_real_clients_connect_throughout_a_flood_that_the_program_answers(net: Network, family: int) -> None:
    with plane_on(net, Rung.GENERIC) as plane, listener(net, family):
        before = connected(net, family)
        with flood(net, family):
            during = connected(net, family)
        after = connected(net, family)
        tally = plane.counters().tally

    assert (before, during, after) == (CLIENTS, CLIENTS, CLIENTS)
    assert tally["syn_cookies"] > 500, "most of the flood was answered without a packet buffer"
    assert tally["syn_cookies"] <= tally["syn_over"]


@needs_bcc
def test_the_program_that_bcc_compiles_answers_a_flood_too(net: Network) -> None:
    with plane_on(net, Rung.GENERIC, loader=bcc_plane) as plane, listener(net, 4), flood(net, 4):
        during = connected(net, 4)
        tally = plane.counters().tally

    assert during == CLIENTS
    assert tally["syn_cookies"] > 500


def test_without_a_flood_no_cookie_is_given(net: Network) -> None:
    with plane_on(net, Rung.GENERIC) as plane, listener(net, 4):
        assert connected(net, 4) == CLIENTS

        assert plane.counters().tally["syn_cookies"] == 0


def test_a_port_that_nobody_listens_on_is_left_to_the_stack(net: Network) -> None:
    with plane_on(net, Rung.GENERIC) as plane, flood(net, 4, port=81):
        assert plane.counters().tally["syn_cookies"] == 0


def test_a_node_that_only_observes_answers_nothing(net: Network) -> None:
    observing = replace(POLICY, stance=Stance.OBSERVE)
    with plane_on(net, Rung.GENERIC, observing) as plane, listener(net, 4), flood(net, 4):
        assert connected(net, 4) == CLIENTS, "the kernel's own cookies"

        assert plane.counters().tally["syn_cookies"] == 0


def test_a_wire_that_loses_answers_is_left_to_the_kernels_own_cookies(net: Network) -> None:
    with plane_on(net, Rung.NATIVE) as plane, listener(net, 4), flood(net, 4):
        assert plane.knobs["syn_flood_answer"] == SYN_PASS
        assert connected(net, 4) == CLIENTS

        assert plane.counters().tally["syn_cookies"] == 0


def test_the_knob_follows_rung_and_policy(net: Network) -> None:
    with plane_on(net, Rung.GENERIC) as plane, net.node.namespace.entered():
        armed = plane.knobs["syn_flood_answer"]
        plane.set_policy(replace(POLICY, syn_cookies=False))
        unwanted = plane.knobs["syn_flood_answer"]
        plane.set_policy(replace(POLICY, syn_flood_drops=True))
        dropping = plane.knobs["syn_flood_answer"]
        plane.set_policy(POLICY)
        again = plane.knobs["syn_flood_answer"]

    assert (armed, unwanted, dropping, again) == (SYN_COOKIE, SYN_PASS, SYN_DROP, SYN_COOKIE)


def test_a_kernel_without_the_helpers_gets_the_program_without_cookies(net: Network) -> None:
    with plane_on(net, Rung.GENERIC, build=Build(cookies=False)) as plane, listener(net, 4), flood(net, 4):
        assert connected(net, 4) == CLIENTS

        assert plane.counters().tally["syn_cookies"] == 0
