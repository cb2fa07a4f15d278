"""The command line and the gateway before the real service: what is typed, what comes back, with which exit code."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from actors.core.capability import effective
from tests.support.service import Node, a_node
from tests.support.somebody import AS_NOBODY

pytestmark = [pytest.mark.system, pytest.mark.kernel]

ROOT = Path(__file__).resolve().parents[2]
READING = [
    ["status"],
    ["cells"],
    ["cells", "--wiring"],
    ["qualia"],
    ["feeds"],
    ["posture"],
    ["blocks"],
    ["tolerate"],
    ["history"],
    ["why", "198.51.100.99"],
    ["config"],
    ["config", "check"],
]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with a_node(echo=False) as running:
        yield running


@pytest.fixture
def http(node: Node) -> Iterator[httpx2.Client]:
    """A client inside the node's namespace."""
    with node.net.node.namespace.entered(), httpx2.Client(base_url="http://127.0.0.1:8085", timeout=10) as client:
        client.get("/livez")
        yield client


def token(node: Node) -> dict[str, str]:
    return {"Authorization": f"Bearer {(node.directory / 'state' / 'gateway.token').read_text().strip()}"}


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", READING, ids=" ".join)
def test_a_reading_verb_prints_one_json_document_and_nothing_else(node: Node, verb: list[str]) -> None:
    done = node.cli(*verb, "--json")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    json.loads(done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("verb", "columns"), [(verb, "80") for verb in READING] + [(["status"], "120"), (["blocks"], "120")], ids=str
)
def test_a_reading_verb_fits_the_width_and_has_no_colour_outside_a_terminal(
    node: Node, verb: list[str], columns: str
) -> None:
    done = node.cli(*verb, env={"COLUMNS": columns})

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "\x1b" not in done.stdout
    if verb != ["config", "check"]:
        assert max(len(line) for line in done.stdout.splitlines()) <= int(columns)


def test_a_watched_verb_prints_a_document_every_second_until_it_is_stopped(node: Node) -> None:
    watching = node.net.node.namespace.popen(
        sys.executable, str(ROOT / "run.py"), "cells", "--watch", "--json", env=node.service.env, stdout=subprocess.PIPE
    )
    try:
        assert watching.stdout is not None
        documents = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        code = watching.wait(10)
    finally:
        watching.kill()
        watching.wait()

    assert all(document["cells"] for document in documents)
    assert code == 0


def test_the_status_names_every_cell_and_the_posture(node: Node) -> None:
    document = node.json("status")

    assert {cell["name"] for cell in document["cells"]} >= {"permeability", "keratinocyte", "gateway", "memory_cell"}
    assert document["posture"]["posture"] == "balanced"
    assert document["node"]["ready"] is True


# --- changing -----------------------------------------------------------------------------------------------


def test_addresses_are_blocked_listed_explained_and_released(node: Node) -> None:
    blocked = node.cli("block", "198.51.100.7", "2001:DB8::7", "--for", "10m", "--reason", "tried the door", "--json")
    listed = {block["subject"]: block for block in node.json("blocks")["blocks"]}
    explained = node.json("why", "198.51.100.7")
    released = node.cli("release", "198.51.100.7", "2001:db8::7")

    assert blocked.returncode == 0
    assert len(json.loads(blocked.stdout)["results"]) == 2
    for subject in ("198.51.100.7", "2001:db8::7"):
        assert listed[subject]["reason"] == "tried the door"
        assert listed[subject]["by"].startswith("cli uid 0")
        assert 0 < listed[subject]["left_s"] <= 600
        assert "proven" in listed[subject]
    assert explained["blocked"] is True
    assert released.returncode == 0
    assert "198.51.100.7" not in {block["subject"] for block in node.json("blocks")["blocks"]}


def test_a_list_of_addresses_comes_from_a_file_and_is_sent_in_parts(node: Node, tmp_path: Path) -> None:
    addresses = [f"203.0.113.{n}" for n in range(1, 255)]
    listed = tmp_path / "list.txt"
    listed.write_text("# neighbours\n" + "\n".join(f"{address}  # again" for address in addresses) + "\n\n")

    done = node.cli("block", "--file", str(listed))

    assert done.returncode == 0, done.stderr
    assert "254 addresses blocked" in done.stdout
    found = {block["subject"] for block in node.json("blocks", "--limit", "5000")["blocks"]}
    assert found >= set(addresses)
    assert node.cli("release", "--file", str(listed)).returncode == 0


