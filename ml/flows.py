"""Which flows to look at now: the emission rule, as pure code over the rows of a flow table.

A flow is shown to the model when it has something new to say: at 4, 16, 64, 256 and 1024 packets, half a second
after its start, every 5 s while it lives, when it closes, and when it has been idle for 15 s. So a flood, a slow
request that never ends and a refused connection are all judged while they matter, and an idle table costs nothing.

The reader keeps 42 bytes per slot of the table and nothing else; time is an argument.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.meter import Tick
from ml.records import FLOW, SIDE, Flows, first_ns, is_closed

MILESTONES: Final = (4, 16, 64, 256, 1024)
#: A look earlier than this would catch handshakes half way and call them scans.
FIRST_LOOK_NS: Final = 500_000_000
REPEAT_NS: Final = 5_000_000_000
IDLE_NS: Final = 15_000_000_000

_PIECE: Final = 1024
_SIDES_AT: Final = FLOW.fields["side"][1] if FLOW.fields else 0
_STATE: Final = ("_held", "_shown_ns", "_packets", "_bytes", "_done", "_idle", "_id")


class Why(IntEnum):
    """What made a flow be shown. The later ones win when several are true."""

    FIRST_LOOK = 1
    REPEAT = 2
    MILESTONE = 3
    IDLE = 4
    CLOSED = 5


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Flows to be judged at ``now_ns``. All arrays have one row per flow.

    ``flow_id`` is unique in the life of the reader. ``fresh`` marks the first sight of a flow, ``final`` the last.
    ``new_packets`` and ``new_bytes`` [N, 2] grew since the previous sight: windows count those, never totals twice.
    """

    now_ns: int
    flows: Flows
    first_ns: NDArray[np.int64]
    flow_id: NDArray[np.int64]
    why: NDArray[np.uint8]
    fresh: NDArray[np.bool_]
    final: NDArray[np.bool_]
    new_packets: NDArray[np.int64]
    new_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.flows)

    def rows(self, chosen: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "Snapshots":
        """Some of the flows; a slice copies nothing."""
        return Snapshots(
            self.now_ns, self.flows[chosen], self.first_ns[chosen], self.flow_id[chosen], self.why[chosen],
            self.fresh[chosen], self.final[chosen], self.new_packets[chosen], self.new_bytes[chosen],
        )  # fmt: skip


class FlowReader:
    """Remembers, for each slot of the table, what was last shown of the flow in it.

    A slot whose ``incarnation`` changed holds a new flow (remembered as one more than it is; 0 is none). The reader
    never looks behind: a flow that came and was evicted between two ticks is not seen here, and the kernel counts it.
    """

    def __init__(self, slots: int = 0) -> None:
        self._held = np.zeros(0, "i8")
        self._shown_ns = np.zeros(0, "i8")
        self._packets = np.zeros((0, 2), "u4")
        self._bytes = np.zeros((0, 2), "i8")
        self._done = np.zeros(0, "?")
        self._idle = np.zeros(0, "?")
        self._id = np.zeros(0, "i8")
        self._next_id = 0
        self._grow(slots)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in _STATE)

    def tick(self, tick: Tick) -> Snapshots:
        """The flows worth judging now; remembers that they were shown.

        Of every flow the head of its record is read, and of those that may have something to say the whole, in pieces
        that fit a core's cache: a table in the kernel's memory is gone through once."""
        slots, where, table = tick.slots, tick.where, tick.table
        if len(slots) and int(slots.max()) >= len(self._held):
            self._grow(max(int(slots.max()) + 1, 2 * len(self._held)))
        self._adopt(slots, table["incarnation"][where])
        waiting = np.flatnonzero(~self._done[slots] | self._woken(slots, table["last_ns"][where]))
        flows, why = np.empty(len(waiting), table.dtype), np.empty(len(waiting), "u1")
        chosen, count = np.empty(len(waiting), "i8"), 0
        for at in range(0, len(waiting), _PIECE):
            rows = waiting[at : at + _PIECE]
            piece = flows[count : count + len(rows)]
            np.take(table, where[rows], out=piece, mode="clip")
            _empty_unseen(piece)
            reasons = self._reasons(tick.now_ns, slots[rows], piece)
            told = np.flatnonzero(reasons)
            if len(told) < len(rows):
                piece[: len(told)] = piece[told]
            chosen[count : count + len(told)], why[count : count + len(told)] = rows[told], reasons[told]
            count += len(told)
        return self._show(tick.now_ns, slots[chosen[:count]], flows[:count], why[:count])

    def _show(self, now_ns: int, slots: NDArray[np.int64], flows: Flows, why: NDArray[np.uint8]) -> Snapshots:
        packets, size = flows["side"]["packets"], flows["side"]["wire_bytes"].astype("i8")
        shown = Snapshots(
            now_ns=now_ns,
            flows=flows,
            first_ns=first_ns(flows),
            flow_id=self._id[slots],
            why=why,
            fresh=self._shown_ns[slots] == 0,
            final=why >= Why.IDLE,
            new_packets=(packets - self._packets[slots]).astype("i8"),
            new_bytes=size - self._bytes[slots],
        )
        self._shown_ns[slots] = now_ns
        self._packets[slots] = packets
        self._bytes[slots] = size
        self._done[slots] = shown.final
        self._idle[slots] = why == Why.IDLE
        return shown

    def _adopt(self, slots: NDArray[np.int64], incarnation: NDArray[np.uint32]) -> None:
        held = incarnation.astype("i8") + 1
        changed = held != self._held[slots]
        slots = slots[changed]
        self._held[slots] = held[changed]
        self._shown_ns[slots] = 0
        self._packets[slots] = 0
        self._bytes[slots] = 0
        self._done[slots] = False
        self._idle[slots] = False
        self._id[slots] = np.arange(self._next_id, self._next_id + len(slots))
        self._next_id += len(slots)

    def _reasons(self, now_ns: int, slots: NDArray[np.int64], flows: Flows) -> NDArray[np.uint8]:
        shown_ns = self._shown_ns[slots]
        total = flows["side"]["packets"].sum(axis=1, dtype="i8")
        before = self._packets[slots].sum(axis=1, dtype="i8")
        why = np.zeros(len(slots), "u1")
        why[(shown_ns == 0) & (now_ns - first_ns(flows) >= FIRST_LOOK_NS)] = Why.FIRST_LOOK
        why[(shown_ns > 0) & (now_ns - shown_ns >= REPEAT_NS)] = Why.REPEAT
        why[np.searchsorted(MILESTONES, total, "right") > np.searchsorted(MILESTONES, before, "right")] = Why.MILESTONE
        why[now_ns - flows["last_ns"].astype("i8") >= IDLE_NS] = Why.IDLE
        why[is_closed(flows)] = Why.CLOSED
        return why

    def _woken(self, slots: NDArray[np.int64], last_ns: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Flows that were given up as idle and have spoken again (late packets of a closed one do not count)."""
        return (last_ns.astype("i8") > self._shown_ns[slots]) & self._idle[slots]

    def _grow(self, size: int) -> None:
        """More places, all zeros: of those that no flow ever took, no page is real."""
        for name in _STATE:
            old = getattr(self, name)
            more = np.zeros((size, *old.shape[1:]), old.dtype)
            more[: len(old)] = old
            setattr(self, name, more)


def _empty_unseen(flows: Flows) -> None:
    """A side without packets is all zeros. As bytes: a record is assigned field by field, ten times as slowly."""
    sides = flows.view("u1").reshape(len(flows), -1)[:, _SIDES_AT:].reshape(len(flows), 2, SIDE.itemsize)
    for side in (0, 1):
        sides[flows["side"]["packets"][:, side] == 0, side] = 0
