"""The last good copy of every feed, on disk: a node that starts without network is as protected as when it stopped.

One file a feed: a line of JSON about the copy, then the list as it came. Written to a draft, synced, renamed, mode
0600; a copy whose digest does not fit is as good as none.
"""

import contextlib
import hashlib
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

_HEAD_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Copy:
    """About one copy. entries counts what was enforced of it; place is where it came from."""

    digest: str
    entries: int
    fetched_unix_s: float
    place: str = ""
    etag: str = ""
    last_modified: str = ""


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class FeedStore:
    """A directory of copies. ``save`` raises OSError; ``load`` never raises."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, name: str, copy: Copy, data: bytes) -> None:
        """Replace the copy of this feed in one step."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{name}.", dir=self.directory)
        try:
            with open(handle, "wb") as file:
                file.write(msgspec.json.encode(asdict(copy)) + b"\n")
                file.write(data)
                file.flush()
                os.fsync(handle)
            Path(draft).replace(self._path(name))
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def load(self, name: str, max_bytes: int) -> tuple[Copy, bytes] | None:
        """The copy and its data; None when there is none that can be trusted."""
        try:
            with self._path(name).open("rb") as file:
                content = file.read(max_bytes + _HEAD_BYTES)
            head, _, data = content.partition(b"\n")
            copy = msgspec.json.decode(head, type=Copy)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return (copy, data) if digest(data) == copy.digest else None

    def asked(self, name: str) -> float:
        """When the publisher was asked last, wall time; 0 when never. Kept as the time of the file."""
        try:
            return self._path(name).stat().st_mtime
        except OSError:
            return 0.0

    def note_asked(self, name: str, unix_s: float) -> None:
        """Remember when the publisher was asked, where there is a copy."""
        with contextlib.suppress(OSError):
            os.utime(self._path(name), (unix_s, unix_s))

    def forget_drafts(self) -> None:
        """Remove what a killed writer left behind."""
        for draft in self.directory.glob(".*"):
            draft.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.copy"
