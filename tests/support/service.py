"""The real service as a process for tests: a node on a wire of its own, asked by its command line.

    with a_node() as node:                       # network, directories, `python run.py` in the node's namespace, ready
        node.json("blocks")                      # one `python run.py blocks --json`
        node.ask("posture.get")                  # the same admin socket without a new interpreter: for polling
        node.until(lambda: ..., 5)               # functional deadline

A test that fails prints the end of the service's log. Nothing stays behind, whatever happens.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.admin.lab.children import Echo, Sender
from actors.admin.lab.net import Network, node_home, owner_tag, sweep
from actors.admin.lab.observer import Observer
from actors.admin.lab.processes import Process, tree
from actors.admin.lab.service import Service
from actors.admin.lab.traffic import Spec
from actors.core.errors import TegumentarError

PORTS = [80, 22, 8081]
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def as_user(uid: int) -> list[str]:
    """The start of a command that runs as this user, without any capability or group."""
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "env", "HOME=/nonexistent"]


@dataclass
class Node:
    """A protected node with its neighbours. The service may be stopped, killed and started again."""

    net: Network
    service: Service
    directory: Path
    bpf_dir: Path
    ready_s: float = 0.0

    def cli(self, *argv: str, env: Mapping[str, str] | None = None, uid: int = 0) -> subprocess.CompletedProcess[str]:
        """One command in another shell of the node, of root or of another user; never raises for its exit code."""
        command = [sys.executable, str(ROOT / "run.py"), *argv]
        if uid:
            command = [*as_user(uid), *command]
        return self.net.node.namespace.run(*command, check=False, env=self.service.env | (env or {}))

    def launch(self, *prefix: str) -> None:
        """Start the service behind a command that changes what it may do (setpriv, env); returns at once."""
        with open(self.service.log, "ab") as sink:
            self.service.process = self.net.node.namespace.popen(
                *prefix, sys.executable, str(ROOT / "run.py"), env=self.service.env, stdout=sink, stderr=sink, cwd=ROOT
            )

    def json(self, *argv: str) -> Any:
        """One reading command with ``--json``; a failure of the command fails the test."""
        done = self.cli(*argv, "--json")
        assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def ask(self, verb: str, **args: Any) -> Any:
        return self.service.ask(verb, **args)

    def cells(self) -> dict[str, dict[str, Any]]:
        rows = self.ask("cells")
        return {row["name"]: row for row in (rows["cells"] if isinstance(rows, dict) else rows)}

    def blocks(self) -> dict[str, dict[str, Any]]:
        """Rows of ``blocks`` by subject."""
        rows = self.ask("blocks.list", limit=1000)
        return {row["subject"]: row for row in (rows["blocks"] if isinstance(rows, dict) else rows)}

    def is_proven(self, subject: str) -> bool:
        return bool(self.blocks().get(subject, {}).get("proven"))

    def processes(self) -> list[Process]:
        """The launcher and everything below it."""
        return tree(self.service.pid())

    def nft(self, text: str) -> None:
        """Apply a ruleset in the node's namespace."""
        self.net.node.namespace.run("nft", "-f", "-", text=text)

    def until(self, happened: Callable[[], Any], limit_s: float, step_s: float = 0.02) -> float:
        """Seconds until it happened; fails the test after the limit. While the service does not answer, it has not."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(TegumentarError):
                if happened():
                    return time.monotonic() - began
            waited = time.monotonic() - began
            assert waited <= limit_s, f"not within {limit_s} s; the service's last words:\n{self.service.last_words()}"
            time.sleep(step_s)


@contextlib.contextmanager
def a_node(
    settings: Mapping[str, str] | None = None,
    *,
    start: bool = True,
    echo: bool = True,
    prepare: Callable[[Network], None] | None = None,
) -> Iterator[Node]:
    """A node on a wire with an attacker and an innocent client. ``prepare`` may change the network before the start."""
    sweep()
    tag = owner_tag()
    with contextlib.ExitStack() as stack:
        directory, pins = stack.enter_context(node_home(tag))
        net = stack.enter_context(Network(tag=tag))
        if prepare is not None:
            prepare(net)
        if echo:
            application = Echo(net.node, PORTS, directory / "helpers.log")
            stack.callback(application.close)
            application.wait_ready()
        service = Service(net.node, directory, pins, settings)
        stack.callback(service.stop)
        node = Node(net=net, service=service, directory=directory, bpf_dir=pins)
        try:
            if start:
                node.ready_s = service.start()
            yield node
        except BaseException:
            print(f"--- the end of {service.log} ---\n{service.last_words()}", file=sys.stderr)
            raise


@contextlib.contextmanager
def a_witness(node: Node) -> Iterator[Observer]:
    """Counts what comes through every filter from 10.66.0.0/16 and fd66::/16."""
    observer = Observer(node.net.node.namespace, ["10.66.0.0/16"], ["fd66::/16"])
    try:
        yield observer
    finally:
        observer.close()


@contextlib.contextmanager
def knocking(node: Node, source: str, *, rate: int = 500, port: int = 80, kind: str = "udp") -> Iterator[Sender]:
    """A forged source sends all through the block; far below every budget unless the rate says otherwise."""
    attacker, target = node.net.attacker, node.net.node
    spec = Spec(
        kind=kind, source=source, target=target.address(6 if ":" in source else 4), source_mac=attacker.mac,
        target_mac=target.mac, interface=attacker.interface, rate=rate, seconds=120, port=port,
        times=str(node.directory / f"times-{source}"),
    )  # fmt: skip
    sender = Sender(attacker, spec, node.directory / "helpers.log")
    try:
        sender.begin()
        node.until(lambda: sender.sent > 0, 5)
        yield sender
    finally:
        sender.stop()
