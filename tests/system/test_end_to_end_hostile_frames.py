"""The actor system of a running node under hostile frames, strangers and a drop-all ruleset: nothing happens to it."""

import http.client
import os
import pickle
import random
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.support.service import NOBODY, Node, a_node

pytestmark = [pytest.mark.system, pytest.mark.kernel]


@pytest.fixture(scope="module")
def node():
    with a_node() as node:
        yield node


def sockets(node: Node) -> list[Path]:
    """Every listening AF_UNIX socket file of the running node."""
    return [path for path in node.service.run_dir.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def framed(data: bytes) -> bytes:
    return b"%d>" % len(data) + data


def hostile_frames(trace: Path, victim: str) -> dict[str, bytes]:
    """By name: what an attacker who can reach a socket would send."""
    from thespian.actors import ActorAddress, ActorExitRequest
    from thespian.system.messages.admin import SystemShutdown
    from thespian.system.messages.multiproc import LoggerConnected

    from actors.core.sockets import UnixAddress

    address = ActorAddress(UnixAddress(victim))
    rng = random.Random(7)
    return {
        "plain bomb": pickle.dumps(Bomb(trace)),
        "framed bomb": framed(pickle.dumps(Bomb(trace))),
        "enveloped bomb": framed(pickle.dumps((address, Bomb(trace)))),
        "bomb as address": framed(pickle.dumps((Bomb(trace), b"x"))),
        "exit": framed(pickle.dumps((address, ActorExitRequest(recursive=True)))),
        "shutdown": framed(pickle.dumps((address, SystemShutdown()))),
        "logger": framed(pickle.dumps((address, LoggerConnected()))),
        "create": framed(b"\x80\x05cthespian.system.messages.admin\nPendingActor\n(tR."),
        "giant header": b"107374182400>" + b"x" * 64,
        "header without end": b"9" * 4096,
        "negative header": b"-5>hello",
        "half a frame": b"5000>abc",
        "nested tuple": framed(pickle.dumps((address, (((),) * 100,) * 100))),
        "recursion": framed(b"(" * 100_000 + b"."),
        "memo bomb": framed(b"\x80\x05" + b"]r\xff\xff\xff\x7f."),
        "empty": b"",
        "random bytes": rng.randbytes(5000),
        "random frame": framed(rng.randbytes(5000)),
    }


def send(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(0.1)  # most of it deserves no answer
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            line.connect(f"/proc/self/fd/{fd}/{path.name}")
        finally:
            os.close(fd)
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            line.recv(4096)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass


def test_hostile_frames_to_every_socket_execute_nothing_kill_nothing_and_are_counted(node, tmp_path):
    trace = tmp_path / "executed"
    pids = {name: row["pid"] for name, row in node.cells().items()}
    family = node.processes()
    listening = sockets(node)
    assert len(listening) >= len(pids), "each cell listens somewhere"
    refused_before = refused(node)

    for path in listening:
        for data in hostile_frames(trace, path.name).values():
            send(path, data)

    assert not trace.exists()
    assert [process.title for process in family if not process.lives()] == []
    node.until(lambda: {name: row["pid"] for name, row in node.cells().items()} == pids, 3)
    node.until(lambda: node.ask("node")["ready"], 3)
    node.until(lambda: refused(node) > refused_before, 15)
    node.until(lambda: refused(node, "basal_layer_admin") > 0, 15)


def refused(node: Node, whose: str = "") -> int:
    """Refused frames and connections, as anybody can read them in the metrics."""
    told = [line for line in metrics(node).splitlines() if not line.startswith("#")]
    lines = [line for line in told if f"{whose}_refused" in line]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)


def metrics(node: Node) -> str:
    with node.net.node.namespace.entered():
        line = http.client.HTTPConnection("127.0.0.1", 8085, timeout=5)
        line.connect()
    line.request("GET", "/metrics")
    return line.getresponse().read().decode()


def test_the_actor_system_opens_no_tcp_or_udp_port(node):
    with node.net.node.namespace.entered():
        tables = {
            name: Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6", "udp", "udp6", "raw")
        }
    mine = {inode for process in node.processes() for inode in socket_inodes(process.pid)}

    bound = []
    for name, table in tables.items():
        for words in map(str.split, table.splitlines()[1:]):
            listens = words[3] == "0A" or name.startswith(("udp", "raw"))
            if listens and words[9] in mine:
                bound.append((name, int(words[1].rsplit(":", 1)[1], 16)))

    assert bound == [("tcp", 8085)], "the gateway on loopback, and nothing else"


def socket_inodes(pid: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def test_a_user_who_is_not_root_can_change_nothing(node):
    before = node.ask("posture.get")["posture"]

    done = node.cli("posture", "lockdown", uid=NOBODY, env={"PYTHONDONTWRITEBYTECODE": "1"})

    assert done.returncode == 4, "missing privilege"
    assert "root" in done.stderr
    assert node.ask("posture.get")["posture"] == before


def test_a_drop_all_ruleset_on_every_hook_disturbs_neither_questions_nor_recovery(node):
    node.nft("""table inet nothing_passes {
        chain a { type filter hook prerouting priority -400; policy drop; }
        chain b { type filter hook input priority -400; policy drop; }
        chain c { type filter hook output priority -400; policy drop; }
        chain d { type filter hook forward priority -400; policy drop; }
        chain e { type filter hook postrouting priority -400; policy drop; }
    }""")
    try:
        assert node.cli("cells", "--json").returncode == 0
        victim = node.cells()["merkel"]

        os.kill(victim["pid"], signal.SIGKILL)

        node.until(lambda: healthy_again(node, "merkel", victim["pid"]), 3)
        assert node.cli("block", "10.66.0.90", "--for", "1m").returncode == 0
        node.until(lambda: node.is_proven("10.66.0.90"), 5)
    finally:
        node.nft("delete table inet nothing_passes")
    time.sleep(0.1)
    assert node.ask("node")["ready"]


def healthy_again(node: Node, name: str, old: int) -> bool:
    row = node.cells()[name]
    return row["pid"] not in (None, 0, old) and row["state"] in ("healthy", "degraded")
