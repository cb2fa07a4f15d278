"""A network namespace of one's own for tests that run nft: nothing outside it is touched."""

import ctypes
import os
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NODE_MAC, _PEER_MAC = "02:74:67:00:00:01", "02:74:67:00:00:02"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, in the namespace."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as away:
        _enter(away.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


@contextmanager
def namespace(label: str = "nft") -> Iterator[str]:
    """A fresh namespace with its loopback up; gone afterwards."""
    name = f"tg-{label}-{os.getpid()}-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def nft(script: str) -> None:
    """Somebody else's hand: run nft in the current namespace."""
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)


def nft_listing(*what: str) -> str:
    options = [word for word in what if word.startswith("-")]
    words = [word for word in what if not word.startswith("-")]
    return subprocess.run(["nft", *options, "list", *words], text=True, check=True, capture_output=True).stdout


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Ear:
    """What a flood sent, and what of it came through."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.sent = 0

    def heard(self) -> int:
        """Datagrams that have arrived since the last call."""
        count = 0
        while True:
            try:
                self._socket.recv(16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return count
            count += 1


@dataclass
class Wire:
    """A node and a peer in namespaces of their own on one veth pair, with addresses of both families."""

    node: str
    peer: str
    scratch: Path
    node4: str = "10.77.0.1"
    node6: str = "fd77::1"
    peer4: str = "10.77.0.2"
    peer6: str = "fd77::2"

    def lay(self) -> None:
        """Make the pair and bring it up."""
        _ip(self.node, f"link add node0 type veth peer name peer0 netns {self.peer}")
        ends = (
            (self.node, "node0", _NODE_MAC, self.node4, self.node6),
            (self.peer, "peer0", _PEER_MAC, self.peer4, self.peer6),
        )
        for space, device, mac, address4, address6 in ends:
            _ip(space, f"link set {device} address {mac}")
            _ip(space, f"address add {address4}/24 dev {device}")
            _ip(space, f"address add {address6}/64 dev {device} nodad")
            _ip(space, f"link set {device} up")
        # no questions for neighbours: a young link answers them late, and those of a banned source are dropped
        _ip(self.peer, f"neighbour replace {self.node6} lladdr {_NODE_MAC} dev peer0 nud permanent")
        _ip(self.node, f"neighbour replace {self.peer6} lladdr {_PEER_MAC} dev node0 nud permanent")

    def set_mtu(self, size: int) -> None:
        _ip(self.node, f"link set node0 mtu {size}")
        _ip(self.peer, f"link set peer0 mtu {size}")

    def reaches_node(self, source: str) -> bool:
        """Whether a datagram from the peer's address arrives in a socket on the node."""
        family, target = (socket.AF_INET6, self.node6) if ":" in source else (socket.AF_INET, self.node4)
        word = secrets.token_bytes(8)
        with inside(self.node):
            ear = socket.socket(family, socket.SOCK_DGRAM)
        with inside(self.peer):
            mouth = socket.socket(family, socket.SOCK_DGRAM)
        with ear, mouth:
            ear.settimeout(0.3)
            ear.bind((target, 0))
            mouth.bind((source, 0))
            mouth.sendto(word, (target, ear.getsockname()[1]))
            try:
                return ear.recv(64) == word
            except TimeoutError:
                return False

    @contextmanager
    def flood(self, source: str, port: int = 9) -> Iterator["Ear"]:
        """Datagrams from the source many thousands a second, and an ear on the node that counts what arrives."""
        family, target = (socket.AF_INET6, self.node6) if ":" in source else (socket.AF_INET, self.node4)
        with inside(self.node):
            listening = socket.socket(family, socket.SOCK_DGRAM)
        with inside(self.peer):
            mouth = socket.socket(family, socket.SOCK_DGRAM)
        with listening, mouth:
            listening.bind((target, port))
            mouth.bind((source, 0))
            ear, over = Ear(listening), threading.Event()
            sender = threading.Thread(target=_shout, args=(mouth, (target, port), over, ear), daemon=True)
            sender.start()
            try:
                yield ear
            finally:
                over.set()
                sender.join()

    @contextmanager
    def echo_server(self, port: int) -> Iterator[None]:
        """On the node, both families, until the end; sends back what it gets."""
        with inside(self.node):
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    @contextmanager
    def connection(self, address: str, port: int) -> Iterator[socket.socket]:
        with inside(self.peer):
            made = socket.create_connection((address, port), timeout=2)
        with made:
            yield made

    def says(self, connection: socket.socket) -> bool:
        """Whether the other end of an echo connection still answers."""
        connection.settimeout(1.0)
        try:
            connection.sendall(b"still there?")
            return connection.recv(64) == b"still there?"
        except OSError:
            return False

    def connects(self, address: str, port: int) -> bool:
        with inside(self.peer):
            try:
                socket.create_connection((address, port), timeout=0.7).close()
            except OSError:
                return False
        return True


@contextmanager
def wire() -> Iterator[Wire]:
    """The pair, up and reachable; gone afterwards."""
    with namespace("node") as node, namespace("peer") as peer, tempfile.TemporaryDirectory() as scratch:
        made = Wire(node, peer, Path(scratch))
        made.lay()
        yield made


def _ip(space: str, command: str) -> None:
    subprocess.run(["ip", "-n", space, *command.split()], check=True)


def _shout(mouth: socket.socket, target: tuple[str, int], over: threading.Event, ear: Ear) -> None:
    while not over.is_set():
        for _ in range(64):
            mouth.sendto(b"x", target)
        ear.sent += 64
        time.sleep(0.001)  # lets the cell under test have the interpreter


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)
