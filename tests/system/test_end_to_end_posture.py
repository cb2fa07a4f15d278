"""Postures on a running node: fast, sparing what is established, and back by themselves when nobody confirms."""

import os
import signal
import socket
import time

import pytest

from actors.admin.lab.passage import Passage
from tests.support.service import a_node, a_witness, knocking

pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]


@pytest.fixture(scope="module")
def node():
    with a_node() as node:
        yield node


@pytest.fixture(scope="module")
def witness(node):
    with a_witness(node) as witness:
        yield witness


def connect(node, port: int, family: int = 4, timeout_s: float = 1.0) -> socket.socket:
    with node.net.innocent.namespace.entered():
        return socket.create_connection((node.net.node.address(family), port), timeout_s)


def answers(link: socket.socket) -> bool:
    link.settimeout(2)
    link.sendall(b"still there?")
    return link.recv(100) == b"still there?"


@pytest.mark.parametrize("family", [4, 6])
def test_lockdown_from_another_shell_cuts_no_established_connection(node, family):
    with connect(node, 80, family) as established:
        assert answers(established)

        done = node.cli("posture", "lockdown")

        try:
            assert done.returncode == 0, done.stderr
            assert answers(established)
            with pytest.raises(OSError):
                connect(node, 80, family)
            with connect(node, 22, family) as management:
                assert answers(management)
        finally:
            node.cli("posture", "balanced")
    with connect(node, 80, family) as again:
        assert answers(again)


def test_lockdown_takes_effect_within_100_ms_of_the_wish(node, witness):
    reactions = []
    for number in range(3):
        source = f"10.66.0.{70 + number}"
        with knocking(node, source, rate=2000) as sender:
            time.sleep(0.2)
            wished_ns = time.monotonic_ns()
            node.ask("posture.set", posture="lockdown")
            time.sleep(0.3)
        node.ask("posture.set", posture="balanced")
        time.sleep(0.2)
        reactions.append(Passage(sender.times(), frozenset(witness.numbers(source))).reaction_ms(wished_ns))

    assert None not in reactions
    assert sorted(reactions)[1] < 100, f"median of {reactions} ms"


def test_an_unconfirmed_posture_returns_by_itself_and_a_confirmed_one_stays(node):
    assert node.cli("posture", "hardened", "--confirm-within", "2").returncode == 0
    began = time.monotonic()
    assert node.json("posture")["posture"] == "hardened"

    node.until(lambda: node.ask("posture.get")["posture"] == "balanced", 4)

    assert 1.0 < time.monotonic() - began < 3.5
    assert node.cli("posture", "hardened", "--confirm-within", "2").returncode == 0
    assert node.cli("posture", "confirm").returncode == 0
    time.sleep(2.5)
    assert node.json("posture")["posture"] == "hardened"
    assert node.cli("posture", "balanced").returncode == 0


def test_a_posture_for_a_time_ends_by_itself_and_survives_the_death_of_every_cell(node):
    assert node.cli("posture", "lockdown", "--for", "4").returncode == 0
    began = time.monotonic()

    for row in node.cells().values():
        if row["pid"] and row["name"] != "basal_layer":
            os.kill(row["pid"], signal.SIGKILL)
    node.until(lambda: node.ask("posture.get")["posture"] == "lockdown", 4)

    node.until(lambda: node.ask("posture.get")["posture"] == "balanced", 8)
    assert time.monotonic() - began > 3


def test_explore_lets_everything_pass_and_counts_what_it_would_have_dropped(node, witness):
    node.cli("block", "10.66.0.80", "--for", "5m")
    node.until(lambda: node.is_proven("10.66.0.80"), 5)
    node.cli("posture", "explore")
    time.sleep(0.3)

    try:
        with knocking(node, "10.66.0.80", rate=200):
            node.until(lambda: len(witness.numbers("10.66.0.80")) > 10, 5)
        told = str(node.json("status"))
        assert "would" in told
    finally:
        node.cli("posture", "balanced")
    node.until(lambda: node.is_proven("10.66.0.80"), 5)
    before = len(witness.numbers("10.66.0.80"))
    with knocking(node, "10.66.0.80", rate=200):
        time.sleep(0.3)
    assert len(witness.numbers("10.66.0.80")) == before
