"""A hundred thousand bans by the command line, one more in their middle, and one alone: on a whole node.

The real service in a network namespace of its own; the clock stops when the kernel program's table holds the ban, which
is looked at from outside every half millisecond. A list is timed twice: from the start of ``python run.py block`` (the
interpreter's own start included), and from its first message to the service. Beside the times: what each cell spent.
"""

import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors.admin.lab.net import Network, node_home, owner_tag
from actors.admin.lab.processes import tree
from actors.admin.lab.service import Service
from actors.core import packed
from actors.core.client import Client, connect
from actors.epidermis.nft import NftFilter
from bench.claims import Claim, Options, run
from bpf import abi, libbpf
from bpf.subjects import parse
from config.settings import KeratinocyteSettings

BANS, ALL_LIMIT_S, MIDDLE_LIMIT_MS, ALONE_LIMIT_MS = 100_000, 2.0, 100.0, 20.0
ALONE, BETWEEN_S, LOOK_EVERY_S, SETTLE_S = 25, 0.05, 0.0005, 2.0
ROWS_OF_ONE = 7_000


@dataclass
class Figures:
    """Of all rounds. Seconds; spent: CPU seconds by process, of one list."""

    command: list[float] = field(default_factory=list)
    messages: list[float] = field(default_factory=list)
    nft: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    spent: dict[str, list[float]] = field(default_factory=dict)


def measure(options: Options) -> list[Claim]:
    count = 2_000 if options.quick else BANS
    figures = Figures()
    for _ in range(min(options.rounds, 3)):
        with a_node() as (service, table):
            node = Watched(service, table)
            figures.alone += [node.one(f"13.0.0.{number + 1}") for number in range(3 if options.quick else ALONE)]
            _by_command(node, count, figures)
            _by_messages(node, count, figures)
    return _claims(figures, count)


def _claims(figures: Figures, count: int) -> list[Claim]:
    def seconds(what: str, values: list[float], limit: float | None = None) -> Claim:
        return Claim(what=what, entries=count, ours=statistics.median(values), unit="s", limit=limit)

    def milliseconds(what: str, value: float, limit: float | None = None) -> Claim:
        return Claim(what=what, entries=0, ours=value * 1e3, unit="ms", limit=limit)

    spent = {name: statistics.median(values) / count * 1e6 for name, values in figures.spent.items()}
    return [
        seconds("from the start of the command into the kernel", figures.command, ALL_LIMIT_S),
        seconds("from the first message into the kernel", figures.messages, ALL_LIMIT_S),
        seconds("from the first message into nftables as well", figures.nft),
        milliseconds("one more in their middle, median", statistics.median(figures.middle), MIDDLE_LIMIT_MS),
        milliseconds("one more in their middle, worst", max(figures.middle)),
        milliseconds("one alone, median", statistics.median(figures.alone), ALONE_LIMIT_MS),
        milliseconds("one alone, worst", max(figures.alone)),
        *(
            Claim(what=f"processor time of {name} for each", entries=count, ours=each, unit="us")
            for name, each in sorted(spent.items(), key=lambda row: -row[1])
            if each >= 1.0
        ),
    ]


