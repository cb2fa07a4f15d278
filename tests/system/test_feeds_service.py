"""Feeds in the real service: what a list names is dropped by the kernel, and why is said."""

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Node, a_node

pytestmark = [pytest.mark.system, pytest.mark.kernel]
PORT = 80


@pytest.fixture(scope="module")
def lists() -> Iterator[Path]:
    """A directory that the unprivileged cell can read, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="tegumentar-lists-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "attackers.txt").write_text("203.0.113.5\n")
        yield directory


@pytest.fixture(scope="module")
def node(lists: Path) -> Iterator[Node]:
    settings = {"ENABLED": "true", "DIRECTORY": str(lists), "ALLOW_PRIVATE": "true"}
    with a_node({f"TEGUMENTAR_FEEDS__{name}": value for name, value in settings.items()}) as node:
        node.until(lambda: node.ask("feeds.list")["generation"], 5)
        yield node


def connects(node: Node, role: str, family: int) -> bool:
    """Whether a TCP connection from this neighbour is accepted."""
    host = node.net.hosts[role]
    with host.namespace.entered():
        client = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
    with client:
        client.settimeout(0.6)
        return client.connect_ex((node.net.node.address(family), PORT)) == 0


def publish(node: Node, lists: Path, *entries: str) -> None:
    """Write the list, have it read, and wait until the kernel program has it."""
    before = node.ask("feeds.list")["generation"]
    (lists / "attackers.txt").write_text("\n".join(entries) + "\n")
    assert node.ask("feeds.reload")["done"]
    node.until(lambda: node.ask("feeds.list")["generation"] > before, 5)


@pytest.mark.parametrize("family", [4, 6])
def test_who_is_on_a_list_is_dropped_and_free_again_when_taken_off(node: Node, lists: Path, family: int) -> None:
    attacker = node.net.attacker.address(family)
    before = connects(node, "attacker", family)

    publish(node, lists, attacker)
    node.until(lambda: not connects(node, "attacker", family), 5)
    others = connects(node, "innocent", family)
    why = node.json("why", attacker)
    publish(node, lists, "203.0.113.5")

    node.until(lambda: connects(node, "attacker", family), 5)
    assert before
    assert others
    assert "attackers.txt" in str(why)


def test_a_prefix_drops_everybody_in_it_but_the_node_itself(node: Node, lists: Path) -> None:
    attacker, innocent = node.net.attacker.ipv4, node.net.innocent.ipv4

    publish(node, lists, f"{attacker}/32", innocent)
    node.until(lambda: not connects(node, "attacker", 4) and not connects(node, "innocent", 4), 5)
    (lists / "attackers.txt").write_text("0.0.0.0/0\n")
    node.ask("feeds.reload")

    row = node.json("feeds")["feeds"][0]
    assert row["state"] == "quarantined"
    assert "own" in row["reason"]
    assert not connects(node, "attacker", 4), "the list from before stays in force"
    publish(node, lists, "203.0.113.5")
    node.until(lambda: connects(node, "attacker", 4), 5)


def test_the_command_line_reads_lists_again_and_its_exit_code_says_how_they_came(node: Node, lists: Path) -> None:
    (lists / "attackers.txt").write_text("203.0.113.5\n203.0.113.6\n")

    well = node.cli("feeds", "reload", "--json")
    (lists / "attackers.txt").write_text("0.0.0.0/0\n")
    ill = node.cli("feeds", "reload", "attackers.txt")
    unknown = node.cli("feeds", "reload", "nobody")
    wrong = node.cli("feeds", "forget")
    (lists / "attackers.txt").write_text("203.0.113.5\n")
    accepted = node.cli("feeds", "reload", "attackers.txt", "--accept")

    document = json.loads(well.stdout)
    assert (well.returncode, document["done"]) == (0, True)
    assert [(feed["name"], feed["entries"]) for feed in document["feeds"]] == [("attackers.txt", 2)]
    assert ill.returncode == 6
    assert "quarantined" in ill.stdout
    assert unknown.returncode == 3
    assert "no feed 'nobody' is on" in unknown.stderr
    assert wrong.returncode == 2
    assert accepted.returncode == 0


def test_killing_the_feed_cell_frees_nobody(node: Node, lists: Path) -> None:
    publish(node, lists, node.net.attacker.ipv4)
    node.until(lambda: not connects(node, "attacker", 4), 5)
    pid = node.cells()["melanocyte"]["pid"]

    os.kill(pid, signal.SIGKILL)
    during = connects(node, "attacker", 4)
    node.until(lambda: node.cells()["melanocyte"]["pid"] not in (0, None, pid), 5)
    node.until(lambda: node.ask("feeds.list")["entries_v4"] == 1, 5)

    assert not during
    assert not connects(node, "attacker", 4)


def test_the_feed_cell_has_no_power(node: Node) -> None:
    pid = node.cells()["melanocyte"]["pid"]

    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)

    assert int(status["CapEff"], 16) == 0
    assert status["Uid"].split()[0] != "0"
