"""Reassembly: the bytes of each side of a TCP flow, in order, bounded. Pure; time is an argument.

Segments may come out of order, twice, or overlapping. What lies together forms a *run*; a run is what is inspected,
so a pattern that was split over packets is seen as soon as its parts have met, in whatever order they came. A gap
that is never filled parts two runs, and each is still inspected for itself.

Overlaps: receivers differ in which copy of a byte they believe, and attackers use it. ``Run.first`` believes the
copy that came first; when a later copy says something else the run also gets ``Run.last``, which believes the newer
one, and both are inspected. A pattern that needs the old copy here and the new one there is beyond this (blind spot).

Bounds: bytes per side, runs per side (gaps), flows, and bytes of all flows; what falls out is counted in ``Counts``.
Source: RFC 9293 section 3.4 (sequence arithmetic); Ptacek and Newsham 1998 on evasion by overlap.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

#: The half of the sequence space: a distance beyond it is a negative one.
_HALF, _WHOLE = 1 << 31, 1 << 32

Key = TypeVar("Key", bound=Hashable)
Attached = TypeVar("Attached")


@dataclass(frozen=True, slots=True)
class Limits:
    """side_bytes: kept of one side of a flow. runs: contiguous pieces of a side. idle_s: silence that ends a flow."""

    flows: int = 8_192
    side_bytes: int = 65_536
    runs: int = 16
    total_bytes: int = 32 << 20
    idle_s: float = 60.0


@dataclass(slots=True)
class Counts:
    """What was not kept, and why. All of it only grows."""

    evicted_flows: int = 0  #: the oldest flow went because there were too many flows or bytes
    beyond_side: int = 0  #: bytes past the limit of their side
    too_many_gaps: int = 0  #: segments dropped because their side has too many pieces already
    conflicts: int = 0  #: overlaps whose copies differ


@dataclass(slots=True, eq=False)
class Run:
    """Bytes that lie together; ``offset`` is where in the side. ``last`` exists only after copies have differed."""

    offset: int
    first: bytearray
    last: bytearray | None = None

    @property
    def end(self) -> int:
        return self.offset + len(self.first)

    def readings(self) -> Iterator[bytes]:
        """The run as each kind of receiver reads it: one, or two after a conflict."""
        yield bytes(self.first)
        if self.last is not None:
            yield bytes(self.last)


@dataclass(frozen=True, slots=True)
class Growth:
    """What a segment did. fresh: the new bytes when they only continued the run, else None: the run was rebuilt."""

    run: Run
    fresh: bytes | None
    grown: int = 0


@dataclass(slots=True)
class Side:
    """One direction of a flow. Offset 0 is the first byte after the SYN, or the first byte ever seen without one."""

    limits: Limits
    counts: Counts
    runs: list[Run] = field(default_factory=list)
    _base: int | None = None
    _anchored: bool = False

    @property
    def size(self) -> int:
        return sum(len(run.first) + len(run.last or b"") for run in self.runs)

    def start(self, seq: int) -> None:
        """A SYN said where this side begins. Kept bytes stay where they are when it was known already."""
        if self._base is None:
            self._base, self._anchored = (seq + 1) % _WHOLE, True

    def begins_at(self, seq: int) -> bool:
        """Whether a SYN with this number belongs to the flow as it is known (a retry), or begins another one."""
        return self._base is None or (not self._anchored) or self._base == (seq + 1) % _WHOLE

    def add(self, seq: int, payload: bytes) -> Growth | None:
        """Put one segment in its place. None when it brought nothing: a plain retransmission, or out of bounds."""
        if not payload:
            return None
        if self._base is None:
            self._base = seq
        offset = (seq - self._base) % _WHOLE
        if offset >= _HALF:
            offset -= _WHOLE
        lowest = 0 if self._anchored else self._lowest()
        if offset < lowest:
            payload, offset = payload[lowest - offset :], lowest
        room = self._ceiling() - offset
        if room < len(payload):
            self.counts.beyond_side += len(payload) - max(0, room)
            payload = payload[: max(0, room)]
        return self._place(offset, payload) if payload else None

    def _lowest(self) -> int:
        """Without a SYN the first segment seen may be the second one sent: what came before it has room too."""
        return (self.runs[-1].end if self.runs else 0) - self.limits.side_bytes

    def _ceiling(self) -> int:
        return (self.runs[0].offset if self.runs and not self._anchored else 0) + self.limits.side_bytes

    def _place(self, offset: int, payload: bytes) -> Growth | None:
        end = offset + len(payload)
        touched = [run for run in self.runs if run.offset <= end and offset <= run.end]
        if len(touched) == 1 and touched[0].end == offset:
            run = touched[0]
            run.first += payload
            if run.last is not None:
                run.last += payload
            return Growth(run, payload, len(payload))
        if not touched:
            if len(self.runs) >= self.limits.runs:
                self.counts.too_many_gaps += 1
                return None
            run = Run(offset, bytearray(payload))
            self.runs.append(run)
            self.runs.sort(key=lambda each: each.offset)
            return Growth(run, None, len(payload))
        return self._merge(touched, offset, payload)

    def _merge(self, touched: list[Run], offset: int, payload: bytes) -> Growth | None:
        before = sum(len(run.first) + len(run.last or b"") for run in touched)
        start = min(offset, touched[0].offset)
        end = max(offset + len(payload), touched[-1].end)
        place = slice(offset - start, offset - start + len(payload))
        newest = bytearray(end - start)
        newest[place] = payload
        believed = bytearray(newest)
        for run in touched:
            at = slice(run.offset - start, run.end - start)
            believed[at] = run.first
            newest[at] = run.last if run.last is not None else run.first
        newest[place] = payload
        merged = Run(start, believed, newest if newest != believed else None)
        if len(touched) == 1 and touched[0].first == merged.first and touched[0].last == merged.last:
            return None
        self.counts.conflicts += merged.last is not None
        self.runs = sorted([run for run in self.runs if run not in touched] + [merged], key=lambda each: each.offset)
        return Growth(merged, None, len(merged.first) + len(merged.last or b"") - before)


class Flows(Generic[Key, Attached]):
    """Flows by key, the longest silent one first. What a user attaches to a flow leaves through ``ended``."""

    def __init__(self, limits: Limits, make: Callable[[Key], Attached], ended: Callable[[Key, Attached], None]) -> None:
        self.limits = limits
        self.counts = Counts()
        self.bytes = 0
        self._make, self._ended = make, ended
        self._flows: OrderedDict[Key, tuple[float, Attached, list[Side]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Key]:
        """Keys, the longest silent flow first."""
        return iter(self._flows)

    def find(self, key: Key) -> tuple[Attached, list[Side]] | None:
        """The flow without making it."""
        found = self._flows.get(key)
        return (found[1], found[2]) if found else None

    def at(self, key: Key, now_s: float) -> tuple[Attached, list[Side]]:
        """The flow, made when it is new; it becomes the youngest. The oldest leaves when there are too many."""
        found = self._flows.get(key)
        if found is None:
            while len(self._flows) >= self.limits.flows:
                self.counts.evicted_flows += 1
                self.end(next(iter(self._flows)))
            sides = [Side(self.limits, self.counts), Side(self.limits, self.counts)]
            found = (now_s, self._make(key), sides)
        self._flows[key] = (now_s, found[1], found[2])
        self._flows.move_to_end(key)
        return found[1], found[2]

    def add(self, key: Key, side: int, seq: int, payload: bytes) -> Growth | None:
        """Put a segment into a flow that ``at`` has named. Oldest flows leave when all bytes together are too many."""
        growth = self._flows[key][2][side].add(seq, payload)
        if growth is not None:
            self.bytes += growth.grown
            while self.bytes > self.limits.total_bytes and len(self._flows) > 1:
                oldest = next(iter(self._flows))
                self.counts.evicted_flows += 1
                self.end(oldest)
        return growth

    def end(self, key: Key) -> None:
        """Forget one flow; its attachment is told first. An absent one is no error."""
        found = self._flows.pop(key, None)
        if found is not None:
            self.bytes -= sum(side.size for side in found[2])
            self._ended(key, found[1])

    def expire(self, now_s: float) -> int:
        """End all that were silent for ``idle_s``; returns how many."""
        old = []
        for key, (seen_s, _attached, _sides) in self._flows.items():
            if now_s - seen_s < self.limits.idle_s:
                break
            old.append(key)
        for key in old:
            self.end(key)
        return len(old)

    def end_all(self) -> None:
        for key in list(self._flows):
            self.end(key)
