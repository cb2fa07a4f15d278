"""The learning pool: traffic waits in quarantine before a model may learn from it.

Poison is the reason. One attack flow in a hundred in the training set cost half of the detection, and cutting off the
strangest rows did not repair it. So a segment of traffic (:mod:`ml.segment`) is kept for a day, and a source that any
layer blames in that time, or later, or did in the day before, is left out. What no layer noticed is learned: a patient
attacker below every threshold is the known weakness, and the promotion gate the second line against it.

A pool is a directory of segments, named by the second at which they ended, and the blamed (:mod:`ml.blamed`).
"""

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.blamed import noted
from ml.dataset import Table, TableError, concatenate, tabulate
from ml.own import from_own, parse_own
from ml.segment import SegmentError, looks, read
from ml.table import mix
from ml.windows import Windows

QUARANTINE_S: Final = 86_400.0
#: More rows teach no more and take an hour longer: each segment gives as many, flows as a whole, chosen by chance.
MOST_ROWS: Final = 200_000
SUFFIX: Final = ".rows"
#: What the session cell is writing just now.
OPEN: Final = "open.part"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What may be learned now. own: the node's addresses as the node knew them; left_out: sources that were blamed;
    kept: the smallest share of sources that a segment kept; unread: segments that cannot be read, in words."""

    table: Table
    own: NDArray[np.void]
    segments: int
    left_out: int
    kept: float
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoolState:
    """segments and bytes on disk; ready: segments out of quarantine; wait_s: until the next one is."""

    segments: int
    bytes: int
    ready: int
    wait_s: float


def state_dir() -> Path:
    """Where the service of this user keeps its state."""
    state = os.environ.get("TEGUMENTAR_STATE_DIR")
    if state:
        return Path(state)
    return Path("/var/lib/tegumentar") if os.geteuid() == 0 else Path.home() / ".local/state/tegumentar"


def pool_dir() -> Path:
    """Where the service writes its pool."""
    return state_dir() / "pool"


class Pool:
    """One writer, any readers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def segments(self) -> list[Path]:
        """Those that have ended, oldest first."""
        return sorted(path for path in self.folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())

    def state(self, now_unix_s: float, quarantine_s: float = QUARANTINE_S) -> PoolState:
        ages, size = [], 0
        for path in self.segments():
            try:
                size += path.stat().st_size
            except FileNotFoundError:
                continue
            ages.append(now_unix_s - int(path.stem))
        waits = [quarantine_s - age for age in ages if age < quarantine_s]
        return PoolState(len(ages), size, len(ages) - len(waits), min(waits, default=0.0))

    def clean(self, now_unix_s: float, quarantine_s: float = QUARANTINE_S, most_rows: int = MOST_ROWS) -> Lesson:
        """What may be learned now: segments out of quarantine without the flows of blamed sources.

        Raises TableError when nothing is ready, with the time until something is."""
        ready = [path for path in self.segments() if now_unix_s - int(path.stem) >= quarantine_s]
        if quarantine_s <= 0 and (self.folder / OPEN).exists():
            ready.append(self.folder / OPEN)  # somebody cannot wait, so he does not wait for the hour to end either
        if not ready:
            wait = self.state(now_unix_s, quarantine_s).wait_s or quarantine_s
            raise TableError(f"nothing in {self.folder} is out of quarantine yet: wait {wait / 3600:.1f} hours")
        blamed, windows = noted(self.folder), Windows()
        tables, own, unread, left_out, kept = [], set[str](), [], 0, 1.0
        for path in ready:
            try:
                header, rows = read(path)
                mine = parse_own(list(header.own))
            except (SegmentError, ValueError) as exc:
                unread.append(str(exc))
                continue
            ended = int(path.stem) if path.stem.isdecimal() else now_unix_s
            bad = of_sources(rows["flow"]["key"], [name for at, name in blamed if at >= ended - QUARANTINE_S])
            bad &= ~from_own(rows["flow"]["key"], mine)
            left_out += len(np.unique(rows["flow"]["key"]["addr"][bad, 0], axis=0))
            if bad.all():
                continue
            own |= set(header.own)
            kept = min(kept, header.kept)
            good = rows[~bad]
            good["flow_id"] = np.unique(good["flow_id"], return_inverse=True)[1]
            whole = tabulate(looks(header, good), path.name, windows)
            tables.append(_some_flows(whole, most_rows // len(ready)))
        if not tables:
            reasons = "; ".join(unread[:3]) or "every source in it was blamed"
            raise TableError(f"nothing in {self.folder} can be learned from: {reasons}")
        return Lesson(concatenate(tables), parse_own(sorted(own)), len(tables), left_out, kept, tuple(unread))


def of_sources(key: NDArray[Any], subjects: Iterable[str]) -> NDArray[np.bool_]:
    """Which flows an address or network among these began; an IPv6 host counts as its /64. bool[N]. What is no address
    is nobody."""
    words = np.ascontiguousarray(key["addr"][:, 0]).view(">u8").reshape(-1, 2).astype("u8")
    networks: dict[int, set[tuple[int, int]]] = {}
    for subject in set(subjects):
        try:
            network = ipaddress.ip_network(subject, strict=False)
        except ValueError:
            continue
        four = network.version == 4
        length = network.prefixlen + 96 if four else min(network.prefixlen, 64)
        value = int(network.network_address) | (0xFFFF << 32 if four else 0)
        value &= _mask(length)
        networks.setdefault(length, set()).add((value >> 64, value & 0xFFFFFFFFFFFFFFFF))
    found = np.zeros(len(key), "?")
    for length, values in networks.items():
        mask = _mask(length)
        high, low = (words[:, i] & np.uint64(mask >> (64 - 64 * i) & 0xFFFFFFFFFFFFFFFF) for i in (0, 1))
        sought = np.array(sorted(values), "u8")
        found |= np.isin(mix(high) ^ low, mix(sought[:, 0]) ^ sought[:, 1])
    return found


def _mask(length: int) -> int:
    return (1 << 128) - (1 << 128 - length)


def _some_flows(table: Table, most: int) -> Table:
    """As many flows as make about so many rows, chosen by chance; the same every time."""
    if len(table) <= most:
        return table
    drawn = np.random.default_rng(0).random(int(table.flow_id.max()) + 1)
    return table.rows(drawn[table.flow_id] < most / len(table))
