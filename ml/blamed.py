"""Who was blamed by any layer, and when: the list that keeps attackers out of the learning pool. Bounded on disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

NAME: Final = "blamed.log"
MAX_BYTES: Final = 8 * 1024 * 1024


def note(folder: Path, sources: Iterable[str], at_unix_s: float) -> None:
    """Add addresses or networks (text). Of a full list the older half goes. Raises OSError."""
    path = folder / NAME
    with path.open("a", encoding="ascii", errors="replace") as log:
        log.writelines(f"{int(at_unix_s)} {source}\n" for source in sources)
        full = log.tell() > MAX_BYTES
    if full:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(path.read_bytes()[-MAX_BYTES // 2 :].split(b"\n", 1)[-1])
        fresh.replace(path)


def noted(folder: Path) -> list[tuple[int, str]]:
    """(second, source) of each; lines that are none are passed over. Empty without a list. Raises OSError."""
    try:
        with (folder / NAME).open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - 2 * MAX_BYTES))
            lines = log.read().decode("ascii", "replace").splitlines()
    except FileNotFoundError:
        return []
    parts = (line.split() for line in lines)
    return [(int(part[0]), part[1]) for part in parts if len(part) == 2 and part[0].isdecimal()]