def test_a_posture_is_set_for_a_time_and_confirmed(node: Node) -> None:
    unconfirmed = json.loads(node.cli("posture", "HARDENED", "--for", "1h", "--confirm-within", "60", "--json").stdout)
    confirmed = json.loads(node.cli("posture", "confirm", "--json").stdout)
    shown = node.cli("posture").stdout

    node.cli("posture", "balanced")

    assert unconfirmed["posture"] == "hardened"
    assert unconfirmed["confirm_by_unix_s"] > 0
    assert confirmed["confirm_by_unix_s"] == 0
    assert "HARDENED" in shown
    assert node.json("posture")["posture"] == "balanced"


def test_a_prefix_is_tolerated_and_forgotten(node: Node) -> None:
    node.cli("tolerate", "192.0.2.0/24", "--comment", "the office", "--for", "2h")
    listed = {entry["subject"]: entry for entry in node.json("tolerate")["tolerance"]}

    assert listed["192.0.2.0/24"]["comment"] == "the office"
    assert node.cli("tolerate", "--remove", "192.0.2.0/24").returncode == 0
    assert node.json("tolerate")["tolerance"] == []


# --- exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["block", "banana"], 2),
        (["block"], 2),
        (["block", "198.51.100.8", "--for", "soon"], 2),
        (["block", "--file", "/nowhere/list"], 2),
        (["posture", "ajar"], 2),
        (["posture", "--for", "10m"], 2),
        (["nonsense"], 2),
        (["blocks", "--limit", "0"], 2),
        (["block", "127.0.0.1"], 1),
        (["posture", "confirm"], 1),
        (["tolerate", "--remove", "192.0.2.77"], 3),
    ],
)
def test_what_cannot_be_done_ends_with_its_code_and_one_sentence(node: Node, argv: list[str], code: int) -> None:
    before = node.ask("blocks.list", limit=1)["total"]

    done = node.cli(*argv)

    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert node.ask("blocks.list", limit=1)["total"] == before


def test_a_refusal_is_told_to_a_program_in_its_json_too(node: Node) -> None:
    done = node.cli("block", "127.0.0.1", "--json")

    told = json.loads(done.stdout)
    assert done.returncode == told["exit_code"] == 1
    assert told["problem"]
    assert told["problem"] in done.stderr


def test_the_node_itself_is_never_blocked(node: Node) -> None:
    for own in (node.net.node.ipv4, node.net.node.ipv6):
        done = node.cli("block", own)

        assert done.returncode == 1
        assert own in done.stderr


def test_without_a_service_every_verb_says_so_and_ends_with_5(tmp_path: Path) -> None:
    environment = clean_environment() | {"TEGUMENTAR_RUN_DIR": str(tmp_path)}

    for verb in (["status"], ["blocks", "--json"], ["block", "198.51.100.7"], ["posture", "lockdown"]):
        done = run_py(verb, environment)

        assert done.returncode == 5
        assert "no Tegumentar service answers" in done.stderr
        assert "what to do" in done.stderr


def test_another_user_may_not_administer_the_node(node: Node) -> None:
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "run.py", "status"],
        cwd=ROOT,
        env=node.service.env | {"HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_wrong_core_settings_end_with_78_before_anything_is_started(tmp_path: Path) -> None:
    environment = clean_environment() | {
        "TEGUMENTAR_RUN_DIR": str(tmp_path / "run"),
        "TEGUMENTAR_INTERFACES": "lo",
        "TEGUMENTAR_PERMEABILITY__TOLERATE": "everybody",
    }

    for verb in ([], ["status"], ["config", "check"]):
        done = run_py(verb, environment)

        assert done.returncode == 78
        assert "permeability.tolerate" in done.stderr
        assert "everybody" in done.stderr
    assert not (tmp_path / "run").exists()


# --- the gateway --------------------------------------------------------------------------------------------


def test_the_gateway_answers_for_the_node(node: Node, http: httpx2.Client) -> None:
    assert http.get("/readyz").status_code == 200
    status: dict[str, Any] = http.get("/api/tegumentar/status").json()
    assert status["node"]["ready"] is True
    assert set(http.get("/api/tegumentar/qualia").json()) >= {"pressure", "temperature", "pain", "integrity"}
    assert 'tegumentar_cell_state{cell="permeability",state="healthy"} 1.0' in http.get("/metrics").text


def test_kernel_totals_are_on_the_metrics_page_while_the_reflex_arc_is_dead(node: Node, http: httpx2.Client) -> None:
    before = judged(http)
    os.kill(node.cells()["reflex_arc"]["pid"], signal.SIGKILL)

    with node.net.innocent.namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greeter:
        for _ in range(5):
            greeter.sendto(b"hello", (node.net.node.ipv4, 9))

    node.until(lambda: judged(http) >= before + 5, 2)
    node.until(lambda: node.cells()["reflex_arc"]["state"] == "healthy", 10)


def judged(http: httpx2.Client) -> float:
    """Packets that the kernel program has judged, from the metrics page."""
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("tegumentar_packets_total{")]
    assert lines
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_posture_set_over_http_is_the_posture_of_the_node(node: Node, http: httpx2.Client) -> None:
    refused = http.post("/api/tegumentar/posture", json={"posture": "hardened"})
    accepted = http.post("/api/tegumentar/posture", json={"posture": "HARDENED", "for": "10m"}, headers=token(node))
    shown = node.json("posture")
    http.post("/api/tegumentar/posture", json={"posture": "balanced"}, headers=token(node))

    assert refused.status_code == 401
    assert accepted.status_code == 200
    assert shown["posture"] == "hardened"
    assert "127.0.0.1" in shown["by"]