class Watched:
    """A node and the ban table of its kernel program."""

    def __init__(self, service: Service, table: int) -> None:
        self.service, self._table = service, table
        self._client: Client = connect(service.run_dir)
        with service.node.namespace.entered():
            self._filter = NftFilter()
        self._key, self._value = np.zeros(1, abi.BAN_KEY), np.zeros(1, abi.BAN)

    def holds(self, subject: str) -> bool:
        found = parse(subject)
        self._key["addr"][0], self._key["bits"] = np.frombuffer(found.addr, np.uint8), found.bits
        return libbpf.find(self._table, self._key, self._value)

    def filters(self, subject: str) -> bool:
        return self._filter.held(KeratinocyteSettings().table, "bans4", subject) is not None

    def rests(self) -> bool:
        """All is proved, and the journal has a row for each."""
        return not self.ask("reflex.status")["unproven"] and not self.ask("memory.status")["to_spread"]

    def holds_all(self, subjects: list[str]) -> bool:
        keys, _ = libbpf.read_all(self._table, abi.BAN_KEY, abi.BAN)
        held = {key.tobytes() for key in np.ascontiguousarray(keys["addr"])}
        return all(parse(subject).addr in held for subject in subjects)

    def one(self, subject: str) -> float:
        """Seconds from the message to the kernel."""
        with ThreadPoolExecutor(1) as watch:
            began = time.perf_counter()
            seen = watch.submit(self.until, lambda: self.holds(subject))
            self.ask("block", subjects=[subject])
        time.sleep(BETWEEN_S)
        return seen.result() - began

    def until(self, true: Callable[[], bool], every_s: float = LOOK_EVERY_S, limit_s: float = 120.0) -> float:
        """The moment."""
        deadline = time.perf_counter() + limit_s
        while not true():
            if time.perf_counter() > deadline:
                raise TimeoutError(self.service.last_words())
            time.sleep(every_s)
        return time.perf_counter()

    def ask(self, verb: str, **args: Any) -> Any:
        return self._client.ask(verb, args, by="bench", timeout_s=60.0)

    def spent(self) -> dict[str, float]:
        """CPU seconds by process so far."""
        tick = os.sysconf("SC_CLK_TCK")
        found = {}
        for process in tree(self.service.pid()):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                found[_name(process.title)] = (int(fields[11]) + int(fields[12])) / tick
        return found


def _by_command(node: Watched, count: int, figures: Figures) -> None:
    subjects = [_subject(0x0B00_0000 + number) for number in range(count)]
    path = node.service.directory / "list"
    path.write_text("\n".join(subjects))
    began, number = time.perf_counter(), 0
    with _command(node.service, "block", "--file", str(path), "--for", "1h") as process:
        while not node.holds(subjects[-1]):
            if process.poll():
                raise RuntimeError(f"the command ended with {process.returncode}: {node.service.last_words()}")
            if number * 0.2 < time.perf_counter() - began - 0.3:  # begin when the first part may be there
                number += 1
                figures.middle.append(node.one(f"12.0.{number >> 8}.{number & 255}"))
            time.sleep(LOOK_EVERY_S)
        figures.command.append(time.perf_counter() - began)
        assert node.holds_all(subjects)
        assert process.wait() == 0
    node.until(lambda: node.filters(subjects[-1]), 0.02)
    node.until(node.rests, 0.25)


def _by_messages(node: Watched, count: int, figures: Figures) -> None:
    subjects = [_subject(0x0C80_0000 + number) for number in range(count)]
    rows, before = packed.pack(subjects), node.spent()
    began, name = time.perf_counter(), secrets.token_hex(8)
    step = ROWS_OF_ONE * packed.ROW
    for start in range(0, len(rows), step):
        more = start + step < len(rows)
        node.ask("block", rows=rows[start : start + step], list=name, more=more, ttl_s=3600.0)
    figures.messages.append(node.until(lambda: node.holds(subjects[-1])) - began)
    assert node.holds_all(subjects)
    done = node.until(lambda: node.filters(subjects[-1]), 0.02)
    figures.nft.append(done - began)
    for cell, seconds in node.spent().items():
        figures.spent.setdefault(cell, []).append(seconds - before.get(cell, 0.0))


@contextlib.contextmanager
def a_node() -> Iterator[tuple[Service, int]]:
    """The service, ready and at rest, and the table of bans of its kernel program."""
    tag = owner_tag()
    with contextlib.ExitStack() as stack:
        directory, pins = stack.enter_context(node_home(tag))
        network = stack.enter_context(Network(tag=tag))
        service = Service(network.node, directory, pins, {"TEGUMENTAR_REFLEX__MAX_BANS": "262144"})
        stack.callback(service.stop)
        service.start()
        time.sleep(SETTLE_S)
        table = libbpf.get_pinned(next(pins.rglob("bans")))
        stack.callback(os.close, table)
        yield service, table


@contextlib.contextmanager
def _command(service: Service, *argv: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = service.node.namespace.popen(
        sys.executable, "run.py", *argv, env=service.env, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _subject(number: int) -> str:
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def _name(title: str) -> str:
    """``tegumentar: permeability [1]`` → ``permeability``."""
    return title.partition(": ")[2].partition(" ")[0] or title.partition(" ")[0]


if __name__ == "__main__":
    run(measure, __doc__)
