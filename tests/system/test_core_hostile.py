"""Hostile frames to every socket of a running actor system, from root and from the service's own low user."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from thespian.actors import ActorAddress, ActorExitRequest
from thespian.system.messages.admin import PendingActor, SystemShutdown

from actors.core.capability import FALLBACK_ID
from actors.core.sockets import UnixAddress
from tests.support.core_node import ROOT, Node

pytestmark = [pytest.mark.system, pytest.mark.timed]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    running = Node(tmp_path_factory.mktemp("h"), "alpha", "beta", low=["beta"])
    try:
        running.wait_all()
        yield running
    finally:
        running.stop()


class Bomb:
    """What runs a command when it is unpickled in the ordinary way."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def evil_frames(trace: Path) -> dict[str, bytes]:
    sender = ActorAddress(UnixAddress("admin"))
    strange_sender = ActorAddress(UnixAddress("admin"))
    strange_sender.eqOverride = "not callable"  # type: ignore[attr-defined]

    def frame(content: Any) -> bytes:
        body = pickle.dumps(content)
        return b"%d>" % len(body) + body

    stop = msgspec.msgpack.encode({"v": 1, "kind": "StopNode", "cell": "launcher", "inc": 0, "body": {}})
    forged = msgspec.msgpack.encode({"v": 1, "kind": "Stop", "cell": "basal_layer", "inc": 1, "body": {}})
    return {
        "bomb": frame(Bomb(trace)),
        "bomb in an envelope": frame((sender, Bomb(trace))),
        "bomb in a message": frame((sender, ActorExitRequest(Bomb(trace)))),
        "shutdown": frame((sender, SystemShutdown())),
        "exit": frame((sender, ActorExitRequest())),
        "create": frame((sender, PendingActor("os.system", None, 1, None, None))),
        "stop node": frame((sender, stop)),
        "forged stop": frame((sender, forged)),
        "strange sender": frame((strange_sender, b"x")),
        "not a frame": frame([1, 2, 3]),
        "text": frame((sender, "text")),
        "giant header": b"99999999999>" + b"x" * 100,
        "endless header": b"1" * 4000,
        "empty header": b">>>>",
        "negative header": b"-5>abc",
        "half a header": b"12",
        "half a frame": b"5000>abc",
        "random": os.urandom(3000),
        "recursion": b"%d>" % 20_001 + b"(" * 20_000 + b".",
    }


def send_to_all(paths: list[str], frames: list[bytes]) -> dict[str, int]:
    """Every frame to every socket; how many connections were refused and how many frames went out."""
    result = {"sent": 0, "refused": 0}
    for path in paths:
        for data in frames:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(0.5)
                try:
                    line.connect(path)
                    line.sendall(data)
                    line.shutdown(socket.SHUT_WR)
                    line.recv(200)
                    result["sent"] += 1
                except (PermissionError, FileNotFoundError):
                    result["refused"] += 1
                except OSError:
                    result["sent"] += 1  # it hung up on us, which is an answer
    return result


#: Run as another user, with the socket directory already open (its cells have it open too): attack, then give orders.
AS_SOMEBODY_ELSE = """
import json, os, sys
from pathlib import Path
import tests.system.test_core_hostile as hostile
from actors.core import sockets
from actors.core.client import deliver
from actors.core.codec import encode
from actors.core.messages import Ask

paths, user, trace = json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
fd = os.open(Path(paths[0]).parent, os.O_PATH)
os.setgroups([user])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
reachable = [f"/proc/self/fd/{fd}/{Path(path).name}" for path in paths]
print(json.dumps(hostile.send_to_all(reachable, list(hostile.evil_frames(trace).values()))))
sockets._Directory.fd = fd
for verb in ("cells", "cell.restart", "reload"):
    try:
        deliver("basal_layer", "admin", encode(Ask(id=1, verb=verb, args={"name": "alpha"}), "client", 0), 1.0)
    except OSError:
        pass
"""


def listening(node: Node) -> list[str]:
    """Every socket file in the node's directory that the kernel lists as listening."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    paths = [fields[7] for line in lines if len(fields := line.split()) > 7 and fields[3] == "00010000"]
    return sorted(path for path in paths if path.startswith(str(node.run_dir)))


def test_no_evil_frame_from_root_executes_or_kills_anything(node: Node, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    before = node.processes(), {name: row["pid"] for name, row in node.cells().items()}
    sockets = listening(node)
    assert len(sockets) >= 4  # admin, supervisor, two cells

    result = send_to_all(sockets, list(evil_frames(trace).values()))

    assert result["sent"] == len(sockets) * len(evil_frames(trace))
    assert not trace.exists()
    assert (node.processes(), {name: row["pid"] for name, row in node.cells().items()}) == before
    assert node.ask("alpha.spread", number=1) == 1
    node.wait(lambda: node.ask("beta.look")["tokens"] == {"alpha": 1}, 2.0, "beta to hear alpha")
    counters = node.ask("alpha.look")["counters"]
    assert counters["refused_frames"] >= 9
    assert counters["refused_headers"] >= 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("user", [FALLBACK_ID, 12345])
def test_no_other_user_can_administer_or_break_the_node(
    node: Node, tmp_path_factory: pytest.TempPathFactory, user: int
) -> None:
    """The low user reaches the sockets (its cells must) but only with bytes; a stranger does not reach them at all."""
    trace = Path("/tmp") / f"trace-{os.getpid()}-{user}"
    before = node.processes()
    done = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY_ELSE, json.dumps(listening(node)), str(user), str(trace)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["sent"] == 0) == (user != FALLBACK_ID)
    assert not trace.exists()
    assert node.processes() == before
    assert node.cells()["alpha"]["restarts"] == 0


def test_the_actor_system_has_no_tcp_or_udp_port(node: Node) -> None:
    inodes = set()
    for pid in node.processes():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            target = str(fd.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])

    ports = {
        line.split()[9]
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    }

    assert inodes
    assert inodes & ports == set()


def test_a_flood_of_connections_does_not_stop_the_node(node: Node) -> None:
    lines = []
    for path in listening(node):
        for _ in range(60):
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(0.2)
            try:
                line.connect(path)
                line.send(b"77")
            except OSError:
                pass
            lines.append(line)

    began = time.monotonic()
    answer = node.ask("alpha.spread", timeout_s=5.0, number=5)

    for line in lines:
        line.close()
    assert answer == 1
    assert time.monotonic() - began < 2.0