def test_a_block_made_over_http_is_seen_by_the_command_line(node: Node, http: httpx2.Client) -> None:
    body = {"subjects": ["198.51.100.21"], "ttl": "5m", "reason": "over http"}

    made = http.post("/api/tegumentar/blocks", json=body, headers=token(node))
    explained = node.json("why", "198.51.100.21")
    released = http.delete("/api/tegumentar/blocks/198.51.100.21", headers=token(node))

    assert made.status_code == 200, made.text
    assert explained["blocked"] is True
    assert released.status_code == 200
    assert node.json("why", "198.51.100.21")["blocked"] is False


def test_what_the_gate_refuses_is_a_conflict(node: Node, http: httpx2.Client) -> None:
    answer = http.post("/api/tegumentar/blocks", json={"subjects": ["::1"]}, headers=token(node))

    assert answer.status_code == 409
    assert answer.json()["detail"]


def test_the_gateway_faces_the_network_without_any_privilege(node: Node) -> None:
    pid = node.cells()["gateway"]["pid"]
    path = node.directory / "state" / "gateway.token"

    uids = Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split("\n")[0].split()

    assert effective(pid) == frozenset()
    assert "0" not in uids
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o600)


def test_a_killed_gateway_comes_back_with_the_same_token(node: Node, http: httpx2.Client) -> None:
    before = token(node)
    pid = node.cells()["gateway"]["pid"]

    os.kill(pid, signal.SIGKILL)

    def another_is_healthy() -> bool:
        row = node.cells()["gateway"]  # one look: state and pid of the same moment
        return row["state"] == "healthy" and row["pid"] != pid

    node.until(another_is_healthy, 5)
    answer = http.post("/api/tegumentar/posture", json={"posture": "balanced"}, headers=before)
    assert answer.status_code == 200


def test_events_tell_of_a_block_while_it_happens(node: Node, http: httpx2.Client) -> None:
    with http.stream("GET", "/api/tegumentar/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: hello"
        node.cli("block", "198.51.100.33", "--for", "1m")
        enforced = next(line for line in lines if line.startswith("data:") and "198.51.100.33" in line)

    assert "orders" in json.loads(enforced.removeprefix("data: "))


# --- settings that cost one part ----------------------------------------------------------------------------


def test_a_taken_port_costs_the_gateway_and_nothing_else() -> None:
    with a_node(start=False, echo=False) as node:
        with node.net.node.namespace.entered():
            squatter = socket.create_server(("127.0.0.1", 8085))
        try:
            node.service.start()
            node.until(lambda: node.cells()["gateway"]["state"] == "degraded", 10)
            gateway = node.cells()["gateway"]

            assert "8085" in gateway["reason"]
            assert "gateway.port" in gateway["remedy"]
            assert node.cells()["permeability"]["state"] == "healthy"
        finally:
            squatter.close()

        node.until(lambda: node.cells()["gateway"]["state"] == "healthy", 15)


def test_a_wrong_setting_of_the_gateway_degrades_it_and_the_rest_runs() -> None:
    settings = {"TEGUMENTAR_GATEWAY__PORT": "eighty", "TEGUMENTAR_NONSENSE": "1"}
    with a_node(settings, echo=False) as node:
        node.until(lambda: node.cells()["gateway"]["state"] == "degraded", 10)

        assert "gateway.port = 'eighty'" in node.cells()["gateway"]["reason"]
        assert node.cells()["permeability"]["state"] == "healthy"
        assert "TEGUMENTAR_NONSENSE" in node.service.log.read_text()


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TEGUMENTAR_")}


def run_py(argv: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
