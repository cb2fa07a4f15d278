"""``python run.py lab SCENARIO --json`` with the real service: real packets, judged by the lab's own criteria."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.admin.lab.net import BPFFS, NETNS_DIR
from tests.support.netns import sweep

pytestmark = [pytest.mark.system, pytest.mark.kernel]
ROOT = Path(__file__).resolve().parents[2]
KEYS = ["scenario", "ok", "seed", "reaction_ms", "sent", "dropped", "leaked", "innocent", "cells", "timeline"]
SCENARIOS = ["syn-flood", "udp-flood", "banned-source", "port-scan", "posture", "kill-cells"]


def lab(*argv: str, timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run.py", "lab", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)


def begin(*argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "run.py", "lab", *argv]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def traces(pid: int) -> list[str]:
    """What the lab of this process left on the machine."""
    places = (NETNS_DIR, BPFFS, Path("/tmp"))
    return sorted(str(path) for place in places for path in place.glob(f"tglab-{pid}-*"))


def stands(pid: int) -> bool:
    """Whether the lab of this process has a node with a service in it."""
    return any(Path(path, "service.log").exists() for path in traces(pid) if path.startswith("/tmp"))


def wait_until(happened, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["syn-flood", "udp-flood", "banned-source", "port-scan", "posture"])
def test_every_criterion_of_the_scenario_holds_in_both_families(name):
    done = lab(name, "--json", "--seconds", "2")

    told = json.loads(done.stdout)
    failed = [row["text"] for row in told["timeline"] if row["event"] == "criterion" and not row["ok"]]
    assert failed == []
    assert (done.returncode, told["ok"], list(told), told["scenario"]) == (0, True, KEYS, name)
    assert told["leaked"] == 0
    assert told["sent"] > 0
    assert told["innocent"]["lost"] == 0
    assert told["cells"]


def test_without_a_name_the_scenarios_are_listed():
    done = lab()

    assert done.returncode == 0
    assert all(name in done.stdout for name in SCENARIOS)


def test_an_unknown_scenario_is_refused_with_the_list_of_those_there_are():
    done = lab("sin-flood")

    assert done.returncode == 2
    assert "syn-flood" in done.stderr
    assert done.stdout == ""


def test_without_root_the_lab_says_what_it_needs():
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

    done = subprocess.run([*user, sys.executable, "run.py", "lab", "posture"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 4
    assert "root" in done.stderr


def test_on_a_lower_rung_of_the_ladder_the_reflexes_are_the_same():
    done = lab("syn-flood", "--json", "--seconds", "1", "--rung", "generic", "--family", "4")

    told = json.loads(done.stdout)
    assert [row["text"] for row in told["timeline"] if row["event"] == "criterion" and not row["ok"]] == []


def test_several_labs_at_once_do_not_clash_and_leave_nothing_however_they_end():
    finished, stopped, killed = (begin("banned-source", "--family", "4", "--seconds", "1", "--json") for _ in range(3))
    try:
        wait_until(lambda: all(stands(one.pid) for one in (finished, stopped, killed)), 30)

        stopped.send_signal(signal.SIGTERM)
        killed.kill()

        assert stopped.wait(20) == 128 + signal.SIGTERM
        assert traces(stopped.pid) == []
        killed.wait(5)
        assert traces(killed.pid) != [], "SIGKILL gives nobody the time to tidy up"
        children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if of_lab(pid, killed.pid)]
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 5)
        sweep()
        assert traces(killed.pid) == []
        assert finished.wait(60) == 0
        assert traces(finished.pid) == []
    finally:
        for one in (finished, stopped, killed):
            one.kill()
            one.wait()


def of_lab(pid: int, owner: int) -> bool:
    """Whether a process was started for the lab of this owner."""
    with contextlib.suppress(OSError):
        return f"/tglab-{owner}-".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False
