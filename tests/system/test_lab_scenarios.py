"""``python run.py lab SCENARIO --json`` with the real service: real packets, judged by the lab's own criteria."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.admin.lab.net import BPFFS, NETNS_DIR
from tests.support.netns import sweep

pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]
ROOT = Path(__file__).resolve().parents[2]
KEYS = ["scenario", "ok", "seed", "reaction_ms", "sent", "dropped", "leaked", "innocent", "cells", "timeline"]
SCENARIOS = ["syn-flood", "udp-flood", "random-syn-flood", "banned-source", "port-scan", "posture", "kill-cells"]


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
    """Whether the lab of this process has a node with a running service in it."""
    links = (Path(path, "run/actors/basal_layer") for path in traces(pid) if path.startswith("/tmp"))
    return any(link.exists() for link in links)


def wait_until(happened, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


def failed_criteria(told: dict, *, alone: bool = True) -> list[str]:
    """What did not hold, followed by everything else that went wrong, for whoever reads the failure.

    How fast things went says nothing while several labs share two processors; that they went, says all."""
    rows = [row for row in told["timeline"] if row.get("ok") is False]
    criteria = [row["text"] for row in rows if row["event"] == "criterion" and (alone or not row.get("timed"))]
    return criteria and [*criteria, *(row["text"] for row in rows if row["event"] != "criterion")]


@pytest.mark.parametrize("name", ["syn-flood", "udp-flood"])
def test_every_criterion_of_a_flood_holds_in_both_families(name):
    done = lab(name, "--json", "--seconds", "1")

    told = json.loads(done.stdout)
    assert failed_criteria(told) == []
    assert (done.returncode, told["ok"], list(told), told["scenario"]) == (0, True, KEYS, name)
    assert told["leaked"] == 0
    assert told["reaction_ms"] < 50
    assert told["sent"] > 20_000
    assert told["innocent"]["lost"] == 0
    assert {cell["name"]: cell["restarts"] for cell in told["cells"]}.get("reflex_arc") == 0


def test_a_syn_flood_from_random_sources_leaves_the_innocent_able_to_connect():
    done = lab("random-syn-flood", "--json", "--seconds", "2")

    told = json.loads(done.stdout)
    assert failed_criteria(told, alone=False) == [], "the flood itself uses both processors"
    assert told["innocent"]["lost"] == 0 < told["innocent"]["sent"]


TOGETHER = {
    "banned-source": ["banned-source"],
    "port-scan": ["port-scan"],
    "posture": ["posture"],
    "syn-flood on a lower rung": ["syn-flood", "--rung", "generic", "--family", "4"],
}


@pytest.fixture(scope="module")
def played_together() -> dict[str, tuple[int, dict]]:
    """All of them at once on one machine: exit code and report of each."""
    command = [sys.executable, "run.py", "lab", "--json", "--seconds", "1"]
    running = {
        name: subprocess.Popen(
            [*command, *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for name, argv in TOGETHER.items()
    }
    try:
        said = {name: one.communicate(timeout=100)[0] for name, one in running.items()}
    finally:
        for one in running.values():
            one.kill()
            one.wait()
    return {name: (running[name].returncode, json.loads(text)) for name, text in said.items()}


@pytest.mark.parametrize("name", TOGETHER)
def test_scenarios_hold_their_criteria_even_when_several_are_played_at_once(name, played_together):
    returncode, told = played_together[name]

    assert failed_criteria(told, alone=False) == []
    assert returncode == (0 if told["ok"] else 1)
    assert list(told) == KEYS
    assert told["leaked"] == 0 < told["sent"]
    assert told["innocent"]["lost"] == 0


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


def test_a_lab_leaves_nothing_however_it_ends():
    stopped, killed = (begin("banned-source", "--family", "4", "--json") for _ in range(2))
    try:
        wait_until(lambda: stands(stopped.pid) and stands(killed.pid), 30)

        inside = processes_of(killed.pid)
        assert len(inside) > 3, "the service, the echo and the clients live in its namespaces"
        stopped.send_signal(signal.SIGTERM)
        killed.kill()

        assert stopped.wait(20) == 128 + signal.SIGTERM
        assert traces(stopped.pid) == []
        killed.wait(5)
        assert traces(killed.pid) != [], "SIGKILL gives nobody the time to tidy up"
        wait_until(lambda: not [pid for pid in inside if Path(f"/proc/{pid}").exists()], 5)
        sweep()
        assert traces(killed.pid) == []
    finally:
        for one in (stopped, killed):
            one.kill()
            one.wait()


def processes_of(owner: int) -> list[int]:
    """Everything that runs in the namespaces of this owner's lab."""
    names = [path.name for path in NETNS_DIR.glob(f"tglab-{owner}-*")]
    found = [subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True) for name in names]
    return [int(word) for done in found for word in done.stdout.split()]
