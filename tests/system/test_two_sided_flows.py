"""The whole service with a real application and real TCP both ways: sessions show who answered, and how it ended."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.admin.lab.net import Network
from ml import promotion
from tests.support.service import ROOT, Node, a_node

pytestmark = [pytest.mark.system, pytest.mark.kernel]
MODEL = ROOT / "ml/models/lab-example"
WORDS = b"as much as a request may say " * 20


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    # The model is of another network: seventy equal conversations in a row are a beacon to it, and it may say so.
    with a_node({"TEGUMENTAR_PERMEABILITY__TOLERATE": "10.77.0.20,fd77:7:0:20::/64"}, start=False) as made:
        promotion.promote(made.directory / "state" / "models", MODEL, time.time(), shadow_s=0)
        made.ready_s = made.service.start()
        yield made


def talk(net: Network, port: int, family: int = 4, *, close: bool = True) -> socket.socket:
    """One conversation of the innocent neighbour with the application behind the skin."""
    with net.innocent.namespace.entered():
        wire = socket.create_connection((net.node.address(family), port), timeout=5)
    wire.sendall(WORDS)
    heard = 0
    while heard < len(WORDS):
        heard += len(wire.recv(65_536))
    if close:
        wire.close()
    return wire


def sessions(node: Node, port: int) -> list[dict[str, Any]]:
    rows = node.ask("sessions.list", limit=200)["sessions"]
    return [row for row in rows if row["dest_port"] == port and row["protocol"] == "tcp"]


def sides(node: Node) -> dict[str, Any]:
    return dict(node.ask("reflex.status")["flows"][node.net.node.interface])


@pytest.mark.parametrize("family", [4, 6])
def test_a_session_shows_both_sides_while_it_stands_and_after_it_closed(node: Node, family: int) -> None:
    port = {4: 80, 6: 22}[family]
    source = node.net.innocent.address(family)

    wire = talk(node.net, port, family, close=False)
    node.until(lambda: any(row["state"] == "established" for row in sessions(node, port)), 5)
    (standing,) = [row for row in sessions(node, port) if row["state"] == "established"]
    wire.close()
    node.until(lambda: all(row["state"] == "closed" for row in sessions(node, port)), 5)

    (closed,) = sessions(node, port)
    assert (standing["source"], standing["dest"]) == (source, node.net.node.address(family))
    assert all(size > len(WORDS) for size in standing["bytes"])
    assert all(count >= 3 for count in closed["packets"])
    assert sides(node)["sides"] == "both"


def test_a_refused_connection_is_told_as_refused(node: Node) -> None:
    with node.net.innocent.namespace.entered(), pytest.raises(ConnectionRefusedError):
        socket.create_connection((node.net.node.ipv4, 9_999), timeout=5)

    node.until(lambda: [row["state"] for row in sessions(node, 9_999)] == ["refused"], 5)
    assert sessions(node, 9_999)[0]["packets"] == [1, 1]


def test_a_model_of_both_directions_is_believed_on_this_node(node: Node) -> None:
    for _ in range(70):  # more than it takes to call a node one-sided
        talk(node.net, 8081)

    node.until(lambda: node.ask("mast.status")["reason"] == "active", 8)

    told = node.ask("mast.status")
    assert (told["model_name"], told["model"]) == ("lab-example", "active")
    assert sum(row["state"] == "closed" for row in sessions(node, 8081)) >= 70


def test_the_kernel_goes_on_accounting_while_the_cell_is_dead_and_the_next_one_adopts_it(node: Node) -> None:
    before = node.cells()["reflex_arc"]
    assert sides(node)["way"] == "tcx"

    os.kill(before["pid"], signal.SIGKILL)
    wire = talk(node.net, 80, close=False)
    node.until(lambda: node.cells()["reflex_arc"]["pid"] not in (0, None, before["pid"]), 10)
    node.until(lambda: sides(node)["sides"] == "both", 10)
    wire.close()

    node.until(lambda: any(row["packets"][1] >= 3 for row in sessions(node, 80)), 5)


def test_what_somebody_takes_off_the_way_out_is_hung_in_again(node: Node) -> None:
    pin = node.bpf_dir / "egress" / node.net.node.interface
    repairs = node.ask("reflex.status")["repairs"]
    detach(node, pin)

    node.until(lambda: node.ask("reflex.status")["repairs"] > repairs and sides(node)["sides"] == "both", 8)

    talk(node.net, 8081)
    node.until(lambda: any(row["packets"][1] >= 3 and row["silent_s"] < 3 for row in sessions(node, 8081)), 5)


def detach(node: Node, pin: Path) -> None:
    from bpf import libbpf

    link = libbpf.get_pinned(pin)
    try:
        libbpf.link_detach(link)
    finally:
        os.close(link)
