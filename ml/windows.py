"""Memory of sources and of pairs: decaying counters in bounded tables, updated and read in whole batches.

A *source* is the initiator's address (IPv6: its /64); a *pair* is source, destination, protocol and server port.
Every figure decays exponentially with 10 s or 60 s, distinct ports are also known over five minutes (slow scans).
Nothing here grows with the number of sources: a million spoofed ones cost what 32,768 do (about 35 MB).

Addresses are used to find the place of a source and never become a figure.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.flows import Snapshots, Why
from ml.groups import distinct
from ml.outcome import outcome
from ml.records import PROTO_TCP, Flows
from ml.table import CROWD, PlaceTable, mix

HORIZONS_S: Final = (10.0, 60.0)
#: Gaps between sessions are remembered longer: a beacon each minute is seen after ten of them.
RHYTHM_HORIZON_S: Final = 600.0
PORT_HORIZONS_S: Final = (10.0, 60.0, 300.0)
SOURCES: Final = 32_768
PAIRS: Final = 65_536
PORT_CELLS: Final = 128
PEER_CELLS: Final = 32
SHAPE_CELLS: Final = 16
#: A session shorter than this counts as short: a login attempt, a probe, one request.
SHORT_NS: Final = 5_000_000_000

#: What is summed per source and horizon, in this order.
SOURCE_SUMS: Final = (
    "flows", "packets", "bytes", "failed", "half_open", "short", "lingering", "odd",
)  # fmt: skip
SOURCE_FEATURES: Final = (
    *(f"src_{name}_{int(h)}s" for h in HORIZONS_S for name in SOURCE_SUMS),
    *(f"src_ports_{int(h)}s" for h in PORT_HORIZONS_S),
    "src_peers_60s",
    *(f"src_alike_{int(h)}s" for h in HORIZONS_S),
    "src_failed_share_60s",
    "src_half_open_share_60s",
)
PAIR_FEATURES: Final = (
    "pair_starts", "pair_alike", "pair_regularity", "pair_lingering", "pair_failed", "pair_packets",
    "pair_answer_bytes",
)  # fmt: skip

#: Shares are taken over this many more flows than were seen: one failure of one flow is not "all failed".
_DOUBT: Final = 20

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windowed:
    """Window features of a batch, one row per distinct source and pair, and which row each flow belongs to.

    source_key: uint64[S]; sources: float32[S, len(SOURCE_FEATURES)]; pairs: float32[P, len(PAIR_FEATURES)]; log1p of
    counts, or shares.
    of_source, of_pair: int64[N], row of each flow."""

    source_key: NDArray[np.uint64]
    sources: Floats
    of_source: Ints
    pairs: Floats
    of_pair: Ints


def key_of_source(key: Flows) -> NDArray[np.uint64]:
    """One number per source: an IPv4 address, or the first 64 bits of an IPv6 address. From flow keys. uint64[N]."""
    words = np.ascontiguousarray(key["addr"][:, 0]).view("<u8").reshape(-1, 2)
    return np.where(key["family"] == 4, words[:, 1], words[:, 0])


def pair_keys(flows: Flows, sources: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = np.ascontiguousarray(flows["key"]["addr"][:, 1]).view("<u8").reshape(-1, 2)
    return mix(mix(sources) ^ words[:, 0] ^ (words[:, 1] * np.uint64(3)) ^ services(flows).astype("u8"))


def services(flows: Flows) -> NDArray[np.uint32]:
    """Protocol and server port in one number: ``proto << 16 | port``; ICMP: the type for a port. uint32[N]."""
    key = flows["key"]
    port = np.where((key["proto"] == 1) | (key["proto"] == 58), flows["icmp_type"], key["port"][:, 1])
    return np.asarray(key["proto"].astype("u4") << 16 | port.astype("u4"))


class Windows:
    """All window state of one node. ``update`` is called once per tick, with time going forward."""

    def __init__(self, sources: int = SOURCES, pairs: int = PAIRS, seed: int = 0) -> None:
        self._sources = _SourceMemory(sources, seed)
        self._pairs = _PairMemory(pairs, seed + 1)
        self._epoch_ns = 0

    @property
    def nbytes(self) -> int:
        return self._sources.nbytes + self._pairs.nbytes

    @property
    def evicted(self) -> int:
        return self._sources.places.evicted + self._pairs.places.evicted

    @property
    def crowded(self) -> int:
        return self._sources.places.crowded + self._pairs.places.crowded

    def update(self, shown: Snapshots) -> Windowed:
        """Count this batch, then say how each of its sources and pairs stands."""
        if not len(shown):
            return _nothing()
        self._epoch_ns = self._epoch_ns or shown.now_ns  # small numbers: cells hold 32 bits
        batch = _Batch.of(shown, self._epoch_ns)
        keys = key_of_source(shown.flows["key"])
        sources, of_source = distinct(keys)
        pairs, of_pair = distinct(pair_keys(shown.flows, keys))
        source_rows = self._sources.update(batch, sources, of_source)
        return Windowed(sources, source_rows, of_source, self._pairs.update(batch, pairs, of_pair), of_pair)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What both memories count, computed once per flow."""

    now_ms: int
    first_ns: Ints
    fresh: NDArray[np.float64]
    failed: NDArray[np.float64]
    half_open: NDArray[np.float64]
    short: NDArray[np.float64]
    lingering: NDArray[np.float64]
    odd: NDArray[np.float64]
    packets: NDArray[np.float64]
    sent: NDArray[np.float64]
    answered: NDArray[np.float64]
    service: NDArray[np.uint32]
    peer: NDArray[np.uint64]
    shape: NDArray[np.uint64]

    @classmethod
    def of(cls, shown: Snapshots, epoch_ns: int) -> "_Batch":
        flows, side = shown.flows, shown.flows["side"]
        end = outcome(flows)
        fresh = shown.fresh
        alive_ns = flows["last_ns"].astype("i8") - shown.first_ns
        service = services(flows)
        peer = np.ascontiguousarray(flows["key"]["addr"][:, 1]).view("<u8").reshape(-1, 2)
        odd = fresh & ((side["illegal_flags"].sum(axis=1) > 0) | (side["fragments"][:, 0] > 0))
        return cls(
            now_ms=max(0, shown.now_ns - epoch_ns) // 1_000_000,
            first_ns=shown.first_ns,
            fresh=fresh.astype("f8"),
            failed=(fresh & end.failed).astype("f8"),
            half_open=(fresh & end.half_open).astype("f8"),
            short=(shown.final & (alive_ns < SHORT_NS)).astype("f8"),
            lingering=((shown.why == Why.REPEAT) & (flows["key"]["proto"] == PROTO_TCP)).astype("f8"),
            odd=odd.astype("f8"),
            packets=shown.new_packets[:, 0].astype("f8"),
            sent=shown.new_bytes[:, 0].astype("f8"),
            answered=shown.new_bytes[:, 1].astype("f8"),
            service=service,
            peer=peer[:, 1] ^ peer[:, 0],
            shape=_shape(flows, service),
        )


