"""The service process as its surroundings see it: the service manager, a user who is not root, a wrong directory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.core_node import ROOT, Node

pytestmark = [pytest.mark.system, pytest.mark.timed]


class ServiceManager:
    """The far end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(str(path))
        self._line.setblocking(False)

    def hears(self, word: str, limit_s: float = 5.0) -> bool:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.said.append(self._line.recv(4096).decode())
            if any(word in said for said in self.said):
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        self._line.close()


def test_the_service_manager_hears_readiness_life_reload_and_the_end(tmp_path: Path) -> None:
    manager = ServiceManager(tmp_path / "notify")
    node = Node(tmp_path / "n", "alpha", env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "15000000"})
    try:
        assert manager.hears("READY=1")
        assert manager.hears("STATUS=healthy, 1 of 1 cells healthy")
        assert manager.hears("WATCHDOG=1")
        os.kill(node.process.pid, signal.SIGHUP)
        assert manager.hears("RELOADING=1\nMONOTONIC_USEC=")

        node.process.terminate()

        assert manager.hears("STOPPING=1")
        assert node.process.wait(8) == 0
    finally:
        node.stop()
        manager.close()


def test_a_service_that_cannot_live_gives_up_with_exit_code_70(tmp_path: Path) -> None:
    node = Node(tmp_path, "alpha", required=["alpha"], critical=["alpha"], rules={"heartbeat_s": 0.0})
    try:
        assert node.process.wait(30) == 70  # a period of nothing is refused by the timer: the supervisor cannot start
        assert "gave_up" in node.log()
        assert node.processes() == []
    finally:
        node.stop()


def test_a_run_directory_that_cannot_be_used_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    command = [sys.executable, "-m", "tests.support.core_node", str(tmp_path / "file" / "run"), '{"cells": []}']

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)

    assert done.returncode == 78
    assert "cannot use the run directory" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="is about the difference between root and others")
def test_without_root_the_service_runs_and_its_user_administers_it(tmp_path: Path) -> None:
    if not _readable_by_all(ROOT / ".venv/bin/python"):
        pytest.fail(f"{ROOT} must be readable by other users for this test")
    home = Path(f"/tmp/tg-core-{os.getpid()}")
    home.mkdir(mode=0o755)
    os.chown(home, 12_345, 12_345)
    as_user = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
    node = Node(home, "alpha", "beta", low=["beta"], command=as_user)
    try:
        node.wait_all()

        assert node.ask("alpha.look")["uid"] == 12_345
        assert node.ask("alpha.spread", number=3) == 1
        before = node.cells()["beta"]
        os.kill(before["pid"], signal.SIGKILL)
        node.wait_again("beta", before["incarnation"], 3.0)
        for user, said in (("12345", "node"), ("12346", "Refused")):
            asking = [
                "setpriv",
                "--reuid",
                user,
                "--regid",
                user,
                "--clear-groups",
                sys.executable,
                "-c",
                ASK,
                str(home),
            ]
            done = subprocess.run(asking, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
            assert said in done.stdout, done.stderr
    finally:
        node.stop()
        subprocess.run(["rm", "-rf", str(home)], check=True)


ASK = """
import sys
from actors.core.client import connect
try:
    with connect(sys.argv[1]) as client:
        print("node", client.ask("node")["state"])
except Exception as error:
    print(type(error).__name__, error)
"""


def _readable_by_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def test_an_idle_node_of_thirteen_cells_is_nearly_silent(tmp_path: Path) -> None:
    """The budget of the whole service is 2 % of one core; the tissue alone must stay well below."""
    names = [f"cell{index}" for index in range(13)]
    node = Node(tmp_path, *names, asyncio=names[:6], rules={"heartbeat_s": 1.0})
    try:
        node.wait_all()
        time.sleep(1.0)
        pids = node.processes()

        before, began = _cpu_s(pids), time.monotonic()
        time.sleep(4.0)
        share = (_cpu_s(pids) - before) / (time.monotonic() - began)

        assert share < 0.02
    finally:
        node.stop()


def _cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
