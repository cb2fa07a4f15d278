"""The offline meter: capture in, flow records out, exactly as the live table would show them tick by tick.

Two uses. It feeds training and evaluation from captures on a machine without BPF, and it is the independent oracle
that the kernel's flow accounting is compared with. Its rules are the kernel's: a flow is one protocol and two endpoints
in either direction; the initiator is who sent the SYN, else who did not send a SYN+ACK, else who spoke first. A SYN
after the end of a TCP flow begins a new one, and so does whatever is said after half a minute of silence; of a TCP
connection that was only silent, it is remembered who began it and that it stood. Sums stay at the largest number that
their field holds rather than begin again.

Plain Python per packet (about 80,000 packets/s): clarity is worth more than speed in an oracle.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ml import records as r
from ml.capture import Packet, dissect, read_frames
from ml.records import FLOW, SIZE_BINS, SIZE_BOUNDS, Flows

#: A flow that was silent so long, or ended so long ago, is no longer shown; it is shown again when it speaks.
IDLE_NS: Final = 20_000_000_000
LINGER_NS: Final = 2_000_000_000
#: A packet of a flow that was silent so long is another flow's (the program's knob flow_idle_ticks, as it is preset).
ANOTHER_NS: Final = 30_000_000_000 >> 20 << 20
#: Of a flow that was silent so long, nothing is remembered.
FORGET_NS: Final = 3_600_000_000_000
_LARGEST: Final = (1 << 64) - 1
#: How often the table is looked at: half a second keeps a verdict under 1.5 s old and costs little.
TICK_NS: Final = 500_000_000

_FIN, _SYN, _RST, _PSH, _ACK, _URG = 1, 2, 4, 8, 16, 32
_BIN_OF: Final = bytes(sum(length > bound for bound in SIZE_BOUNDS) for length in range(SIZE_BOUNDS[-1] + 2))

Key = tuple[int, bytes, int, bytes, int]


@dataclass(frozen=True, slots=True)
class Tick:
    """The flow table at one moment: the flow in ``slots[i]`` is ``table[rows[i]]``; without rows, ``table[slots[i]]``.

    So the table may be a view of a live map as a whole, or copies of what was alive in it. A slot is a place that keeps
    its number; it holds another flow when the ``incarnation`` has changed."""

    now_ns: int
    table: Flows
    slots: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None

    @classmethod
    def of_copies(cls, now_ns: int, slots: NDArray[Any], flows: Flows) -> "Tick":
        """From slots and copies of their records, as the kernel's flow table is read."""
        return cls(now_ns, flows, slots.astype(np.int64), np.arange(len(flows)))

    @property
    def where(self) -> NDArray[np.int64]:
        """The row of each slot."""
        return self.slots if self.rows is None else self.rows


class FlowSource(Protocol):
    """Anything that shows a flow table at regular moments: the live map, a replay in the kernel, the offline meter."""

    def ticks(self, period_ns: int = TICK_NS) -> Iterator[Tick]: ...


def is_illegal(flags: int) -> bool:
    """Flag sets that no stack sends: none, FIN alone, SYN with FIN or RST, FIN with PSH and URG, all."""
    low = flags & 0x3F
    return low in (0, _FIN, _FIN | _PSH | _URG, 0x3F) or (low & _SYN > 0 and low & (_FIN | _RST) > 0)


