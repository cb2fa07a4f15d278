"""The actor system needs no network: not a rule, not a resolver, not a peer that reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.core.client import connect
from actors.core.errors import ServiceNotRunning
from tests.support.core_node import ROOT, Node

pytestmark = [pytest.mark.system, pytest.mark.timed]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
DROP_ALL = "\n".join(
    [
        "table inet drop_all {",
        *(f"chain {hook} {{ type filter hook {hook} priority -300; policy drop; }}\n" for hook in HOOKS),
        "}\n",
    ]
)
#: Exit code 0 only when two sockets of one process can talk over loopback.
TALK_TO_MYSELF = """
import socket
ear = socket.create_server(("127.0.0.1", 0))
socket.create_connection(ear.getsockname(), timeout=0.5)
"""


@pytest.fixture
def inside() -> Iterator[list[str]]:
    """The words that run a command in a network namespace of its own, with nothing but loopback."""
    name = f"tgcore{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        enter = ["nsenter", f"--net=/run/netns/{name}"]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
        yield enter
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@needs_root
def test_a_ruleset_that_drops_everything_loopback_included_disturbs_nothing(tmp_path: Path, inside: list[str]) -> None:
    talk = [*inside, sys.executable, "-c", TALK_TO_MYSELF]
    assert subprocess.run(talk, capture_output=True, check=False).returncode == 0
    subprocess.run([*inside, "nft", "-f", "-"], input=DROP_ALL.encode(), check=True)
    assert subprocess.run(talk, capture_output=True, check=False).returncode != 0

    node = Node(tmp_path, "alpha", "beta", "gamma", command=tuple(inside), low=["beta"], asyncio=["gamma"])
    try:
        node.wait_all(limit_s=8.0)

        assert node.ask("alpha.spread", number=7) == 2
        node.wait(lambda: node.ask("beta.look")["tokens"] == {"alpha": 7}, 2.0, "beta to hear alpha")
        before = node.cells()["gamma"]
        os.kill(before["pid"], signal.SIGKILL)
        assert node.wait_again("gamma", before["incarnation"], 3.0) < 1.0
    finally:
        node.stop()


@needs_root
def test_a_resolver_that_never_answers_does_not_delay_the_start(tmp_path: Path, inside: list[str]) -> None:
    hole = "table inet hole {\nchain input { type filter hook input priority 0; policy drop; }\n}\n"
    subprocess.run([*inside, "nft", "-f", "-"], input=hole.encode(), check=True)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    (tmp_path / "hosts").write_text("# nobody\n")
    shadow = "".join(f"mount --bind {tmp_path}/{name} /etc/{name} && " for name in ("resolv.conf", "hosts"))
    command = [*inside, "unshare", "-m", "sh", "-c", shadow + 'exec "$@"', "sh"]
    lookup = [*command, sys.executable, "-c", "import socket; socket.getaddrinfo(socket.gethostname(), None)"]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(lookup, timeout=1.0, check=False, capture_output=True)

    began = time.monotonic()
    node = Node(tmp_path / "n", "alpha", "beta", command=tuple(command))
    try:
        node.wait_all(limit_s=8.0)

        assert time.monotonic() - began < 2.0
    finally:
        node.stop()


def test_without_a_service_the_client_says_so_at_once(tmp_path: Path) -> None:
    began = time.monotonic()

    with pytest.raises(ServiceNotRunning, match="no Tegumentar service answers in"):
        connect(tmp_path)

    assert time.monotonic() - began < 1.0


def test_the_client_imports_nothing_heavy() -> None:
    program = (
        "import sys, actors.core.client;"
        "heavy = {'fastapi', 'numpy', 'uvicorn', 'pydantic', 'rich', 'typer', 'asyncio', 'torch', 'structlog'};"
        "print(sorted(heavy & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.strip() == "[]"


def test_a_stopped_cell_stops_nobody_else(tmp_path: Path) -> None:
    """Credit windows: the others keep their rate, the buffer is bounded, drops are counted, and it recovers."""
    node = Node(tmp_path, "source", "reader", "victim", rules={"heartbeat_s": 1.0, "missed_heartbeats": 10})
    try:
        node.wait_all()
        victim = node.cells()["victim"]
        os.kill(victim["pid"], signal.SIGSTOP)

        node.ask("source.flood", items=500, rounds=60)  # 10 000 items a second for three seconds

        node.wait(lambda: node.ask("reader.look")["items"].get("source") == 30_000, 8.0, "the reader to have it all")
        source = node.ask("source.look")
        assert 0 < source["waiting"] <= 20_000
        assert 29_200 <= source["dropped"] + source["waiting"] < 30_000  # four batches are on their way
        assert node.ask("source.spread", number=1) == 2
        node.wait(lambda: node.ask("reader.look")["tokens"].get("source") == 1, 2.0, "a token past the stopped cell")

        os.kill(victim["pid"], signal.SIGKILL)

        node.wait_again("victim", victim["incarnation"], 3.0)
        node.wait(lambda: "victim" in node.ask("source.look")["peers"], 2.0, "the source to meet the new victim")
        node.ask("source.flood", items=100, rounds=1)
        node.wait(lambda: node.ask("victim.look")["items"].get("source") == 100, 3.0, "the flow to the new victim")
    finally:
        node.stop()


def test_what_is_published_for_a_cell_that_is_away_for_a_moment_is_held(tmp_path: Path) -> None:
    node = Node(tmp_path, "alpha", "beta", rules={"backoff_first_s": 0.5})
    try:
        node.wait_all()
        before = node.cells()["beta"]
        os.kill(before["pid"], signal.SIGKILL)
        node.wait_again("beta", before["incarnation"], 3.0)  # the first restart is immediate, the second waits
        os.kill(node.cells()["beta"]["pid"], signal.SIGKILL)
        node.wait(lambda: "beta" not in node.ask("alpha.look")["peers"], 2.0, "alpha to know")

        assert node.ask("alpha.spread", number=99) == 0

        node.wait_all(limit_s=4.0)
        assert node.ask("beta.look")["tokens"] == {"alpha": 99}
    finally:
        node.stop()
