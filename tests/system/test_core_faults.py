"""Supervision over real processes: whatever happens to one cell, it comes back and the others do not notice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.core_node import Node

pytestmark = pytest.mark.system

#: Test nodes beat four times a second, so a hang is seen after 0.75 s and one sweep.
FAULTS = {
    "raise": "ValueError: boom",
    "exit": "exit code 3",
    "sysexit": "exit code 4",
    "segv": "SIGSEGV",
    "abort": "SIGABRT",
    "sleep": "hung",
    "spin": "hung",
    "stop": "hung",
    "hang_loop": "hung",
    "kill": "SIGKILL",
    "term": "exit code 0",
}
AT_ONCE = ("raise", "exit", "sysexit", "segv", "abort", "kill", "term")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    cells = ("alpha", "beta", *(f"victim{index}" for index in range(len(FAULTS))))
    running = Node(tmp_path_factory.mktemp("n"), *cells, asyncio=list(cells), low=["beta"])
    try:
        running.wait_all()
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cell_comes_back_from_every_fault_and_its_siblings_keep_their_processes(node: Node, fault: str) -> None:
    victim = f"victim{list(FAULTS).index(fault)}"
    before = node.cells()

    node.ask(f"{victim}.do", what=fault)

    took = node.wait_again(victim, before[victim]["incarnation"], 6.0)
    after = node.cells()
    assert took < (1.0 if fault in AT_ONCE else 3.5)
    assert FAULTS[fault] in after[victim]["last_cause"]
    assert {n: r["pid"] for n, r in after.items() if n != victim} == {
        n: r["pid"] for n, r in before.items() if n != victim
    }
    node.ask("alpha.spread", number=1)
    node.wait(lambda: node.ask(f"{victim}.look")["tokens"] == {"alpha": 1}, 2.0, "alpha's token")
    node.ask(f"{victim}.spread", number=2)
    node.wait(lambda: node.ask("beta.look")["tokens"].get(victim) == 2, 2.0, f"{victim}'s token")


def test_three_cells_killed_at_once_all_come_back(node: Node) -> None:
    names = ("alpha", "beta", "victim0")
    before = node.cells()

    for name in names:
        os.kill(before[name]["pid"], signal.SIGKILL)

    for name in names:
        node.wait_again(name, before[name]["incarnation"], 3.0)
    assert all(node.cells()[name]["state"] == "healthy" for name in node.cell_names)


def test_a_stopped_supervisor_that_goes_on_kills_nobody(node: Node) -> None:
    before = node.cells()
    supervisor = node.node()["pid"]

    os.kill(supervisor, signal.SIGSTOP)
    time.sleep(1.2)  # longer than three heartbeats, shorter than the launcher's patience
    os.kill(supervisor, signal.SIGCONT)

    time.sleep(0.6)  # two sweeps
    assert {name: row["pid"] for name, row in node.cells().items()} == {
        name: row["pid"] for name, row in before.items()
    }


def test_a_low_cell_has_no_root_left(node: Node) -> None:
    status = Path(f"/proc/{node.cells()['beta']['pid']}/status").read_text()

    assert "Uid:\t0" not in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_a_restart_by_hand_is_not_a_failure(node: Node) -> None:
    before = node.cells()["alpha"]

    node.ask("cell.restart", name="alpha")

    node.wait_again("alpha", before["incarnation"], 3.0)
    assert node.cells()["alpha"]["exit_code"] == 0


def test_a_change_of_mode_is_shown_with_its_reason(node: Node) -> None:
    node.ask("victim1.do", what="degrade")

    node.wait(lambda: node.cells()["victim1"]["state"] == "degraded", 2.0, "the mode to be shown")
    assert node.cells()["victim1"]["reason"] == "told to"
    assert node.node()["layers"]["dermis"] == "degraded"
