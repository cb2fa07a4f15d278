"""The learning pool: clean traffic waits in quarantine before a model may learn from it.

Poison is the reason. One attack flow in a hundred in the training set cost half of the detection, and cutting off the
strangest rows did not repair it. So a segment of traffic is kept for a day, and when a layer blames a source in that
time, or did in the day before, its flows are left out. What no layer noticed within a day is learned: a patient
attacker below every threshold is the known weakness, and the promotion gate the second line against it.

A pool is a directory of tables named by the second at which they were recorded, plus ``blamed.log``.
"""

from pathlib import Path
from typing import Final

import numpy as np

from ml.dataset import Table, TableError, concatenate
from ml.own import as_void, to_text

QUARANTINE_S: Final = 86_400.0
MAX_SEGMENTS: Final = 512
_BLAMED: Final = "blamed.log"
MAX_BLAMED_BYTES: Final = 8 * 1024 * 1024


class Pool:
    """One writer, any readers. Oldest segments are dropped beyond MAX_SEGMENTS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, table: Table, at_unix_s: float) -> None:
        """Put a segment into quarantine. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / ".segment"
        table.save(fresh)
        fresh.replace(self.folder / f"{int(at_unix_s):012d}.npz")
        for path in self._segments()[:-MAX_SEGMENTS]:
            path.unlink(missing_ok=True)

    def blame(self, source: str, at_unix_s: float) -> None:
        """Note that some layer blamed an address (text). Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _BLAMED).open("a", encoding="ascii", errors="replace") as log:
            log.write(f"{int(at_unix_s)} {source}\n")

    def clean(self, now_unix_s: float) -> Table:
        """What may be learned now: segments out of quarantine without flows of sources blamed within a day of them.

        Raises TableError when nothing is ready, with the time until something is."""
        ready = [path for path in self._segments() if now_unix_s - int(path.stem) >= QUARANTINE_S]
        if not ready:
            wait = min((int(path.stem) + QUARANTINE_S - now_unix_s for path in self._segments()), default=QUARANTINE_S)
            raise TableError(f"nothing in {self.folder} is out of quarantine yet: wait {wait / 3600:.1f} hours")
        blamed = self._blamed()
        return concatenate([self._without(Table.load(path), int(path.stem), blamed) for path in ready])

    def _segments(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.npz") if path.stem.isdecimal())

    def _blamed(self) -> list[tuple[int, str]]:
        try:
            with (self.folder / _BLAMED).open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(0, size - MAX_BLAMED_BYTES))
                lines = log.read().decode("ascii", "replace").splitlines()
        except FileNotFoundError:
            return []
        parts = (line.split() for line in lines)
        return [(int(part[0]), part[1]) for part in parts if len(part) == 2 and part[0].isdecimal()]

    @staticmethod
    def _without(table: Table, recorded: int, blamed: list[tuple[int, str]]) -> Table:
        near = {source for at, source in blamed if abs(at - recorded) <= QUARANTINE_S}
        sources, of_source = np.unique(as_void(table.key["addr"][:, 0]), return_inverse=True)
        bad = np.array([to_text(source.tobytes()) in near for source in sources], "?")
        return table.rows(~bad[of_source])
