"""Long lists of bans on a whole node: all or nothing, proved, remembered, and written again into a new journal."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Node, a_node

pytestmark = pytest.mark.system

#: More than one message carries.
COUNT = 9_000


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with a_node(echo=False) as made:
        yield made


def subjects(net: int) -> list[str]:
    return [f"{net}.0.{number >> 8}.{number & 255}" for number in range(COUNT)]


def listed(node: Node, *lines: str) -> str:
    path = node.directory / "list"
    path.write_text("\n".join(["# a comment", *lines, ""]))
    return str(path)


def journal(node: Node) -> Path:
    return node.directory / "state" / "memory" / "journal.sqlite3"


def test_a_long_list_is_blocked_as_one_and_each_address_of_it_is_explained(node: Node) -> None:
    wanted = subjects(11)

    done = node.cli("block", "--file", listed(node, *wanted, wanted[0]), "--for", "1h", "--reason", "listed", "--json")

    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [row["subject"] for row in told["results"]] == wanted
    assert told["total"] == COUNT
    assert node.ask("reflex.status")["desired"] == COUNT
    assert node.ask("reflex.explain", address=wanted[-1])["drop"] is True
    why = node.json("why", wanted[5_000])
    assert (why["verdict"], why["block"]["reason"]) == ("blocked", "listed")
    node.until(lambda: node.ask("nft.status")["bans"] == COUNT, 20, 0.5)
    node.until(lambda: node.ask("memory.status")["bans"] == COUNT, 20, 0.1)
    assert node.ask("memory.history", subject=wanted[5_000])["history"][0]["kind"] == "ban"


def test_one_line_that_may_not_be_banned_leaves_everything_as_it_was(node: Node) -> None:
    before = node.ask("blocks.list", limit=1)["total"]

    done = node.cli("block", "--file", listed(node, *subjects(12), "127.0.0.1"))

    assert done.returncode == 1
    assert "127.0.0.1 is loopback" in done.stderr
    assert "nothing was changed" in done.stderr
    assert node.ask("blocks.list", limit=1)["total"] == before
    assert node.ask("reflex.explain", address=subjects(12)[0])["drop"] is False


def test_what_is_in_force_survives_a_damaged_journal_and_the_restart_of_the_policy_cell(node: Node) -> None:
    node.ask("block", subjects=["203.0.113.77"], reason="alone")
    before = node.ask("blocks.list", limit=1)["total"]
    node.until(lambda: node.ask("memory.status")["to_spread"] == 0, 20)
    epoch = node.ask("memory.status")["epoch"]

    os.kill(node.cells()["memory_cell"]["pid"], signal.SIGSTOP)  # so that it cannot mend what is broken here
    pid = node.cells()["memory_cell"]["pid"]
    for part in journal(node).parent.glob("journal.sqlite3-*"):
        part.unlink()
    journal(node).write_bytes(b"no journal any more" * 500)
    os.kill(pid, signal.SIGKILL)
    node.until(lambda: node.ask("memory.status")["epoch"] != epoch, 20)
    node.until(lambda: node.ask("memory.status")["bans"] == before, 20)

    os.kill(node.cells()["permeability"]["pid"], signal.SIGKILL)
    node.until(lambda: node.ask("blocks.list", limit=1)["total"] == before, 20)
    assert node.ask("why", address="203.0.113.77")["block"]["reason"] == "alone"
    assert node.ask("reflex.explain", address=subjects(11)[7])["drop"] is True
