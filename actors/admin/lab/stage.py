"""The stage of a scenario: the network, the node with its protector, the innocent client, the witness.

A scenario asks the stage for streams of forged packets, marks phases and notes events; the stage measures. Everything
is a context that ends in reverse order of its making, so an error, Ctrl-C or SIGTERM in the middle leaves nothing.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from actors.admin.lab import net
from actors.admin.lab.children import Echo, Innocent, Request, Sender, errors_of, median_ms
from actors.admin.lab.observer import Observer
from actors.admin.lab.passage import Passage
from actors.admin.lab.report import InnocentFigures
from actors.admin.lab.service import START_LIMIT_S, Protector, Service
from actors.admin.lab.timeline import Sample, Sampler, Timeline
from actors.admin.lab.traffic import Spec
from actors.core.errors import TegumentarError

#: The application; 80 is a service port in every posture but LOCKDOWN, 22 a management port, 8081 neither.
PORT, MANAGEMENT_PORT, OTHER_PORT = 80, 22, 8081
PACE_S = 0.03
BEFORE_S, AFTER_S = 1.5, 1.0
#: Packets still under way when a sender has stopped: softirq work of microseconds, and the log's queue of 10 ms.
SETTLE_S = 0.15
COUNTERS_LIMIT_S = 1.0
#: Verdicts of the kernel program that pass; every other one dropped the frame.
PASSES = frozenset(
    {"clean", "tolerated", "not_ip", "arp", "neighbour", "other_protocol", "later_fragment"}
    | {"unparsed_link", "unparsed_ip", "unparsed_extension", "unparsed_transport"}
)
#: Streams number their packets apart, so that one source may send several; no stream is longer than this.
NUMBERS_PER_STREAM = 10_000_000

ProtectorFactory = Callable[[net.Host, Path, Path, Mapping[str, str]], Protector]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose. seconds: length of the attack; rate: packets a second over all its sources, per family."""

    families: tuple[int, ...] = (4, 6)
    seed: int = 1
    seconds: float = 4.0
    rate: int = 20_000
    sources: int = 1