def _shape(flows: Flows, service: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A number that flows of near-identical size to one service share: half octaves of payload, both ways."""
    payload = flows["side"]["payload_bytes"]
    steps = (2 * np.log2(payload + 1.0)).astype("u8")
    return mix(service.astype("u8") << np.uint64(16) | steps[:, 0] << np.uint64(8) | steps[:, 1])


class _SourceMemory:
    def __init__(self, size: int, seed: int) -> None:
        self.places = PlaceTable(size, seed)
        self._sums = np.zeros((size + 1, len(HORIZONS_S), len(SOURCE_SUMS)), "f4")
        self._alike = np.zeros((size + 1, len(HORIZONS_S), SHAPE_CELLS), "f4")
        self._ports = np.full((size + 1, PORT_CELLS), _NEVER, "i4")  # when a cell was last hit, tenths of a second
        self._peers = np.full((size + 1, PEER_CELLS), _NEVER, "i4")
        self._stamp_ms = np.zeros(size + 1, "i8")

    @property
    def nbytes(self) -> int:
        arrays = (self._sums, self._alike, self._ports, self._peers, self._stamp_ms)
        return self.places.nbytes + sum(a.nbytes for a in arrays)

    def update(self, batch: _Batch, keys: NDArray[np.uint64], row: Ints) -> Floats:
        place, new = self.places.find(keys, batch.now_ms)
        tenth = min(batch.now_ms // 100, _LAST)
        for state, empty in ((self._sums, 0), (self._alike, 0), (self._ports, _NEVER), (self._peers, _NEVER)):
            state[place[new]] = empty
            state[CROWD] = empty  # the crowd remembers nothing
        past_ms = batch.now_ms - self._stamp_ms[place]
        self._stamp_ms[place] = batch.now_ms
        columns = (
            batch.fresh, batch.packets, batch.sent, batch.failed, batch.half_open, batch.short, batch.lingering,
            batch.odd,
        )  # fmt: skip
        added = np.stack([np.bincount(row, column, len(keys)) for column in columns], axis=1).astype("f4")
        cells = row * SHAPE_CELLS + (batch.shape % np.uint64(SHAPE_CELLS)).astype("i8")
        shaped = np.bincount(cells, batch.fresh, len(keys) * SHAPE_CELLS).astype("f4").reshape(-1, 1, SHAPE_CELLS)
        fresh = np.flatnonzero(batch.fresh)
        port_cell = (mix(batch.service[fresh].astype("u8")) % np.uint64(PORT_CELLS)).astype("i8")
        peer_cell = (mix(batch.peer[fresh]) % np.uint64(PEER_CELLS)).astype("i8")
        self._ports[place[row[fresh]], port_cell] = tenth
        self._peers[place[row[fresh]], peer_cell] = tenth
        out = np.empty((len(keys), len(SOURCE_FEATURES)), "f4")
        for at in range(0, len(keys), _PIECE):
            part = slice(at, at + _PIECE)
            self._stand(out[part], place[part], past_ms[part], added[part], shaped[part], tenth)
        return out

    def _stand(self, out: Floats, place: Ints, past_ms: Ints, added: Floats, shaped: Floats, tenth: int) -> None:
        """Fade, add, and write how each source stands; in pieces that fit a core's cache."""
        fade = _fade(past_ms, HORIZONS_S)
        sums, alike = self._sums[place], self._alike[place]
        sums *= fade[:, :, None]
        sums += added[:, None, :]
        alike *= fade[:, :, None]
        alike += shaped
        self._sums[place], self._alike[place] = sums, alike
        self._sums[CROWD] = self._alike[CROWD] = 0
        long = sums[:, 1]
        flows, failed, half_open = (long[:, SOURCE_SUMS.index(name)] for name in ("flows", "failed", "half_open"))
        ports = _distinct(self._ports, place, tenth, PORT_HORIZONS_S)
        peers = _distinct(self._peers, place, tenth, (60.0,))
        at = 0
        for columns in (sums.reshape(len(place), -1), ports, peers, alike.max(axis=2)):
            np.log1p(columns, out=out[:, at : at + columns.shape[1]])
            at += columns.shape[1]
        out[:, at] = failed / (flows + _DOUBT)
        out[:, at + 1] = half_open / (flows + _DOUBT)


class _PairMemory:
    """Sums: starts, lingering, failed, packets, answered bytes, gaps counted, gap sum, gap square sum."""

    def __init__(self, size: int, seed: int) -> None:
        self.places = PlaceTable(size, seed)
        self._sums = np.zeros((size + 1, 8), "f4")
        self._alike = np.zeros(size + 1, "f4")
        self._shape = np.zeros(size + 1, "u8")
        self._last_ns = np.zeros(size + 1, "i8")
        self._stamp_ms = np.zeros(size + 1, "i8")

    @property
    def nbytes(self) -> int:
        arrays = (self._sums, self._alike, self._shape, self._last_ns, self._stamp_ms)
        return self.places.nbytes + sum(a.nbytes for a in arrays)

    def update(self, batch: _Batch, keys: NDArray[np.uint64], row: Ints) -> Floats:
        place, new = self.places.find(keys, batch.now_ms)
        for state in (self._sums, self._alike, self._shape, self._last_ns):
            state[place[new]] = 0
            state[CROWD] = 0
        fade = _fade(batch.now_ms - self._stamp_ms[place], (60.0, RHYTHM_HORIZON_S))
        self._stamp_ms[place] = batch.now_ms
        gaps = self._gaps(batch, place, row, len(keys))
        columns = (batch.fresh, batch.lingering, batch.failed, batch.packets, batch.answered)
        added = np.stack([*(np.bincount(row, column, len(keys)) for column in columns), *gaps], axis=1)
        sums = (self._sums[place] * fade[:, _PAIR_FADES] + added).astype("f4")
        self._sums[place] = sums
        alike = self._alike[place] * fade[:, 0] + self._same_shape(batch, place, row, len(keys))
        self._alike[place] = alike
        starts, lingering, failed, packets, answered, count, total, square = sums.T
        mean = total / np.maximum(count, 1e-6)
        spread = np.sqrt(np.maximum(square / np.maximum(count, 1e-6) - mean * mean, 0)) / np.maximum(mean, 1e-3)
        # Independent arrivals spread by 1, and by 0.6 now and then when few: only half of that is a rhythm.
        regular = np.clip(1 - 2 * spread, 0, 1) * np.clip((count - 4) / 8, 0, 1)
        return np.stack(
            [
                np.log1p(starts), np.log1p(alike), regular, np.log1p(lingering), np.log1p(failed), np.log1p(packets),
                np.log1p(answered),
            ],
            axis=1,
        ).astype("f4")  # fmt: skip

    def _gaps(self, batch: _Batch, place: Ints, row: Ints, size: int) -> list[NDArray[np.float64]]:
        """Count, sum and square sum (seconds) of the gaps between starts of flows of one pair; remembers the last."""
        fresh = np.flatnonzero(batch.fresh)
        if np.bincount(row[fresh], minlength=1).max() > 1:  # else there is nothing to bring in order
            fresh = fresh[np.lexsort((batch.first_ns[fresh], row[fresh]))]
        rows, starts = row[fresh], batch.first_ns[fresh]
        before = np.empty_like(starts)
        before[1:] = starts[:-1]
        leads = np.ones(len(rows), "?")
        leads[1:] = rows[1:] != rows[:-1]
        before[leads] = self._last_ns[place[rows[leads]]]
        tails = np.roll(leads, -1)
        self._last_ns[place[rows[tails]]] = starts[tails]
        gap = np.where(before > 0, np.clip((starts - before) * 1e-9, 0, 600), 0)
        weights = ((before > 0).astype("f8"), gap, gap * gap)
        return [np.bincount(rows, weight, size).astype("f8") for weight in weights]

    def _same_shape(self, batch: _Batch, place: Ints, row: Ints, size: int) -> NDArray[np.float64]:
        """How many new flows of each pair look like the pair's latest; one that is alone in its batch is compared
        with the latest before it."""
        fresh = np.flatnonzero(batch.fresh)
        rows, shape = row[fresh], batch.shape[fresh]
        before = self._shape[place]
        self._shape[place[rows]] = shape
        latest = self._shape[place]
        same = np.bincount(rows, shape == latest[rows], size)
        return np.asarray(same - (same > 0) * (before != latest))


def _nothing() -> Windowed:
    none = np.zeros(0, "i8")
    rows = np.zeros((0, len(SOURCE_FEATURES)), "f4"), np.zeros((0, len(PAIR_FEATURES)), "f4")
    return Windowed(np.zeros(0, "u8"), rows[0], none, rows[1], none)


#: Which of the two horizons each pair sum fades with: the last three are gaps.
_PAIR_FADES: Final = [0, 0, 0, 0, 0, 1, 1, 1]
_PIECE: Final = 1024
#: Long before any time that occurs.
_NEVER: Final = -1_000_000
#: Six years after the first batch; a clock that jumped further stands still.
_LAST: Final = 2**31 - 1


def _fade(past_ms: Ints, horizons_s: tuple[float, ...]) -> Floats:
    """What is left of a figure after ``past_ms``; a clock that stepped back fades nothing. float32[N, horizons]."""
    past = np.maximum(past_ms, 0).astype("f4")[:, None]
    return np.asarray(np.exp(-past / (np.array(horizons_s, "f4") * 1000)))


def _distinct(cells: NDArray[np.int32], place: Ints, tenth: int, horizons_s: tuple[float, ...]) -> Floats:
    """Linear counting: how many different things hit the cells of each place within each horizon.

    Source: Whang et al. 1990. The crowd, where a flood ends up, is counted only once."""
    size = cells.shape[1]
    empty = np.empty((len(place), len(horizons_s)), "i8")
    own = place != CROWD
    piece = cells[place[own]]
    for i, horizon in enumerate(horizons_s):
        empty[own, i] = _count(piece < tenth - 10 * horizon)
    if not own.all():
        empty[~own] = [int((cells[CROWD] < tenth - 10 * horizon).sum()) for horizon in horizons_s]
    return np.asarray(-size * np.log(np.maximum(empty, 0.5) / size), "f4")


def _count(marks: NDArray[np.bool_]) -> Ints:
    """How many are set in each row; rows are a multiple of 32 long. Five times as fast as a sum. int64[N]."""
    words = np.packbits(marks, axis=1).view("<u4")
    return np.asarray(np.bitwise_count(words).sum(axis=1, dtype="i8"))
