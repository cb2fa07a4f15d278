"""Attack traffic: forged frames from an AF_PACKET socket, paced, counted exactly.

Runs as a child process inside the attacker's namespace (``python -m actors.admin.lab.traffic SPEC``), so that a flood
never disturbs the process that measures. Each frame carries its number, in the TCP sequence field or in the UDP
payload: the observer on the node reads it back and knows which packet passed, and the sender's log of times says when
it left. Frames are whole and correct, checksums included: what the node drops, it drops because of a rule.

Protocol on stdin and stdout: the child prints ``ready``, waits for one line, sends, prints ``{"sent": n, ...}``
ten times a second and a last object with ``"done": true``. End of file on stdin stops it. Times are CLOCK_MONOTONIC ns.
"""

import array
import contextlib
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

#: Marks the lab's UDP payloads; the packet's number follows as four bytes, then padding.
MAGIC = b"TGLB"
TICK_S = 0.001
REPORT_S = 0.1
#: A flood does not begin politely: what so much time would send leaves at once, then the pace is even.
HEAD_START_S = 0.03
#: The sender catches up at most this many ticks after the scheduler let it wait: a pause must not become a burst.
CATCH_UP_TICKS = 20


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One stream of forged packets.

    kind: ``syn`` (TCP SYN) or ``udp`` (64 bytes of payload); with ``ports`` to each of them in turn: a scan.
    first: number of the first packet; streams of one lab number their packets apart. ports: a scan's, in order.
    source: first forged address; with ``sources`` > 1 the low 16 bits of an IPv4 address, or the last 16 bits of an
    IPv6 /64, count upwards. rate: packets a second over all sources. times: file that receives one int64 per packet."""

    kind: str
    source: str
    target: str
    source_mac: str
    target_mac: str
    interface: str
    rate: int
    seconds: float
    port: int = 80
    ports: tuple[int, ...] = ()
    sources: int = 1
    first: int = 0
    times: str = ""

    @property
    def family(self) -> int:
        return ip_address(self.target).version

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def source_list(self) -> list[str]:
        """Every forged address of this stream, in text."""
        first = ip_address(self.source)
        step = 1 if first.version == 4 else 1 << 64
        return [str(type(first)(int(first) + index * step)) for index in range(self.sources)]


class Forge:
    """One frame with holes for number, source and ports; checksums follow by addition, not by summing again."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        source, target = ip_address(spec.source), ip_address(spec.target)
        body = _tcp_syn(spec.port) if spec.kind != "udp" else _udp(spec.port)
        protocol = 17 if spec.kind == "udp" else 6
        if spec.family == 4:
            network = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0,
                                  source.packed, target.packed)  # fmt: skip
            self._l4 = 34
            self._source_word = 28  # low half of the source address
        else:
            network = struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 64, source.packed, target.packed)
            self._l4 = 54
            self._source_word = 28  # fourth 16-bit group: the last one of the /64
        ethernet = _mac(spec.target_mac) + _mac(spec.source_mac) + (b"\x08\x00" if spec.family == 4 else b"\x86\xdd")
        self.frame = bytearray(ethernet + network + body)
        self._number_at = self._l4 + (4 if protocol == 6 else 8 + len(MAGIC))
        self._check_at = self._l4 + (16 if protocol == 6 else 6)
        self._first_source = struct.unpack_from("!H", self.frame, self._source_word)[0]
        struct.pack_into("!H", self.frame, self._source_word, 0)
        self._ip_sum = _sum(bytes(network[: 28 - 14]) + b"\0\0" + bytes(network[30 - 14 :])) if spec.family == 4 else 0
        pseudo = source.packed + target.packed + struct.pack("!II", len(body), protocol)
        self._l4_sum = _sum(pseudo) - self._first_source + _sum(bytes(body))

    def stamp(self, number: int) -> bytearray:
        """The frame of this number. The same buffer each time: send it before asking for the next."""
        frame, spec = self.frame, self.spec
        place = number - spec.first
        source = (self._first_source + place % spec.sources) & 0xFFFF
        source_port = 1024 + (place // spec.sources) % 60000
        port = spec.ports[place % len(spec.ports)] if spec.ports else spec.port
        struct.pack_into("!H", frame, self._source_word, source)
        struct.pack_into("!HH", frame, self._l4, source_port, port)
        struct.pack_into("!I", frame, self._number_at, number)
        total = self._l4_sum - spec.port + source + source_port + port + (number >> 16) + (number & 0xFFFF)
        struct.pack_into("!H", frame, self._check_at, _fold(total) or 0xFFFF)
        if spec.family == 4:
            struct.pack_into("!H", frame, 24, _fold(self._ip_sum + source))
        return frame


def number_of(packet: bytes) -> tuple[str, int] | None:
    """Source address and number of a forged packet, from its IP header on; None when it is not one of ours."""
    try:
        version = packet[0] >> 4
        if version == 4:
            source, protocol, offset = socket.inet_ntop(socket.AF_INET, packet[12:16]), packet[9], (packet[0] & 15) * 4
        else:
            source, protocol, offset = socket.inet_ntop(socket.AF_INET6, packet[8:24]), packet[6], 40
        if protocol == 6:
            return source, int(struct.unpack_from("!I", packet, offset + 4)[0])
        if protocol == 17 and packet[offset + 8 : offset + 12] == MAGIC:
            return source, int(struct.unpack_from("!I", packet, offset + 12)[0])
    except (IndexError, struct.error, ValueError):
        pass
    return None


def send(spec: Spec, stop: "StopSign") -> Iterator[dict[str, int | bool]]:
    """Send the stream; yields a report ten times a second and a last one with ``done``."""
    forge = Forge(spec)
    times = array.array("q")
    refused = 0
    limit = int(spec.rate * spec.seconds)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((spec.interface, 0))
        start = next_report = time.monotonic()
        while len(times) < limit and not stop():
            now = time.monotonic()
            due = min(int((now - start + HEAD_START_S) * spec.rate) + 1, limit)
            if times and due - len(times) > spec.rate * TICK_S * CATCH_UP_TICKS + 1:
                start = now - len(times) / spec.rate + HEAD_START_S
                continue
            while len(times) < due:
                frame = forge.stamp(spec.first + len(times))
                left_ns = time.monotonic_ns()
                try:
                    wire.send(frame)
                except OSError:  # the interface's queue is full: the packet was not sent and is not counted
                    refused += 1
                    break
                times.append(left_ns)
            if now >= next_report:
                next_report = now + REPORT_S
                yield {"sent": len(times), "refused": refused, "first_ns": times[0] if times else 0, "done": False}
            time.sleep(TICK_S)
    if spec.times:
        Path(spec.times).write_bytes(times.tobytes())
    yield {"sent": len(times), "refused": refused, "first_ns": times[0] if times else 0, "done": True}


class StopSign:
    """True once stdin has ended or brought another line: whoever started the sender is gone, or wants it to stop."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN | select.POLLHUP)

    def __call__(self) -> bool:
        return bool(self._poll.poll(0))


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        for report in send(spec, StopSign()):
            print(json.dumps(report), flush=True)


def _tcp_syn(port: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 0, port, 0, 0, 0x60, 0x02, 64240, 0, 0) + b"\x02\x04\x05\xb4"


def _udp(port: int) -> bytes:
    payload = (MAGIC + b"\0\0\0\0").ljust(64, b"\0")
    return struct.pack("!HHHH", 0, port, 8 + len(payload), 0) + payload


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _sum(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


if __name__ == "__main__":
    main()
