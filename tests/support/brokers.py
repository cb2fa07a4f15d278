"""A Kafka broker for tests: librdkafka's mock cluster in a process of its own, behind a door that stays where it is.

The mock listens on ports of its own choice and forgets everything when it is killed. The ``Door`` is a small TCP relay
with a fixed address, which also rewrites the port that the broker announces, so that clients find a broker that was
killed and begun anew at the old place. ``TEGUMENTAR_TEST_KAFKA`` names a real broker for the contract tests instead.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

from actors.admin.lab.net import Namespace

_BROKER = """
import sys, time
from confluent_kafka.admin import AdminClient
client = AdminClient({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
broker = next(iter(client.list_topics(timeout=10).brokers.values()))
print(broker.port, flush=True)
sys.stdin.read()
"""


class Broker:
    """One life of a mock cluster."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BROKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Door:
    """Relays ``127.0.0.1:port`` to wherever ``broker_port`` is now; 0: nobody is at home."""

    def __init__(self, broker_port: int, space: Namespace | None = None) -> None:
        """space: the network namespace in which the door stands; the broker is always in this process's own."""
        self.broker_port = broker_port
        with space.entered() if space is not None else contextlib.nullcontext():
            self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._open = True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._open = False
        self._listener.close()
        self.hang_up()
        self._thread.join(5)

    def hang_up(self) -> None:
        """Cut every connection."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def _accept(self) -> None:
        while self._open:
            ready, _, _ = select.select([self._listener], [], [], 0.1) if self._listener.fileno() >= 0 else ([], [], [])
            if not ready:
                continue
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self.broker_port or 1), timeout=5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            self._pairs.append((client, broker))
            threading.Thread(target=self._relay, args=(client, broker, False), daemon=True).start()
            threading.Thread(target=self._relay, args=(broker, client, True), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, announces: bool) -> None:
        real, ours = (b"127.0.0.1" + struct.pack(">i", port) for port in (self.broker_port, self.port))
        try:
            while data := source.recv(1 << 16):
                target.sendall(data.replace(real, ours) if announces else data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            target.close()


@contextlib.contextmanager
def a_broker() -> Iterator[str]:
    """The address of a broker: the real one that the environment names, else a mock."""
    if named := os.environ.get("TEGUMENTAR_TEST_KAFKA"):
        yield named
        return
    broker = Broker()
    try:
        yield f"127.0.0.1:{broker.port}"
    finally:
        broker.kill()
