"""The attacker's ears: what the node answered to forged packets. A scanner learns from answers, so they are the truth.

Every packet that reaches the attacker's interface is seen by an AF_PACKET socket before his own kernel discards it."""

import contextlib
import select
import socket
import struct
import threading

from actors.admin.lab.net import Host

SYN_ACK, RST = 0x12, 0x04
ETH_P_ALL = 0x0003


class Ears:
    """Collects (port, kind) answers per forged address; kind is ``open`` (SYN+ACK) or ``closed`` (RST)."""

    def __init__(self, attacker: Host) -> None:
        self._heard: dict[str, dict[int, str]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        with attacker.namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((attacker.interface, ETH_P_ALL))
        self._socket.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="lab ears", daemon=True)
        self._thread.start()

    def answers(self, address: str) -> dict[int, str]:
        """Port by port, what this forged address was told so far."""
        with self._lock:
            return dict(self._heard.get(address, {}))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)
        self._socket.close()

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(100):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._hear(self._socket.recv(128))

    def _hear(self, frame: bytes) -> None:
        found = answer_of(frame)
        if found is not None:
            address, port, kind = found
            with self._lock:
                self._heard.setdefault(address, {})[port] = kind


def answer_of(frame: bytes) -> tuple[str, int, str] | None:
    """Who is told what about which port; None for anything that is no TCP answer."""
    try:
        kind = struct.unpack_from("!H", frame, 12)[0]
        if kind == 0x0800 and frame[23] == 6:
            to, transport = socket.inet_ntop(socket.AF_INET, frame[30:34]), 14 + (frame[14] & 15) * 4
        elif kind == 0x86DD and frame[20] == 6:
            to, transport = socket.inet_ntop(socket.AF_INET6, frame[38:54]), 54
        else:
            return None
        port, flags = struct.unpack_from("!H", frame, transport)[0], frame[transport + 13]
    except (IndexError, struct.error, ValueError):
        return None
    if flags & SYN_ACK == SYN_ACK:
        return to, port, "open"
    return (to, port, "closed") if flags & RST else None