@dataclass
class Stage:
    """Enter it to raise the curtain. ``protect`` makes the protector: the real service unless a test says otherwise."""

    options: Options
    timeline: Timeline
    settings: dict[str, str] = field(default_factory=dict)
    protect: ProtectorFactory = Service

    def __enter__(self) -> "Stage":
        self._exit = contextlib.ExitStack()
        self.senders: list[Sender] = []
        self.phases: list[tuple[str, int]] = []
        self.random = random.Random(self.options.seed)  # noqa: S311 - a seed makes a run repeatable; nothing is secret
        try:
            self._build()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def _build(self) -> None:
        net.sweep()
        tag = net.owner_tag()
        self.directory, self.bpf_dir = self._exit.enter_context(net.node_home(tag))
        self.net = self._exit.enter_context(net.Network(tag=tag))
        errors = self.directory / "helpers.log"
        node = self.net.node
        self.observer = Observer(node.namespace, [net.SPOOFED_V4], [net.SPOOFED_V6])
        self._exit.callback(self.observer.close)
        echo = Echo(node, [PORT, MANAGEMENT_PORT, OTHER_PORT], errors)
        self._exit.callback(echo.close)
        echo.wait_ready()
        self.service = self.protect(node, self.directory, self.bpf_dir, self.settings)
        self._exit.callback(self.service.stop)
        took_s = self.service.start()
        self.timeline.note("ready", f"the node is protected after {took_s:.1f} s")
        self.innocents = {family: self._innocent(family, errors) for family in self.options.families}
        for innocent in self.innocents.values():
            innocent.wait_for(10)
        self.until(lambda: all(cell["state"] != "starting" for cell in self.cells()), START_LIMIT_S)
        self.usual_states = {cell["name"]: str(cell["state"]) for cell in self.cells()}
        self._counted = self.drop_counters()
        sampler = Sampler(self.timeline, _Eye(self))
        self._exit.callback(sampler.close)

    def _innocent(self, family: int, errors: Path) -> Innocent:
        innocent = Innocent(self.net.innocent, family, self.net.node.address(family), PORT, PACE_S, errors)
        self._exit.callback(innocent.close)
        return innocent

    # --- acting -----------------------------------------------------------------------------------------------

    def source(self, family: int, number: int = 66) -> str:
        """A forged source address: 10.66.0.N, or fd66:0:0:N::66 (each a /64 of its own)."""
        return f"10.66.0.{number}" if family == 4 else f"fd66:0:0:{number}::66"

    def stream(self, family: int, kind: str, *, rate: int, seconds: float, number: int = 66, sources: int = 1,
               port: int = PORT, ports: tuple[int, ...] = ()) -> Sender:  # fmt: skip
        """A stream of forged packets, ready to ``begin``."""
        attacker, node = self.net.attacker, self.net.node
        spec = Spec(
            kind=kind, source=self.source(family, number), target=node.address(family), source_mac=attacker.mac,
            target_mac=node.mac, interface=attacker.interface, rate=rate, seconds=seconds, port=port, sources=sources,
            ports=ports, first=len(self.senders) * NUMBERS_PER_STREAM,
            times=str(self.directory / f"times-{len(self.senders)}"),
        )  # fmt: skip
        sender = Sender(attacker, spec, self.directory / "helpers.log")
        self._exit.callback(sender.close)
        sender.wait_ready()
        self.senders.append(sender)
        return sender

    @contextlib.contextmanager
    def decoys(self, kind: str, rate: int) -> Iterator[None]:
        """The attacker works as hard as in a flood, but sends into an interface that leads nowhere.

        He shares two CPUs with the innocent client here, which the world would not allow: with decoys before and after
        a flood, the innocent's latency tells what the node does to it and not what the attacker's processes do."""
        attacker, node = self.net.attacker, self.net.node
        senders = [
            Sender(
                attacker,
                Spec(
                    kind=kind, source=self.source(family), target=node.address(family), source_mac=attacker.mac,
                    target_mac=node.mac, interface="void0", rate=rate, seconds=60.0,
                ),
                self.directory / "helpers.log",
            )
            for family in self.options.families
        ]  # fmt: skip
        try:
            for sender in senders:
                sender.begin()
            yield
        finally:
            for sender in senders:
                sender.stop()

    def scan(self, family: int, *, rate: int, seconds: float, number: int, include: Sequence[int]) -> Sender:
        """One SYN to each of as many ports as the time allows: those to include, and others by the seed."""
        count = max(len(include), int(rate * seconds))
        others = self.random.sample([port for port in range(1, 65536) if port not in include], count - len(include))
        ports = [*include, *others]
        self.random.shuffle(ports)
        return self.stream(family, "syn", rate=rate, seconds=seconds, number=number, ports=tuple(ports))

    def phase(self, name: str) -> int:
        """From now on requests of the innocent belong to this phase. Returns the moment."""
        now_ns = time.monotonic_ns()
        self.phases.append((name, now_ns))
        return now_ns

    def rest(self, seconds: float) -> None:
        """Let the world go on for a while."""
        time.sleep(seconds)

    def until(self, happened: Callable[[], bool], limit_s: float, step_s: float = 0.01) -> float | None:
        """Seconds until ``happened`` is true; None when it was not within the limit. Errors of the service mean no."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(TegumentarError):
                if happened():
                    return time.monotonic() - began
            if time.monotonic() - began > limit_s:
                return None
            time.sleep(step_s)

    # --- measuring --------------------------------------------------------------------------------------------

    def passages(self, sender: Sender) -> dict[str, Passage]:
        """For every source of a stream that has stopped: what left when, and what arrived."""
        times, spec = sender.times(), sender.spec
        found = {}
        for index, source in enumerate(spec.source_list()):
            places = (number - spec.first for number in self.observer.numbers(source))
            mine = {(place - index) // spec.sources for place in places if 0 <= place < NUMBERS_PER_STREAM}
            found[source] = Passage(times[index :: spec.sources], frozenset(mine))
        return found

    def ban_of(self, address: str) -> dict[str, Any] | None:
        """The row of ``blocks`` that hits this address, the narrowest of several; None without row or answer."""
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(TegumentarError):
            told = self.service.ask("blocks.list", limit=1000)
            rows = told["blocks"] if isinstance(told, dict) else told
        hits = [row for row in rows if ip_address(address) in ip_network(row["subject"], strict=False)]
        return max(hits, key=lambda row: ip_network(row["subject"], strict=False).prefixlen, default=None)

    def is_proven(self, address: str) -> bool:
        """Whether the narrowest ban that hits this address is proven."""
        row = self.ban_of(address)
        return row is not None and bool(row["proven"])

    def explain(self, address: str) -> str:
        """What ``why`` says, as one text; the refusal in words when there is none."""
        try:
            return str(self.service.ask("why", address=address))
        except TegumentarError as error:
            return str(error)

    def sent(self) -> int:
        return sum(sender.sent for sender in list(self.senders))

    def passed(self) -> int:
        """Packets of all streams that the log has shown on the far side of every filter."""
        sources = {source for sender in list(self.senders) for source in sender.spec.source_list()}
        return sum(len(self.observer.numbers(source)) for source in sources)

    def dropped(self) -> dict[str, int]:
        """By reason: the kernel program's own counters since the curtain rose, and what nftables took of the rest."""
        now = self.drop_counters()
        by_reason = {name: count - self._counted.get(name, 0) for name, count in now.items()}
        counters = self.observer.counters()
        by_reason["nft"] = counters["past_xdp"] - counters["passed"]
        return {name: count for name, count in by_reason.items() if count > 0}

    def drop_counters(self) -> dict[str, int]:
        """Frames dropped by the kernel program, by reason; empty when there is no such program.

        While the cell is busy in the kernel it shows no counters, so it is asked again for a moment."""
        told: dict[str, int] = {}

        def counted() -> bool:
            counters = self.service.ask("reflex.status")["counters"]
            told.update(counters.get("packets", {}))
            return bool(counters)

        self.until(counted, COUNTERS_LIMIT_S, step_s=0.05)
        return {name: count for name, count in told.items() if name not in PASSES}

    def witness_complete(self) -> bool:
        """Whether the log of passed packets and the kernel's count of them agree."""
        return self.passed() == self.observer.counters()["passed"]

    def requests(self, phase: str | None = None, kinds: tuple[str, ...] = ()) -> list[Request]:
        """The innocent's requests, all or of one phase, all or of some kinds."""
        found = [request for innocent in self.innocents.values() for request in list(innocent.requests)]
        if kinds:
            found = [request for request in found if request.kind in kinds]
        return found if phase is None else [request for request in found if self._phase_of(request.at_ns) == phase]

    def innocent_figures(self, kinds: tuple[str, ...] = ()) -> InnocentFigures:
        """Loss over all phases, medians by phase. Reasons of lost requests go into the timeline."""
        requests = self.requests(kinds=kinds)
        lost = [request for request in requests if request.ms is None]
        if lost:
            self.timeline.note("lost", f"the innocent client lost {len(lost)}: {errors_of(lost)}", good=False)
        before, during, after = (median_ms(self.requests(phase, kinds)) for phase in ("before", "during", "after"))
        return InnocentFigures(
            sent=len(requests), lost=len(lost), median_ms_before=before, median_ms_during=during, median_ms_after=after
        )

    def cells(self) -> list[dict[str, Any]]:
        """Name, state and restarts of every cell, by the supervisor's account."""
        try:
            rows = self.service.ask("cells")
        except TegumentarError:
            return []
        rows = rows["cells"] if isinstance(rows, dict) else rows
        return [{key: row[key] for key in ("name", "state", "restarts")} for row in rows]

    def _phase_of(self, at_ns: int) -> str:
        current = ""
        for name, since_ns in self.phases:
            if at_ns >= since_ns:
                current = name
        return current


class _Eye:
    """Makes one sample of a stage; remembers the sample before for the rates."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._at_ns, self._sent, self._passed, self._requests = time.monotonic_ns(), 0, 0, 0

    def __call__(self) -> Sample:
        stage = self._stage
        now_ns, sent, passed = time.monotonic_ns(), stage.sent(), stage.passed()
        requests = stage.requests()
        fresh = sorted(requests, key=lambda request: request.at_ns)[self._requests :]
        span_s = max((now_ns - self._at_ns) / 1e9, 1e-3)
        sample = Sample(
            at_ms=stage.timeline.at_ms(now_ns),
            phase=stage.phases[-1][0] if stage.phases else "",
            sent_pps=round((sent - self._sent) / span_s),
            passed_pps=round((passed - self._passed) / span_s),
            dropped_pps=max(0, round((sent - self._sent - passed + self._passed) / span_s)),
            innocent_ms=median_ms(fresh),
            innocent_lost=sum(1 for request in requests if request.ms is None),
        )
        self._at_ns, self._sent, self._passed, self._requests = now_ns, sent, passed, len(requests)
        return sample
