"""A node of demo cells as real processes: ``python -m tests.support.core_node RUN_DIR [OPTIONS as JSON]``.

The first half is the program, run in its own process; the second half is ``Node``, which tests use to drive it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.core.anatomy import Anatomy, CellSpec, Privileges
from actors.core.cell import Cell, answers, receives
from actors.core.errors import TegumentarError
from actors.core.messages import Message

ROOT = Path(__file__).parents[2]


# --- the program ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Token(Message):
    """Handed from cell to cell to show that a link works."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Load(Message):
    """A batch of filler."""

    items: list[str]


class Demo(Cell):
    """A cell that does to itself what a test asks for."""

    def on_start(self) -> None:
        fate = getattr(self.settings, "fate", {}).get(self.name)
        if fate == "die_on_start":
            raise RuntimeError("this cell was told to die in on_start")
        if fate == "die_before_hello":
            os._exit(9)
        if fate == "hang_on_start":
            time.sleep(60)
        self.tokens: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.up_calls: list[str] = []
        self.load = self.stream(Load, lambda items: Load(items=items))

    def on_peer_up(self, name: str) -> None:
        self.up_calls.append(name)

    @receives(Token)
    def on_token(self, message: Token, source: str) -> None:
        self.tokens[source] = message.number

    @receives(Load)
    def on_load(self, message: Load, source: str) -> None:
        self.items[source] = self.items.get(source, 0) + len(message.items)

    def do(self, args: dict[str, Any], by: str) -> Any:
        """Answer first, then do it, so that the test knows that it was understood."""
        self.after(0.01, self._do, args["what"])
        return os.getpid()

    def _do(self, what: str) -> None:
        if what == "raise":
            raise ValueError("boom")
        if what == "exit":
            os._exit(3)
        if what == "sysexit":
            sys.exit(4)
        if what == "segv":
            ctypes.string_at(0)
        if what == "abort":
            os.abort()
        if what == "sleep":
            time.sleep(600)
        if what == "spin":
            while True:
                pass
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "hang_loop":
            self.call(self._hang_loop)
        if what == "degrade":
            self.degraded("told to", "tell it otherwise")

    async def _hang_loop(self) -> None:
        time.sleep(600)  # noqa: ASYNC251 — that is the fault

    def spread(self, args: dict[str, Any], by: str) -> Any:
        """Publish a token."""
        return self.publish(Token(number=args["number"]))

    def flood(self, args: dict[str, Any], by: str) -> Any:
        """Put so many items into the stream every 50 ms, for so many rounds."""

        def again(rounds: int) -> None:
            self.load.put_many(["x" * 60] * args["items"])
            if rounds > 1:
                self.after(0.05, again, rounds - 1)

        again(args["rounds"])
        return True

    def wish(self, args: dict[str, Any], by: str) -> Any:
        """Ask another cell what the asker says, in this cell's own name but as if root had asked."""
        deferred = self.defer()
        self.ask(args["wish"], args["args"], deferred.relay, by="cli uid 0")
        return deferred

    def look(self, args: dict[str, Any], by: str) -> Any:
        """What this cell knows."""
        return {
            "pid": os.getpid(),
            "uid": os.getuid(),
            "tokens": self.tokens,
            "items": self.items,
            "sent": self.load.sent,
            "dropped": self.load.dropped,
            "waiting": self.load.waiting,
            "peers": sorted(row.cell for row in self.peers if row.up),
            "ups": self.up_calls,
            "counters": dict(self.counters),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "rss_kb": int(Path("/proc/self/statm").read_text().split()[1]) * 4,
        }


def demo(name: str, *, asyncio: bool = False) -> type[Cell]:
    """A class of its own for each demo cell, because verbs are declared per class."""

    def verb(method: str) -> Any:
        def handler(self: Demo, args: dict[str, Any], by: str) -> Any:
            return getattr(Demo, method)(self, args, by)

        return answers(f"{name}.{method}")(handler)

    body = {f"verb_{method}": verb(method) for method in ("do", "look", "spread", "flood", "wish")}
    return type(name.title(), (Demo,), {"uses_asyncio": asyncio, **body})


@dataclass(frozen=True)
class Rules:
    heartbeat_s: float = 0.25
    missed_heartbeats: int = 3
    start_limit_s: float = 5.0
    backoff_first_s: float = 0.1
    backoff_cap_s: float = 30.0
    stable_s: float = 60.0
    failures_max: int = 5
    failures_window_s: float = 60.0
    off: tuple[str, ...] = ()


@dataclass(frozen=True)
class DemoSettings:
    run_dir: Path
    user: str = "tegumentar"
    supervisor: Rules = field(default_factory=Rules)
    fate: dict[str, str] = field(default_factory=dict)


