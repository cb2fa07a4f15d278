"""What really reached the node: a witness that does not ask the firewall.

An nft table of its own at the *input* hook with priority 1000 counts and logs the attackers' packets. That is the one
place where the truth is the same for every rung of the ladder: XDP, TCX, nft ingress, nft prerouting and the posture
rules at input have all had their say before, and what comes through here goes to a socket. A second chain at
prerouting, priority -500, counts what came past XDP: in front of every nft rule of ours, so that "dropped before the
stack" and "dropped by nftables" can be told apart.

Counters are the kernel's and exact. The log (NFLOG, the first 64 bytes of each packet) tells *which* packets passed;
if it ever loses one, ``numbers`` and ``passed`` differ and the report says so.
"""

import contextlib
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable

from actors.admin.lab.net import LabError, Namespace
from actors.admin.lab.traffic import number_of

GROUP = 7719
NETLINK_NETFILTER = 12
ULOG_PACKET, ULOG_CONFIG = 0x0400, 0x0401
CFG_CMD, CFG_MODE, CFG_TIMEOUT = 1, 2, 4
BIND, COPY_PACKET = 1, 2
ATTR_PAYLOAD = 9
#: Enough for 100,000 logged packets while Python is not scheduled; the kernel takes it from what is free.
BUFFER_BYTES = 64 << 20

RULES = """
table inet lab_observer {
    counter past_xdp { }
    counter passed { }
    set suspects4 { type ipv4_addr; flags interval; elements = { %(v4)s } }
    set suspects6 { type ipv6_addr; flags interval; elements = { %(v6)s } }
    chain first {
        type filter hook prerouting priority -500; policy accept;
        ip saddr @suspects4 counter name past_xdp
        ip6 saddr @suspects6 counter name past_xdp
    }
    chain last {
        type filter hook input priority 1000; policy accept;
        ip saddr @suspects4 counter name passed log group %(group)d snaplen 64 queue-threshold 1
        ip6 saddr @suspects6 counter name passed log group %(group)d snaplen 64 queue-threshold 1
    }
}
"""


class Observer:
    """Counts and remembers the suspects' packets that passed every filter. Start before the first one is sent."""

    def __init__(self, node: Namespace, suspects_v4: Iterable[str], suspects_v6: Iterable[str]) -> None:
        self._node = node
        self._numbers: dict[str, set[int]] = {}
        self._last_ns: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        rules = RULES % {"v4": ", ".join(suspects_v4), "v6": ", ".join(suspects_v6), "group": GROUP}
        node.run("nft", "-f", "-", text=rules)
        with node.entered():
            self._log = _open_log()
        self._thread = threading.Thread(target=self._read, name="lab observer", daemon=True)
        self._thread.start()

    def counters(self) -> dict[str, int]:
        """``past_xdp`` and ``passed``: packets of all suspects, by the kernel's count."""
        listing = json.loads(self._node.run("nft", "-j", "list", "counters", "table", "inet", "lab_observer").stdout)
        return {row["counter"]["name"]: row["counter"]["packets"] for row in listing["nftables"] if "counter" in row}

    def numbers(self, source: str) -> set[int]:
        """The numbers of this source's packets that passed so far."""
        with self._lock:
            return set(self._numbers.get(source, ()))

    def last_seen_ns(self, source: str) -> int:
        """When the log last showed a packet of this source (CLOCK_MONOTONIC ns); 0 for never."""
        with self._lock:
            return self._last_ns.get(source, 0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)
        self._log.close()

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._log, select.POLLIN)
        while not self._stop.is_set():
            if not poll.poll(100):
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        data = self._log.recv(1 << 17)
                    except OSError as error:
                        if isinstance(error, BlockingIOError):
                            raise
                        continue  # ENOBUFS: the kernel lost some; the counters will differ and that is reported
                    self._take(data, time.monotonic_ns())

    def _take(self, data: bytes, now_ns: int) -> None:
        for payload in payloads(data):
            found = number_of(payload)
            if found is not None:
                with self._lock:
                    self._numbers.setdefault(found[0], set()).add(found[1])
                    self._last_ns[found[0]] = now_ns


def _open_log() -> socket.socket:
    """An NFLOG socket bound to our group, in the network namespace of the calling thread."""
    log = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        log.setsockopt(socket.SOL_SOCKET, 33, BUFFER_BYTES)  # SO_RCVBUFFORCE
        log.bind((0, 0))
        _configure(log, CFG_CMD, struct.pack("B", BIND))
        _configure(log, CFG_MODE, struct.pack("!IBB", 64, COPY_PACKET, 0))
        _configure(log, CFG_TIMEOUT, struct.pack("!I", 1))
    except OSError as error:
        log.close()
        raise LabError(f"the kernel refused the packet log the lab observes with (NFLOG): {error}") from error
    log.setblocking(False)
    return log


def _configure(log: socket.socket, attribute: int, value: bytes) -> None:
    """One NFLOG setting, acknowledged by the kernel. Raises OSError with the kernel's reason."""
    padded = value + b"\0" * (-len(value) % 4)
    body = struct.pack("!BBH", 0, 0, GROUP) + struct.pack("=HH", 4 + len(value), attribute) + padded
    log.send(struct.pack("=IHHII", 16 + len(body), ULOG_CONFIG, 0x5, 1, 0) + body)  # REQUEST | ACK
    answer = log.recv(4096)
    error = -struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise OSError(error, "NFLOG configuration")


def payloads(data: bytes) -> Iterable[bytes]:
    """The packets inside one netlink datagram."""
    offset = 0
    while offset + 20 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 20:
            return
        if kind == ULOG_PACKET:
            yield from _attribute(data[offset + 20 : offset + length], ATTR_PAYLOAD)
        offset += (length + 3) & ~3


def _attribute(data: bytes, wanted: int) -> Iterable[bytes]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        if kind & 0x7FFF == wanted:
            yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
