"""The mast cell's gift to the learning pool: what it shows of ordinary traffic, kept a day in quarantine (ml/pool.py).

Nothing is learned here. A segment is an hour at most. A busy node fills its share of the disk sooner; then nothing is
kept for the rest of the hour and a random part of the next, so that nobody can know when he is recorded. A very busy
node keeps a share of its *sources*, each with all that it does, because the windows of a source need all its flows;
which ones is drawn anew for every segment.

A segment in which a service came under siege is thrown away: forged sources cannot be blamed one by one. What any
sensor proposes and what policy enforces is noted, and the pool leaves those sources out. When the disk refuses, the
cell goes on without a pool for a while and says so.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from actors.dermis.sessions import Host
    from ml.flows import Snapshots

SEGMENT_S: Final = 3600.0
#: Four days: one in quarantine, three to learn from.
SEGMENTS: Final = 96
#: As long as ml.pool keeps a segment back; said here too, because that file brings all of learning with it.
QUARANTINE_S: Final = 86_400.0
#: Rows are packed and written so many at a time, or when they are a minute old.
BLOCK, BLOCK_S = 512, 60.0
#: A look that shows more rows of the kept sources than this asks for fewer sources.
PER_LOOK: Final = 2_048
#: A segment that is full sooner saw too little time: half of the sources next time.
TOO_SOON_S: Final = 300.0
MOST_HALVINGS: Final = 20
AFTER_TROUBLE_S: Final = 600.0
#: Blamed sources that wait to be written down; of one source once in ten minutes.
BLAMED, BLAMED_AGAIN_S = 4_096, 600.0
_PART: Final = "open.part"


class Samples:
    """Keeps what is shown, within a budget of disk. Times are of the wall clock, except ``now_ns`` (monotonic)."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        """megabytes: of disk, for all segments together; 0 keeps nothing."""
        self.folder, self.trouble, self.rows = folder, "", 0
        self._limit = int(megabytes * 1e6)
        self._file = -1
        self._pending: list[NDArray[Any]] = []
        self._waiting_since = 0.0
        self._began = self._ends = self._resume = 0.0
        self._bytes = self._halvings = 0
        self._secret = np.uint64(0)
        self._blamed: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        if self._limit:
            self._adopt()

    @property
    def on(self) -> bool:
        return self._limit > 0

    def words(self, unix_s: float) -> str:
        """What it does now, for people."""
        if not self.on:
            return "off: mast.pool_megabytes is 0"
        if self.trouble:
            return f"waiting: {self.trouble}"
        if unix_s < self._resume:
            return f"resting for {(self._resume - unix_s) / 60:.0f} min"
        return "recording" if self._halvings == 0 else f"recording one source in {1 << self._halvings}"

    def status(self, unix_s: float) -> dict[str, Any]:
        """For people and other programs: what it does, and what lies there; out of quarantine after a day."""
        ages, size = [], 0
        for path in self.folder.glob("*.rows") if self.on else ():
            with suppress(OSError, ValueError):
                size += path.stat().st_size
                ages.append(unix_s - int(path.stem))
        return {
            "state": self.words(unix_s),
            "rows": self.rows,
            "segments": len(ages),
            "ready": sum(age >= QUARANTINE_S for age in ages),
            "bytes": size + self._bytes,
        }

    def keep(self, now_ns: int, unix_s: float, shown: "Snapshots", host: "Host") -> None:
        """Take what one look showed, as long as this segment has room."""
        if not self.on or unix_s < self._resume or not len(shown):
            return
        from ml.own import from_own
        from ml.segment import MAX_ROWS, rows_of

        self.trouble = ""
        own = from_own(shown.flows["key"], host.own)
        mine = self._chosen(shown.flows["key"], own)
        if mine.sum() > PER_LOOK:
            self._fewer()
            return
        if not mine.any():
            return
        try:
            if self._file < 0:
                self._begin(now_ns, unix_s, host)
            if not self._pending:
                self._waiting_since = unix_s
            self._pending.append(rows_of(shown.rows(mine), own[mine]))
            self.rows += int(mine.sum())
            if sum(map(len, self._pending)) >= BLOCK:
                self._write()
            if self._bytes >= self._limit // SEGMENTS or self.rows >= MAX_ROWS:
                self._full(unix_s)
        except OSError as exc:
            self._give_up(unix_s, exc)

    def flush(self, unix_s: float) -> None:
        """Write what waited long enough, end what lasted long enough, note who was blamed. Every few seconds."""
        if not self.on or (unix_s < self._resume and not (self._blamed or self._pending)):
            return
        try:
            if self._pending and unix_s - self._waiting_since >= BLOCK_S:
                self._write()
            if self._file >= 0 and unix_s >= self._ends:
                self._end(unix_s)
                if self._bytes < self._limit // SEGMENTS // 4:
                    self._halvings = max(0, self._halvings - 1)
            self._note(unix_s)
        except OSError as exc:
            self._give_up(unix_s, exc)

    def blame(self, subject: str, unix_s: float) -> None:
        """Somebody whom a sensor proposed or policy refused: nothing is learned from him."""
        if not self.on or unix_s - self._noted.get(subject, float("-inf")) < BLAMED_AGAIN_S:
            return
        self._noted[subject] = self._blamed[subject] = unix_s
        if len(self._noted) > BLAMED:
            del self._noted[next(iter(self._noted))]
        if len(self._blamed) > BLAMED:
            self.flush(unix_s)
            self._blamed.clear()

    def alarm(self, unix_s: float) -> None:
        """A siege: what this segment holds is forgotten, and nothing is kept until the hour is over."""
        if self.on:
            self._drop()
            self._resume = max(self._resume, unix_s + SEGMENT_S)

    def close(self, unix_s: float) -> None:
        """The cell ends: what was kept is one more segment."""
        with suppress(OSError):
            if self._file >= 0:
                self._end(unix_s)
            self._note(unix_s)

    # --- one segment -------------------------------------------------------------------------------------------------

    def _begin(self, now_ns: int, unix_s: float, host: "Host") -> None:
        from ml.own import to_text
        from ml.segment import Header, head

        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.folder / _PART, flags, 0o600)
        self._began, self._ends = unix_s, unix_s + SEGMENT_S
        self._bytes = self.rows = 0
        own = tuple(to_text(address.tobytes()) for address in host.own)
        self._append(head(Header(unix_s, max(0, int(unix_s * 1e9) - now_ns), own, 1.0 / (1 << self._halvings))))

    def _write(self) -> None:
        from ml.segment import block

        rows = np.concatenate(self._pending)
        self._pending = []
        self._append(block(rows))

    def _append(self, data: bytes) -> None:
        """Whole or not at all, as far as we can: half a block would end the segment for its reader."""
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, self._bytes)
            raise OSError(28, "No space left on device")
        self._bytes += written

    def _end(self, unix_s: float) -> None:
        if self._pending:
            self._write()
        os.close(self._file)
        self._file = -1
        self._settle(int(unix_s))

    def _settle(self, ended: int) -> None:
        """The open file becomes a segment; the oldest make room."""
        while (home := self.folder / f"{ended:012d}.rows").exists():
            ended += 1
        (self.folder / _PART).rename(home)
        self._secret = np.uint64(secrets.randbits(64))
        segments = sorted(self.folder.glob("*.rows"))
        sizes = [path.stat().st_size for path in segments]
        while segments and (len(segments) > SEGMENTS or sum(sizes) > self._limit):
            segments.pop(0).unlink(missing_ok=True)
            sizes.pop(0)

    def _full(self, unix_s: float) -> None:
        self._end(unix_s)
        if unix_s - self._began < TOO_SOON_S:
            self._halvings = min(MOST_HALVINGS, self._halvings + 1)
        self._resume = self._ends + secrets.randbelow(int(SEGMENT_S / 2))

    def _fewer(self) -> None:
        """Half of the sources, and from the start: a segment holds a source whole or not at all."""
        self._drop()
        self._halvings = min(MOST_HALVINGS, self._halvings + 1)

    def _drop(self) -> None:
        self._pending, self.rows = [], 0
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with suppress(OSError):
            (self.folder / _PART).unlink(missing_ok=True)

    def _give_up(self, unix_s: float, exc: OSError) -> None:
        self._drop()
        self.trouble = f"the learning pool in {self.folder} cannot be written: {exc.strerror or exc}"
        self._resume = unix_s + AFTER_TROUBLE_S

    def _adopt(self) -> None:
        """What an earlier life left open is a segment too."""
        part = self.folder / _PART
        with suppress(OSError):
            self._settle(int(part.stat().st_mtime))

    def _chosen(self, key: Any, own: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows of the sources that this segment keeps; of the node's own flows by whom they go to. bool[N]."""
        if not self._halvings:
            return np.ones(len(key), "?")
        from ml.table import mix
        from ml.windows import key_of_source

        words = np.ascontiguousarray(key["addr"][:, 1]).view("<u8").reshape(-1, 2)
        drawn = mix(np.where(own, words[:, 0] ^ mix(words[:, 1]), key_of_source(key)) ^ self._secret)
        return np.asarray(drawn >> np.uint64(64 - self._halvings) == 0)

    def _note(self, unix_s: float) -> None:
        if self._blamed:
            from ml.blamed import note

            note(self.folder, self._blamed, unix_s)
            self._blamed = {}
