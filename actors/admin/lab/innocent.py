"""The innocent client: steady, honest requests whose loss and latency tell what the defence costs its owner.

Three habits at once, each at an even pace: a new TCP connection with one request and its answer (``tcp``), a datagram
and its echo (``udp``), and one request on a connection that stays open (``established``). A request is lost when no
answer came within ``TIMEOUT_S``: shorter than the first retransmission of a SYN, so that not even one dropped packet of
a handshake stays hidden. Latency is the time from before ``connect`` or ``send`` until the whole answer is there.

Runs as a child inside the innocent's namespace (``python -m actors.admin.lab.innocent FAMILY ADDRESS PORT PACE``) and
prints one JSON object a request: kind, at_ns (CLOCK_MONOTONIC), ms (null when lost), error. It ends with its stdin.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

TIMEOUT_S = 0.9
REQUEST = b"how do you feel?".ljust(64, b".")


class Habits:
    """The three kinds of request towards one address."""

    def __init__(self, family: int, address: str, port: int) -> None:
        self._family = socket.AF_INET if family == 4 else socket.AF_INET6
        self._target = (address, port)
        self._kept: socket.socket | None = None

    def tcp(self) -> None:
        with self._connect() as link:
            _ask(link)

    def udp(self) -> None:
        with socket.socket(self._family, socket.SOCK_DGRAM) as link:
            link.settimeout(TIMEOUT_S)
            link.connect(self._target)
            link.send(REQUEST)
            if link.recv(2048) != REQUEST:
                raise OSError("a different answer")

    def established(self) -> None:
        """A broken connection is not opened again within the same request: that request is lost."""
        if self._kept is None:
            self._kept = self._connect()
        try:
            _ask(self._kept)
        except OSError:
            self._kept.close()
            self._kept = None
            raise

    def _connect(self) -> socket.socket:
        link = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            link.settimeout(TIMEOUT_S)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.connect(self._target)
        except OSError:
            link.close()
            raise
        return link


def keep_asking(
    kind: str, request: Callable[[], None], pace_s: float, stop: threading.Event, lock: threading.Lock
) -> None:
    """One habit until told to stop; a slow answer delays the next request, it never doubles the pace."""
    due = time.monotonic()
    while not stop.is_set():
        at_ns = time.monotonic_ns()
        error = ""
        try:
            request()
        except OSError as problem:
            error = type(problem).__name__ if isinstance(problem, TimeoutError) else str(problem)
        ms = (time.monotonic_ns() - at_ns) / 1e6
        line = json.dumps({"kind": kind, "at_ns": at_ns, "ms": None if error else ms, "error": error})
        with lock:
            print(line, flush=True)
        due = max(due + pace_s, time.monotonic())
        stop.wait(due - time.monotonic())


def main() -> None:
    family, address, port, pace_s = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    with contextlib.suppress(PermissionError):
        os.nice(-5)  # the attacker shares our two CPUs only because this is a lab; in the world he has his own
    stop, lock, habits = threading.Event(), threading.Lock(), Habits(family, address, port)
    for kind, request in (("tcp", habits.tcp), ("udp", habits.udp), ("established", habits.established)):
        threading.Thread(target=keep_asking, args=(kind, request, pace_s, stop, lock), daemon=True).start()
    sys.stdin.read()
    stop.set()


def _ask(link: socket.socket) -> None:
    link.sendall(REQUEST)
    got = b""
    while len(got) < len(REQUEST):
        part = link.recv(2048)
        if not part:
            raise OSError("closed by the other side")
        got += part
    if got != REQUEST:
        raise OSError("a different answer")


if __name__ == "__main__":
    main()