class _Side:
    """Counters of one direction."""

    __slots__ = (
        "bytes", "first_ns", "flags", "flags_seen", "fragments", "gap_max", "gap_sq", "gap_sum", "illegal", "last_ns",
        "mss", "packets", "payload", "payload_max", "payload_min", "payload_sq", "sizes", "syn_retries", "syn_seq",
        "ttl", "window",
    )  # fmt: skip

    def __init__(self) -> None:
        self.packets = self.bytes = self.payload = self.payload_sq = self.payload_max = self.payload_min = 0
        self.gap_sum = self.gap_sq = self.gap_max = self.first_ns = self.last_ns = self.flags_seen = 0
        self.illegal = self.fragments = self.ttl = self.window = self.mss = self.syn_seq = self.syn_retries = 0
        self.flags = [0] * 8
        self.sizes = [0] * SIZE_BINS

    def add(self, packet: Packet) -> None:
        size = min(packet.payload, 65535)
        if self.packets == 0:
            self.first_ns, self.ttl, self.window, self.payload_min = packet.at_ns, packet.ttl, packet.window, size
        else:
            gap = max(0, packet.at_ns - self.last_ns)
            gap_us = min(gap // 1000, 1 << 31)
            self.gap_sum += gap
            self.gap_sq = min(self.gap_sq + gap_us * gap_us, _LARGEST)
            self.gap_max = max(self.gap_max, gap_us)
            self.payload_min = min(self.payload_min, size)
        self.last_ns = packet.at_ns
        self.packets += 1
        self.bytes += packet.frame
        self.payload += size
        self.payload_sq += size * size
        self.payload_max = max(self.payload_max, size)
        self.sizes[_BIN_OF[min(size, SIZE_BOUNDS[-1] + 1)]] += 1
        self.fragments += packet.fragment
        if packet.proto == r.PROTO_TCP and not packet.later_fragment:
            self._add_flags(packet)

    def _add_flags(self, packet: Packet) -> None:
        for place in range(8):
            if packet.flags >> place & 1:
                self.flags[place] += 1
        self.illegal += is_illegal(packet.flags)
        if packet.flags & _SYN:
            self.syn_retries += bool(self.flags_seen & _SYN) and packet.seq == self.syn_seq
            self.mss = self.mss or packet.mss
            self.syn_seq = packet.seq
        self.flags_seen |= packet.flags


class _Flow:
    __slots__ = ("begin", "incarnation", "key", "last_ns", "over_ns", "packet", "sides", "slot", "stood")

    def __init__(self, key: Key, packet: Packet, slot: int, incarnation: int, before: "_Flow | None" = None) -> None:
        """before: the flow of the same parties that was silent for long, if there was one."""
        self.key, self.slot, self.incarnation, self.packet = key, slot, incarnation, packet
        self.begin = (packet.src, packet.sport), (packet.dst, packet.dport)
        self.stood = False
        if packet.flags & (_SYN | _ACK) == _SYN | _ACK:
            self.begin = self.begin[::-1]
        if before is not None and packet.proto == r.PROTO_TCP and not packet.flags & _SYN:
            self.begin, self.stood = before.begin, before.state() == r.ESTABLISHED
        self.last_ns = packet.at_ns
        self.over_ns = 0  # when TCP ended, 0 while it has not
        self.sides = (_Side(), _Side())

    def add(self, packet: Packet) -> None:
        self.sides[(packet.src, packet.sport) != self.begin[0]].add(packet)
        self.last_ns = max(self.last_ns, packet.at_ns)
        if not self.over_ns and packet.proto == r.PROTO_TCP:
            finished = all(side.flags_seen & _FIN for side in self.sides if side.packets)
            if packet.flags & _RST or finished:
                self.over_ns = packet.at_ns

    def is_over(self, now_ns: int) -> bool:
        return now_ns - self.last_ns >= IDLE_NS or bool(self.over_ns and now_ns - self.over_ns >= LINGER_NS)

    def state(self) -> int:
        """As the kernel names it; informative, no feature reads it."""
        caller, answerer = (side.flags_seen for side in self.sides)
        confirmed = caller & _ACK and answerer & _SYN
        if self.over_ns:
            return r.CLOSED if confirmed or not caller & _SYN else r.REFUSED
        if confirmed or self.stood:
            return r.ESTABLISHED
        return r.HALF_OPEN if caller & _SYN else r.NEW


class CaptureMeter:
    """A capture as a :class:`FlowSource`. Time is the capture's own and never runs backwards: a frame from
    before the last one gets the last one's time, as in the kernel.

    frames: (time in ns, length on the wire, bytes) from another reader, for files that ml.capture does not read."""

    def __init__(self, path: Path, frames: Iterable[tuple[int, int, bytes]] | None = None) -> None:
        self.path = path
        self._frames = frames
        self.packets = 0
        self.skipped = 0
        self._flows: dict[Key, _Flow] = {}
        self._shown: dict[int, _Flow] = {}
        self._free: list[int] = []
        self._touched: set[int] = set()
        self._born = 0
        self._sweep_ns = 0
        self._table = np.zeros(1024, dtype=FLOW)

    def ticks(self, period_ns: int = TICK_NS) -> Iterator[Tick]:
        """The table after each period, and after the end until the last flow is over."""
        due = clock = 0
        for at_ns, length, data in self._frames or read_frames(self.path):
            clock = max(clock, at_ns)
            due = due or clock + period_ns
            while clock >= due:
                if not self._shown:  # nothing to see until now
                    due += (clock - due) // period_ns * period_ns
                yield self._tick(due)
                due += period_ns
            packet = dissect(clock, length, data)
            if packet is None:
                self.skipped += 1
            else:
                self.packets += 1
                self._account(packet)
        while self._shown:
            yield self._tick(due)
            due += period_ns

    def _account(self, packet: Packet) -> None:
        low, high = sorted(((packet.src, packet.sport), (packet.dst, packet.dport)))
        key = (packet.proto, *low, *high)
        flow = self._flows.get(key)
        if flow is None:
            flow = _Flow(key, packet, self._free.pop() if self._free else len(self._flows), self._next())
        elif packet.at_ns - flow.last_ns >= ANOTHER_NS:
            flow = _Flow(key, packet, flow.slot, self._next(), flow)
        elif flow.over_ns and packet.proto == r.PROTO_TCP and packet.flags & (_SYN | _ACK) == _SYN:
            flow = _Flow(key, packet, flow.slot, self._next())
        self._flows[key] = flow
        self._shown[flow.slot] = flow
        flow.add(packet)
        self._touched.add(flow.slot)

    def _next(self) -> int:
        self._born += 1
        return self._born

    def _tick(self, now_ns: int) -> Tick:
        while len(self._table) <= len(self._flows):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        for slot in self._touched:
            self._table[slot] = _row(self._shown[slot])
        self._touched.clear()
        tick = Tick(now_ns, self._table, np.fromiter(self._shown, dtype=np.int64, count=len(self._shown)))
        for slot in [slot for slot, flow in self._shown.items() if flow.is_over(now_ns)]:
            del self._shown[slot]
        if now_ns >= self._sweep_ns:
            self._forget(now_ns)
        return tick

    def _forget(self, now_ns: int) -> None:
        self._sweep_ns = now_ns + FORGET_NS // 10
        for flow in [flow for flow in self._flows.values() if now_ns - flow.last_ns >= FORGET_NS]:
            del self._flows[flow.key]
            self._free.append(flow.slot)


def _row(flow: _Flow) -> tuple[object, ...]:
    (addr, port), (other_addr, other_port) = flow.begin
    first = flow.packet
    return (
        ([list(addr), list(other_addr)], [port, other_port], first.proto, first.family, 0),
        flow.incarnation, flow.state(), first.icmp_type, first.icmp_code, 0, 0, first.vlan,
        [(s.packets > 0) | (s.flags[0] > 0) << 1 for s in flow.sides], flow.last_ns,
        [
            (
                s.last_ns, s.bytes, s.payload, s.payload_sq, s.gap_sum, s.gap_sq, s.gap_max, s.packets,
                s.payload_min, s.payload_max, s.window, s.ttl, s.flags_seen, s.sizes, s.fragments, s.flags,
                s.first_ns, 0, s.syn_seq, s.illegal, s.syn_retries, s.mss, [0] * 42,
            )
            for s in flow.sides
        ],
    )  # fmt: skip
