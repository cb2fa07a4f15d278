"""The lab's child processes, seen from the process that measures: senders, innocents and the echo.

Each reads its orders on stdin and reports JSON lines on stdout; a thread here collects them. All of them die with the
lab (PDEATHSIG), with their stdin, and with their namespace, whichever comes first."""

import array
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.admin.lab.net import Host, LabError, Namespace
from actors.admin.lab.traffic import Spec

ROOT = Path(__file__).resolve().parents[3]
START_LIMIT_S = 10.0


class Child:
    """One ``python -m actors.admin.lab.MODULE`` in a namespace, with its report lines collected."""

    def __init__(self, space: Namespace, module: str, *args: str, errors: Path) -> None:
        self._errors = errors
        with open(errors, "ab") as sink:
            self.process = space.popen(
                sys.executable, "-m", f"actors.admin.lab.{module}", *args,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, cwd=ROOT,
            )  # fmt: skip
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"lab {module}", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        if not self._ready.wait(START_LIMIT_S) or self.process.poll() is not None:
            self.close()
            raise LabError(f"a helper process of the lab did not start; its errors are in {self._errors}")

    def tell(self, line: str) -> None:
        """One line to the child; a child that is gone does not mind."""
        if self.process.stdin is not None:
            try:
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()
            except (BrokenPipeError, ValueError):
                pass

    def close(self) -> None:
        """End of orders, one second to finish, then SIGKILL."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join(timeout=2)

    def take(self, report: dict[str, Any]) -> None:
        """One report line; called on the collecting thread."""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == b"ready":
                self._ready.set()
            else:
                self.take(json.loads(line))


class Echo(Child):
    """The application on the node."""

    def __init__(self, node: Host, ports: list[int], errors: Path) -> None:
        super().__init__(node.namespace, "echo", *map(str, ports), errors=errors)


class Sender(Child):
    """One stream of forged packets. ``begin`` starts it; the counts are the sender's own and exact."""

    def __init__(self, attacker: Host, spec: Spec, errors: Path) -> None:
        self.spec = spec
        self.sent = 0
        self.refused = 0
        self.first_ns = 0
        self.done = threading.Event()
        super().__init__(attacker.namespace, "traffic", spec.to_json(), errors=errors)

    def begin(self) -> None:
        self.wait_ready()
        self.tell("go")

    def take(self, report: dict[str, Any]) -> None:
        self.sent, self.refused, self.first_ns = report["sent"], report["refused"], report["first_ns"]
        if report["done"]:
            self.done.set()

    def stop(self) -> None:
        """Stop sending now and wait for the final count and the log of times."""
        self.tell("stop")
        self.done.wait(2)
        self.close()

    def times(self) -> "array.array[int]":
        """When each packet left, by number, CLOCK_MONOTONIC ns. Complete once ``done``."""
        times = array.array("q")
        times.frombytes(Path(self.spec.times).read_bytes())
        return times


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of the innocent client. ms None: lost."""

    kind: str
    at_ns: int
    ms: float | None
    error: str


class Innocent(Child):
    """The innocent client of one family, with every request it made."""

    def __init__(self, host: Host, family: int, address: str, port: int, pace_s: float, errors: Path) -> None:
        self.family = family
        self.requests: list[Request] = []
        super().__init__(host.namespace, "innocent", str(family), address, str(port), str(pace_s), errors=errors)

    def take(self, report: dict[str, Any]) -> None:
        self.requests.append(Request(**report))

    def wait_for(self, count: int) -> None:
        """Until it has made this many requests, successful or not."""
        deadline = time.monotonic() + START_LIMIT_S
        while len(self.requests) < count:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise LabError(f"the innocent client makes no requests; its errors are in {self._errors}")
            time.sleep(0.01)


def median_ms(requests: list[Request]) -> float | None:
    """Median latency of those that were answered."""
    answered = [request.ms for request in requests if request.ms is not None]
    return round(statistics.median(answered), 3) if answered else None


def errors_of(requests: list[Request]) -> str:
    """The reasons of the lost ones, most frequent first, in words."""
    counts = Counter(f"{request.kind}: {request.error}" for request in requests if request.ms is None)
    return ", ".join(f"{count}x {what}" for what, count in counts.most_common(5))
