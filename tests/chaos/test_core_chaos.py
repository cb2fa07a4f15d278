"""Chaos: seeded faults at random moments for 20 s (or TEGUMENTAR_CHAOS_SECONDS), then everything must be whole."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from actors.core.errors import TegumentarError
from tests.support.core_node import Node

pytestmark = [pytest.mark.system, pytest.mark.chaos, pytest.mark.timed]

SECONDS = float(os.environ.get("TEGUMENTAR_CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("TEGUMENTAR_CHAOS_SEED", "7"))
CELLS = ("one", "two", "three", "four", "five", "six")
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP)
DEEDS = ("raise", "exit", "sysexit", "abort", "segv", "spin", "hang_loop")


@pytest.mark.timeout(SECONDS + 100)
def test_after_random_faults_every_cell_and_every_link_is_whole(tmp_path: Path) -> None:
    rules = {"failures_max": 10_000, "backoff_first_s": 0.02, "backoff_cap_s": 0.1, "stable_s": 1.0}
    node = Node(tmp_path, *CELLS, low=["two", "four"], asyncio=list(CELLS), rules=rules)
    try:
        node.wait_all()
        calm = {name: node.ask(f"{name}.look") for name in CELLS}

        faults = _harm(node, random.Random(SEED), time.monotonic() + SECONDS)

        assert faults > SECONDS
        time.sleep(1.5)  # what was stopped last is found to hang first
        node.wait_all(limit_s=15.0)
        _check_links(node)
        for name in CELLS:
            look = node.ask(f"{name}.look")
            assert look["threads"] == 2
            assert look["fds"] < 64
            assert look["rss_kb"] < calm[name]["rss_kb"] + 20_000
        supervisor = Path(f"/proc/{node.node()['pid']}")
        assert len(list((supervisor / "task").iterdir())) == 1
        assert len(list((supervisor / "fd").iterdir())) < 80
        node.process.terminate()
        assert node.process.wait(8) == 0
        assert node.processes() == []
        assert node.sockets() == []
    finally:
        node.stop()


def _harm(node: Node, chance: random.Random, until: float) -> int:
    """Do harm until the time is over; returns how often. Once in a while the supervisor itself is the victim, though
    not so often that the service rightly gives up: twenty times in five minutes."""
    faults, supervisors = 0, deque[float](maxlen=15)
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.01, 0.15))
        spared = len(supervisors) == supervisors.maxlen and time.monotonic() - supervisors[0] < 300
        try:
            if chance.random() < 0.02 and not spared:
                os.kill(node.node()["pid"], signal.SIGKILL)
                supervisors.append(time.monotonic())
            elif chance.random() < 0.6:
                _signal(node.cells(), chance)
            else:
                node.ask(f"{chance.choice(CELLS)}.do", timeout_s=0.2, what=chance.choice(DEEDS))
            faults += 1
        except (TegumentarError, KeyError, ProcessLookupError, IndexError):
            continue
    return faults


def _signal(cells: dict[str, dict[str, Any]], chance: random.Random) -> None:
    living = [row["pid"] for row in cells.values() if row["pid"]]
    for pid in chance.sample(living, k=min(len(living), chance.choice((1, 1, 1, 2, 3)))):
        os.kill(pid, chance.choice(SIGNALS))


def _check_links(node: Node) -> None:
    """Each cell's word reaches each other cell."""
    for number, name in enumerate(CELLS):
        assert node.ask(f"{name}.spread", number=1000 + number) == len(CELLS) - 1
    for name in CELLS:
        expected = {other: 1000 + number for number, other in enumerate(CELLS) if other != name}
        node.wait(lambda n=name, e=expected: node.ask(f"{n}.look")["tokens"] == e, 5.0, f"{name} to hear everybody")  # type: ignore[misc]
