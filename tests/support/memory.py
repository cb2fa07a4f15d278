"""Support for tests of memory: entries, and a writer in a process of its own that can be killed."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from actors.core import packed
from actors.core.messages import Entry

REPOSITORY = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000.0

#: Writes bans one group after another and says which are acknowledged, until it is killed.
_WRITER = """
import sys
from pathlib import Path
from actors.dermis.store_sqlite import SqliteStore
from tests.support.memory import ban_entry
store = SqliteStore(Path(sys.argv[1]))
store.open()
number = int(sys.argv[2])
while True:
    group = [number + i for i in range(1 + number % 7)]
    store.write([("permeability", ban_entry(n)) for n in group])
    sys.stdout.write(f"{group[-1]}\\n")
    sys.stdout.flush()
    number = group[-1] + 1
"""


def entry(kind: str, key: str, *, subject: str = "", at: float = NOW, **body: object) -> Entry:
    return Entry(key=key, kind=kind, at_unix_s=at, subject=subject, body=dict(body))


def subject_of(number: int) -> str:
    return f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def ban_entry(number: int, *, until: float = 0.0, at: float = NOW) -> Entry:
    return entry("ban", f"ban-{number}", subject=subject_of(number), at=at, until_unix_s=until, action="ban")


def ban_of_many(numbers: Iterable[int], *, until: float = 0.0, at: float = NOW) -> Entry:
    """One entry that bans each of them."""
    rows = packed.pack(map(subject_of, numbers))
    body = {"action": "ban", "reason": "many", "until_unix_s": until, "since_unix_s": at}
    return Entry(key=f"many-{rows[-17:].hex()}", kind="ban", at_unix_s=at, body=body, subjects=rows)


def writer(directory: Path, start: int) -> "subprocess.Popen[bytes]":
    """A process that writes and acknowledges on its stdout; kill it at will."""
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(directory), str(start)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
