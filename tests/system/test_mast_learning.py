"""A node learns its own normal: its pool fills from real traffic, a model is trained, passes the gate, and serves."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.service import ROOT, Node, a_node

# Timed, because the rhythm of the traffic is what it learns.
pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]
CLIENTS = [f"10.77.0.{number}" for number in range(20, 30)]


@contextlib.contextmanager
def ordinary_traffic(node: Node) -> Iterator[None]:
    """Ten clients of the node, for as long as the block lasts."""
    innocent = node.net.innocent
    innocent.namespace.ip(*(f"addr add {client}/24 dev {innocent.interface}" for client in CLIENTS[1:]))
    process = innocent.namespace.popen(
        sys.executable, "-m", "tests.support.learning", node.net.node.ipv4, "80", *CLIENTS,
        stdin=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


def command(node: Node, *argv: str) -> subprocess.CompletedProcess[str]:
    """One learning command as the operator of the node types it."""
    env = os.environ | {"TEGUMENTAR_STATE_DIR": str(node.directory / "state"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ml", *argv], cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=120
    )


def test_a_node_learns_from_its_own_traffic_and_serves_what_it_learned(tmp_path):
    with a_node() as node, ordinary_traffic(node):
        model, status = str(tmp_path / "night-1"), lambda: node.ask("mast.status")
        before = status()

        node.until(lambda: status()["pool"]["rows"] >= 2_600, 60, 0.5)
        waiting = command(node, "train", "--pool", "--model", model)
        trained = command(node, "train", "--pool", "--quarantine-hours", "0", "--model", model, "--epochs", "20")
        calibrated = command(node, "calibrate", "--pool", "--quarantine-hours", "0", "--model", model)
        refused = command(node, "promote", model, "--shadow-minutes", "0.05")
        promoted = command(
            node, "promote", model, "--pool", "--shadow-minutes", "0.05", "--accept-short-quarantine"
        )  # fmt: skip
        taken_up = node.until(lambda: status()["model"] != "learning", 15, 0.2)
        on_probation = status()
        node.until(lambda: status()["model"] == "active", 60, 0.5)
        told = json.loads(command(node, "promote", "status", "--json").stdout)
        node.ask("cell.restart", name="mast_cell")
        node.until(lambda: node.cells()["mast_cell"]["restarts"], 20, 0.2)
        node.until(lambda: status()["model"] == "active", 20, 0.2)
        reborn = status()

        assert before["model"] == "learning"
        assert before["pool"]["state"] == "recording"
        assert waiting.returncode == 1
        assert "out of quarantine" in waiting.stderr
        assert [trained.returncode, calibrated.returncode] == [0, 0], trained.stderr + calibrated.stderr
        assert refused.returncode == 1
        assert "quarantine" in refused.stderr
        assert promoted.returncode == 0, promoted.stderr
        assert taken_up < 15
        assert on_probation["model"] in ("shadow", "active")
        assert on_probation["model_name"] == "night-1"
        assert (told["model"], told["state"]) == ("night-1", "active")
        assert reborn["pool"]["segments"] >= 1, "what was kept before the restart is not lost"
        assert node.cells()["mast_cell"]["state"] == "healthy"
        # A model of twenty seconds has not seen this machine stall; who waits for three seconds is strange to it.
        assert len(node.blocks()) <= 1, node.blocks()
