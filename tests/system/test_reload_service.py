"""Settings read again by a running node: exactly the cells that need it are started anew, and protection stands."""

import contextlib
import json
import os
import signal
import socket

import pytest

from tests.support.service import a_node

pytestmark = [pytest.mark.system, pytest.mark.kernel]
BANNED = "203.0.113.66"


@pytest.fixture
def node(tmp_path):
    config = tmp_path / "tegumentar.toml"
    config.write_text("")
    with a_node({"TEGUMENTAR_CONFIG": str(config)}, echo=False) as running:
        running.until(lambda: all(row["state"] != "starting" for row in running.cells().values()), 10)
        running.config = config
        yield running


def reloaded(node, text):
    """What `reload` answers after the settings file was changed, once the cells that it names are back."""
    before = {name: row["pid"] for name, row in node.cells().items()}
    node.config.write_text(text)
    done = node.cli("reload", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)

    def back():
        rows = node.cells()
        return all(rows[name]["pid"] not in (0, before[name]) for name in answer["restarting"])

    node.until(back, 15)
    node.until(lambda: node.ask("node")["ready"], 5)
    after = node.cells()
    anew = {name: row["last_cause"] for name, row in after.items() if row["pid"] != before[name]}
    assert set(anew) == set(answer["restarting"]), anew
    return answer


def test_a_reload_starts_anew_what_the_change_concerns_and_bans_stay(node):
    assert node.cli("block", BANNED, "--for", "10m").returncode == 0

    tolerance = reloaded(node, '[permeability]\ntolerate = ["198.51.100.9"]\n')

    assert tolerance["restarting"] == ["permeability"]
    node.until(lambda: [row["subject"] for row in node.ask("tolerance.list")["tolerance"]] == ["198.51.100.9"], 5)
    node.until(lambda: node.is_proven(BANNED), 5)

    rungs = reloaded(node, '[permeability]\ntolerate = ["198.51.100.9"]\n[reflex]\nrungs = ["generic", "observe"]\n')

    assert rungs["restarting"] == ["reflex_arc"]
    node.until(lambda: next(iter(node.ask("reflex.status")["interfaces"].values()))["rung"] == "generic", 10)
    node.until(lambda: node.is_proven(BANNED), 5)


def test_a_reload_that_changes_nothing_starts_nothing_and_a_wrong_file_changes_nothing(node):
    assert reloaded(node, "# nothing new\n")["restarting"] == []

    node.config.write_text('[permeability]\nposture = "ajar"\n')
    refused = node.cli("reload")

    assert refused.returncode == 1
    assert "those in force stay" in refused.stderr
    assert node.ask("posture.get")["posture"] == "balanced"


def test_the_gateway_answers_on_a_socket_file_after_a_reload_and_again_after_its_death(node):
    path = node.directory / "gateway.sock"

    answer = reloaded(node, f'[gateway]\nsocket = "{path}"\n')

    assert answer["restarting"] == ["gateway"]
    node.until(lambda: b"200 OK" in get(path, "/livez"), 5)
    os.kill(node.cells()["gateway"]["pid"], signal.SIGKILL)
    node.until(lambda: b"200 OK" in get(path, "/livez"), 5)
    assert node.cells()["gateway"]["state"] == "healthy"


def get(path, target):
    """The whole answer; nothing while nobody is there to give one."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(path))
        line.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: line.recv(4096), b""))
    return b""


def test_one_cell_is_restarted_from_the_command_line(node):
    before = node.cells()["merkel"]["pid"]

    done = node.cli("restart", "merkel")

    assert done.returncode == 0, done.stderr
    node.until(lambda: node.cells()["merkel"]["pid"] not in (0, before), 5)
    assert node.cli("restart", "nobody").returncode == 3
