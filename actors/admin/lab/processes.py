"""The service's processes, as /proc shows them: who lives, whose child it is, which sockets have nobody behind them."""

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from actors.admin.lab.net import Namespace, started


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process at one moment. started makes a re-used pid another process."""

    pid: int
    parent: int
    started: str
    title: str

    def lives(self) -> bool:
        """Still the same process, and no zombie: a zombie is only waiting to be counted."""
        return started(self.pid) == self.started and state_of(self.pid) not in "ZX"


def tree(root: int) -> list[Process]:
    """The process and all its descendants, parents before children. Empty when it is gone."""
    everyone = {process.pid: process for process in map(look, _pids()) if process is not None}
    found = [everyone[root]] if root in everyone else []
    for process in found:
        found.extend(child for child in everyone.values() if child.parent == process.pid)
    return found


def await_end(family: list[Process], limit_s: float = 2.0) -> list[Process]:
    """Wait until these have ended; returns those that have not within the limit."""
    deadline = time.monotonic() + limit_s
    while (living := [process for process in family if process.lives()]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return living


def look(pid: int) -> Process | None:
    """One process; None when it does not exist (any more)."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return Process(pid=pid, parent=int(fields[1]), started=fields[19], title=title)
    return None


def state_of(pid: int) -> str:
    """The letter of /proc/PID/stat: R, S, T, Z ...; X when there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return "X"


def pss_bytes(pids: list[int]) -> int:
    """Proportional set size of these processes together; those that are gone count nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that these processes have used so far."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def orphaned_sockets(directory: Path, *namespaces: Namespace) -> list[str]:
    """Socket files below the directory that no process of these namespaces, or of ours, listens on.

    Sockets of the actor system are bound through a descriptor of their directory, so only the name can be compared;
    those names are random and never used twice."""
    alive: set[str] = set()
    for namespace in (None, *namespaces):
        with namespace.entered() if namespace else contextlib.nullcontext():
            table = Path("/proc/thread-self/net/unix").read_text()
        alive |= {Path(words[7]).name for words in map(str.split, table.splitlines()) if len(words) > 7}
    return [str(path) for path in directory.rglob("*") if _is_socket(path) and path.name not in alive]


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(path.lstat().st_mode)
    return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
