"""A service on a veth pair with real TCP and UDP both ways, and what the flow table says of it."""

import ctypes
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf import libbpf
from bpf.dataplane import DataPlane
from bpf.loader import KernelPlane
from bpf.program import Build
from tests.support.netns import Namespace, pins, veth

TCX_EGRESS = 47  #: of enum bpf_attach_type
NODE4, PEER4 = "10.8.0.2", "10.8.0.1"
NODE6, PEER6 = "fd08::2", "fd08::1"
#: As little memory as the tables allow.
SMALL = Build(max_bans=4_096, source_sets=1_024, flow_sets=1_024, meters=1_024)


@dataclass
class Street:
    """A peer and a node with addresses of both families; ``directory`` is the node's place on the BPF file system."""

    peer: Namespace
    node: Namespace
    directory: Path
    listeners: list[socket.socket] = field(default_factory=list)

    @contextmanager
    def plane(self, build: Build = SMALL) -> Iterator[KernelPlane]:
        with self.node.entered():
            plane = KernelPlane(self.directory, build)
            try:
                yield plane
            finally:
                plane.close()

    def serve(self, answer: bytes, family: int = socket.AF_INET) -> int:
        """A TCP service of the node that reads a line, sends ``answer`` and closes. Returns its port."""
        with self.node.entered():
            listener = socket.create_server(("::" if family == socket.AF_INET6 else "0.0.0.0", 0), family=family)
        self.listeners.append(listener)

        def work() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=work, daemon=True).start()
        return int(listener.getsockname()[1])

    def fetch(self, port: int, host: str = NODE4) -> bytes:
        """What the node's service says to the peer."""
        with self.peer.entered():
            wire = socket.create_connection((host, port), timeout=5)
        with wire:
            wire.sendall(b"please\n")
            heard = b""
            while part := wire.recv(1 << 16):
                heard += part
        return heard

    def tc(self, *words: str) -> str:
        return self.node.run("tc", *words, check=False).stdout

    def ours_on_the_way_out(self) -> int:
        """Programs of ours that hang there, links and filters alike, asked without the code under test."""
        query = ctypes.CDLL("libbpf.so.1").bpf_prog_query
        ids, count = (ctypes.c_uint32 * 16)(), ctypes.c_uint32(16)
        with self.node.entered():
            query(socket.if_nametoindex("v0"), TCX_EGRESS, 0, None, ids, ctypes.byref(count))
        filters = self.tc("filter", "show", "dev", "v0", "egress").count(" name tegumentar_egre")
        return filters + [libbpf.program_name(number) for number in ids[: count.value]].count("tegumentar_egre")


@contextmanager
def street() -> Iterator[Street]:
    with Namespace("eg") as peer, Namespace("eh") as node, pins() as directory:
        veth(peer, node)
        peer.ip(f"addr add {PEER4}/24 dev v0", f"addr add {PEER6}/64 dev v0 nodad")
        node.ip(f"addr add {NODE4}/24 dev v0", f"addr add {NODE6}/64 dev v0 nodad")
        made = Street(peer, node, directory)
        try:
            yield made
        finally:
            for listener in made.listeners:
                listener.close()


def flow_of(plane: DataPlane, port: int, proto: int = 6) -> Any:
    """The record of the conversation with this port of the node."""
    found = [
        flow
        for flow in plane.flows.read()[1]
        if int(flow["key"]["proto"]) == proto and port in flow["key"]["port"].tolist()
    ]
    assert len(found) == 1, found
    return found[0]
