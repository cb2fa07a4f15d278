"""A table of judged-to-be flow snapshots on disk: what ``ml.extract`` writes and the other commands read.

One row per snapshot. The habit columns are left empty (they belong to a model, not to a capture). The file is a
plain ``.npz`` without pickles and carries the schema hash; a table of another schema is refused.

The key of each flow is kept for labels and for naming sources in reports. No head ever sees it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ml.features import Habits, extract, fill_habits, schema_hash
from ml.flows import FlowReader, Snapshots
from ml.meter import TICK_NS, FlowSource
from ml.progress import Progress
from ml.windows import Windows, key_of_source, services

Floats = NDArray[np.float32]


class TableError(ValueError):
    """The table cannot be used. The message says which file, why, and what to run."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length N, in order of time. features: float32[N, N_FEATURES]; sources and pairs: window features
    of the flow's source and pair at that moment; at_ns: when it was judged; fresh and final: first and last sight."""

    features: Floats
    sources: Floats
    pairs: Floats
    service: NDArray[np.uint32]
    key: NDArray[np.void]
    icmp_type: NDArray[np.uint8]
    flow_id: NDArray[np.int64]
    at_ns: NDArray[np.int64]
    first_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    final: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "Table":
        return Table(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def with_habits(self, habits: Habits) -> Floats:
        """The feature matrix with its habit columns filled in. float32[N, N_FEATURES]."""
        out = np.ascontiguousarray(self.features.T)
        fill_habits(out, self.service, habits)
        return out.T

    def source_keys(self) -> NDArray[np.uint64]:
        """One number per source address (IPv6: /64). uint64[N]."""
        return key_of_source(self.key)

    def units(self) -> NDArray[np.int64]:
        """Number of the unit each row belongs to: one minute of one flow. int64[N]. False positives are counted per
        unit, because a flow is blamed once however often it is looked at."""
        minute = np.maximum(self.at_ns - self.first_ns, 0) // 60_000_000_000
        return np.unique(np.stack([self.flow_id, minute]), axis=1, return_inverse=True)[1]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            columns = {field.name: getattr(self, field.name) for field in fields(self)}
            np.savez_compressed(stream, allow_pickle=False, schema=np.array(schema_hash()), **columns)

    @classmethod
    def load(cls, path: Path) -> "Table":
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["schema"]) != schema_hash():
                    raise TableError(f"{path} was extracted with another feature schema: run ml.extract again")
                return cls(*(file[field.name] for field in fields(cls)))
        except (OSError, KeyError, ValueError, BadZipFile, EOFError) as exc:
            if isinstance(exc, TableError):
                raise
            raise TableError(f"{path} is no table of ml.extract: {exc}") from exc


def collect(source: FlowSource, label: str = "flows", period_ns: int = TICK_NS) -> Table:
    """Watch a source to its end, as the live cell would, and keep every snapshot with its window features."""
    reader = FlowReader()
    return tabulate((reader.tick(tick) for tick in source.ticks(period_ns)), label)


def tabulate(looks: Iterable[Snapshots], label: str, windows: Windows | None = None) -> Table:
    """Every snapshot with its window features. windows: those of an earlier stretch, to go on from."""
    windows, habits = windows or Windows(), Habits.none()
    parts: list[Table] = []
    progress = Progress(label)
    rows = 0
    for shown in looks:
        if not len(shown):
            continue
        seen = windows.update(shown)
        parts.append(
            Table(
                np.ascontiguousarray(extract(shown, habits)), seen.sources[seen.of_source], seen.pairs[seen.of_pair],
                services(shown.flows), shown.flows["key"].copy(), shown.flows["icmp_type"].copy(), shown.flow_id,
                np.full(len(shown), shown.now_ns), shown.first_ns, shown.flows["last_ns"].astype("i8"),
                shown.fresh, shown.final,
            )
        )  # fmt: skip
        rows += len(shown)
        progress.show(f"{rows} snapshots")
    progress.done(f"{rows} snapshots")
    if not parts:
        raise TableError(f"{label}: no flow was seen, nothing to learn from")
    return Table(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Table)))


def concatenate(tables: list[Table]) -> Table:
    """Several tables as one; flow ids are made distinct. Keeps the order given."""
    shift, moved = 0, []
    for table in tables:
        columns = {field.name: getattr(table, field.name) for field in fields(Table)}
        columns["flow_id"] = table.flow_id + shift
        shift = int(columns["flow_id"].max()) + 1 if len(table) else shift
        moved.append(Table(**columns))
    return Table(*(np.concatenate([getattr(table, field.name) for table in moved]) for field in fields(Table)))