def read_settings(run_dir: Path, options: dict[str, Any]) -> DemoSettings:
    later = run_dir / "settings.json"
    if later.exists():
        options = options | json.loads(later.read_text())
    rules = Rules(**{key: tuple(v) if isinstance(v, list) else v for key, v in options.get("rules", {}).items()})
    others = {key: options[key] for key in ("fate", "user") if key in options}
    return DemoSettings(run_dir=run_dir, supervisor=rules, **others)


def main() -> int:
    from actors.core.launcher import serve

    run_dir, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    cells = []
    for index, name in enumerate(options["cells"]):
        low = name in options.get("low", [])
        cells.append(
            CellSpec(
                name,
                demo(name, asyncio=name in options.get("asyncio", [])),
                layer="dermis",
                privileges=Privileges.none() if low else Privileges.root(),
                depends_on=(options["cells"][index - 1],) if index else (),
                optional=name not in options.get("required", []),
                critical=name in options.get("critical", []),
                born_with=tuple(options.get("born_with", {}).get(name, ())),
            )
        )
    anatomy = Anatomy(tuple(cells), lambda: read_settings(run_dir, options), born_with=("user",))
    return serve(read_settings(run_dir, options), anatomy, lambda kind, detail: print(kind, flush=True))


# --- what tests hold in their hands ----------------------------------------------------------------------------------


class Node:
    """A running node of demo cells. ``stop`` leaves nothing behind, whatever happened to it."""

    def __init__(
        self,
        run_dir: Path,
        *cells: str,
        command: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        **options: Any,
    ):
        self.run_dir, self.cell_names = run_dir, cells
        self._options = json.dumps({"cells": cells, **options})
        self._command, self._env = command, env or {}
        run_dir.mkdir(parents=True, exist_ok=True)
        self.process = self.launch()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the service process; once more after it has ended."""
        log = (self.run_dir / "log").open("ab")
        with contextlib.closing(log):
            self.process = subprocess.Popen(
                [*self._command, sys.executable, "-m", "tests.support.core_node", str(self.run_dir), self._options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | self._env,
            )
        return self.process

    def ask(self, verb: str, timeout_s: float = 2.0, **args: Any) -> Any:
        from actors.core.client import connect

        with connect(self.run_dir) as client:
            return client.ask(verb, args, timeout_s=timeout_s)

    def cells(self) -> dict[str, dict[str, Any]]:
        """What ``cells`` says, by name; empty while nobody answers."""
        try:
            return {row["name"]: row for row in self.ask("cells")}
        except TegumentarError:
            return {}

    def node(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.ask("node")
            return answer
        except TegumentarError:
            return {}

    def wait_ready(self, limit_s: float = 10.0) -> Node:
        self.wait(lambda: bool(self.node().get("ready")), limit_s, "the node to be ready")
        return self

    def wait_all(self, state: str = "healthy", limit_s: float = 10.0) -> None:
        self.wait(
            lambda: bool(rows := self.cells()) and all(row["state"] == state for row in rows.values()),
            limit_s,
            f"all cells to be {state}",
        )
        for name in self.cell_names:
            self.wait(lambda cell=name: self._knows_all(cell), limit_s, f"{name} to have met the others")  # type: ignore[misc]

    def _knows_all(self, cell: str) -> bool:
        try:
            return {*self.cell_names} - {cell} <= set(self.ask(f"{cell}.look", timeout_s=0.5)["peers"])
        except TegumentarError:
            return False

    def wait_again(self, cell: str, incarnation: int, limit_s: float) -> float:
        """Seconds until ``cell`` is healthy in a later incarnation."""
        began = time.monotonic()

        def again() -> bool:
            row = self.cells().get(cell, {})
            return row.get("incarnation", 0) > incarnation and row.get("state") == "healthy"

        self.wait(again, limit_s, f"{cell} to be healthy again")
        return time.monotonic() - began

    def wait(self, done: Callable[[], bool], limit_s: float, what: str) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline or "Traceback (most recent call last)" in self.log()[:40]:
                raise AssertionError(f"waited {limit_s} s for {what}\n{self.cells()}\n{self.log()[-6000:]}")
            time.sleep(0.01)

    def log(self) -> str:
        return (self.run_dir / "log").read_text()

    def processes(self) -> list[int]:
        """Every process of this node: whoever carries its run directory as the argument it was forked with."""
        return sorted(pid for pid, _ in _processes_of(self.run_dir))

    def sockets(self) -> list[str]:
        """Every socket file in its directory."""
        directory = self.run_dir / "actors"
        return sorted(os.listdir(directory)) if directory.exists() else []

    def gone(self, limit_s: float = 3.0) -> None:
        """Wait until no process is left."""
        self.wait(lambda: not self.processes(), limit_s, f"every process to be gone: {self.processes()}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes_of(run_dir: Path) -> Iterator[tuple[int, str]]:
    """By the lock file that they all hold open, since titles and arguments are overwritten."""
    lock = str(run_dir / "lock")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and any(str(fd.readlink()) == lock for fd in (entry / "fd").iterdir()):
                yield int(entry.name), state


if __name__ == "__main__":
    sys.exit(main())
