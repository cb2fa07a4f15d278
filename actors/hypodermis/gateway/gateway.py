"""Gateway — the HTTP API, metrics and operator interface cell.

It faces the network and holds no privileges: the listening socket, the token and the kernel's counters are opened
before they are dropped. Everything it changes it asks of the cells that decide; everything it shows is an answer or
the copy of one. When it dies nothing is lost but open connections.
"""

import asyncio
import platform
import socket
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from actors.core import metrics
from actors.core.asks import raise_for
from actors.core.capability import service_identity
from actors.core.cell import Cell
from actors.core.errors import Unavailable
from actors.core.messages import (
    Answer,
    CellReport,
    CellState,
    Enforce,
    EnforceMany,
    PostureChanged,
    Proved,
    Qualia,
    ReflexEvents,
    Release,
)
from actors.core.packed import count
from actors.core.reception import SUPERVISOR
from actors.core.wiring import receives
from actors.hypodermis.gateway.app import VERSION, make_app
from actors.hypodermis.gateway.context import Context
from actors.hypodermis.gateway.counters import PATIENCE_S, KernelTotals
from actors.hypodermis.gateway.server import QuietServer, listen, listen_local, make_server
from actors.hypodermis.gateway.skin import stands
from actors.hypodermis.gateway.token import read_or_make
from actors.hypodermis.leases import LoopLimiter
from actors.hypodermis.redis_bucket import open_buckets
from actors.hypodermis.token_bucket import limit

#: Between two attempts to open a port that somebody else holds. Seconds.
RETRY_S = 5.0
#: How often the supervisor is asked for the restarts that /metrics shows. Seconds.
RESTARTS_EVERY_S = 10.0


class Gateway(Cell):
    """Gateway — the HTTP API, metrics and operator interface cell."""

    uses_asyncio = True
    section = "gateway"

    def before_drop(self) -> None:
        """With root still: the port, the token that only root may read, the kernel's counters."""
        self._listener: socket.socket | None = None
        self._local: socket.socket | None = None
        self._localless: Unavailable | None = None
        self._token = ""
        self._trouble: Unavailable | None = None
        self._tokenless: Unavailable | None = None
        self._totals = KernelTotals(self.settings.bpf_dir)
        if self.settings.gateway.enabled:
            self._open()
            self._totals.open(PATIENCE_S if self.incarnation == 1 else 0.0)

    def on_start(self) -> None:
        self._reports: dict[str, CellReport] = {}
        self._restarts: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: QuietServer | None = None
        usual = self.settings.throttler
        self._context = Context(
            CellSkin(self),
            "",
            limiter=LoopLimiter(open_buckets(self.settings.redis)),
            limit=limit(usual.limit, usual.limit_period_s, usual.limit_burst),
        )
        if not self.settings.gateway.enabled:
            self.off("switched off in the settings", "set gateway.enabled = true")
            return
        self.every(RESTARTS_EVERY_S, self._count_restarts)
        if self._trouble is None:
            self._serve()
        else:
            self._wait_for_port()

    def on_stop(self) -> None:
        self._context.limiter.close()
        if self._server is not None:
            self._server.stop()

    # --- serving -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Get hold of what serving needs; what is missing is kept as a sentence, not raised.

        Without a token nothing can be changed over HTTP, but health and readings are served all the same."""
        try:
            self._token = self._token or read_or_make(self.settings.state_dir)
            self._tokenless = None
        except Unavailable as trouble:
            self._tokenless = trouble
        try:
            self._listener = listen(self.settings.gateway.host, self.settings.gateway.port)
            self._trouble = None
        except Unavailable as trouble:
            self._trouble = trouble
        if self.settings.gateway.socket is not None and self._local is None:
            try:
                self._local = listen_local(self.settings.gateway.socket, service_identity(self.settings.user).gid)
                self._localless = None
            except Unavailable as trouble:
                self._localless = trouble

    def _wait_for_port(self) -> None:
        """Degraded until the port is free; everything else of the node goes on."""
        assert self._trouble is not None
        self.degraded(str(self._trouble), self._trouble.remedy)
        self.after(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._open()
        if self._trouble is None:
            self._serve()
        else:
            self._wait_for_port()

    def _serve(self) -> None:
        assert self._listener is not None
        chosen = self.settings.gateway
        self._context.token = self._token
        app = make_app(self._context, hosts=chosen.allowed_hosts, max_body=chosen.max_body_bytes)
        self._server = make_server(app, chosen.max_connections)
        listeners = [self._listener] if self._local is None else [self._listener, self._local]
        self.call(self._run, self._server, listeners, then=self._ended)
        host, port = self._listener.getsockname()[:2]
        if self._tokenless is not None:
            self.degraded(f"nothing can be changed over HTTP: {self._tokenless}", self._tokenless.remedy)
            return
        if self._localless is not None:
            self.degraded(str(self._localless), self._localless.remedy)
            return
        beside = "" if self._local is None else f" and {self.settings.gateway.socket}"
        self.healthy(f"http://{f'[{host}]' if ':' in host else host}:{port}{beside}")

    async def _run(self, server: QuietServer, listeners: list[socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        await server.serve(listeners)

    def _ended(self, future: "Future[Any]") -> None:
        """The server never ends by itself while the cell lives: if it did, a new cell is the cure."""
        if self._server is not None and not self._server.should_exit:
            raise RuntimeError("the HTTP server ended by itself") from future.exception()

    # --- what the cells tell -----------------------------------------------------------------------------------

    @receives(CellReport)
    def on_report(self, report: CellReport, source: str) -> None:
        if source not in (report.cell, SUPERVISOR):
            self.counters["bad_input"] += 1
            return
        before = self._reports.get(report.cell)
        self._reports[report.cell] = report
        if before is None or (before.state, before.reason) != (report.state, report.reason):
            self._tell("cell", {"cell": report.cell, "state": report.state, "reason": report.reason})

    @receives(PostureChanged)
    def on_posture(self, message: PostureChanged, source: str) -> None:
        self._tell("posture", asdict(message))

    @receives(Qualia)
    def on_qualia(self, message: Qualia, source: str) -> None:
        self._tell("qualia", asdict(message))

    @receives(Enforce)
    def on_enforce(self, message: Enforce, source: str) -> None:
        self._tell("enforce", {"orders": [asdict(order) for order in message.orders]})

    @receives(EnforceMany)
    def on_enforce_many(self, message: EnforceMany, source: str) -> None:
        told = {"count": count(message.subjects), "until_unix_s": message.until_unix_s, "reason": message.reason}
        self._tell("enforce_many", told)

    @receives(Release)
    def on_release(self, message: Release, source: str) -> None:
        self._tell("release", {"subjects": message.subjects})

    @receives(Proved)
    def on_proved(self, message: Proved, source: str) -> None:
        self._changed()
        failed = [asdict(proof) for proof in message.proofs if not proof.holds]
        if failed:
            self._tell("unproven", {"rung": message.rung, "proofs": failed})

    @receives(ReflexEvents)
    def on_reflex(self, message: ReflexEvents, source: str) -> None:
        self._tell("reflex", {"events": [asdict(event) for event in message.events], "lost": message.lost})

    def on_peer_up(self, name: str) -> None:
        self._changed()

    def on_peer_down(self, name: str) -> None:
        self._changed()
        report = self._reports.pop(name, None)
        if report is not None:
            self._tell("cell", {"cell": name, "state": CellState.DOWN, "reason": ""})

    def _tell(self, kind: str, body: Any) -> None:
        """To whoever follows the events. Nothing is kept while the server is not up."""
        self._changed()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._context.events.put, kind, body)

    def _changed(self) -> None:
        """Answers of before are old."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._context.memory.changed)

    def _count_restarts(self) -> None:
        self.ask("cells", {}, self._take_restarts)

    def _take_restarts(self, answer: Answer) -> None:
        if isinstance(answer.value, list):
            self._restarts = {str(cell["name"]): int(cell["restarts"]) for cell in answer.value}

    # --- pages made by the cell itself; called on the loop's thread --------------------------------------------

    def page_of_metrics(self) -> bytes:
        """Prometheus text; kernel totals are read at this moment, from memory the kernel shares."""
        reports = [*list(self._reports.values()), self.report()]
        build = {"version": VERSION, "python": platform.python_version()}
        return metrics.render(reports, counters=self._totals.families(), restarts=self._restarts, build=build)

    def enforcing(self) -> tuple[bool, str]:
        """What the enforcing cells themselves said last: used while the supervisor does not answer."""
        return stands({name: report.state.value for name, report in list(self._reports.items())})


class CellSkin:
    """The node as the routes see it (``Skin``), through this cell. Lives on the loop's thread."""

    def __init__(self, cell: Gateway) -> None:
        self._cell = cell
        self.metrics = cell.page_of_metrics
        self.enforcing = cell.enforcing

    async def ask(self, verb: str, args: dict[str, Any], by: str, timeout_s: float) -> Any:
        """Have the actor thread put the question, and wait for the answer or for the time limit."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer) -> None:
            if not waiting.done():
                waiting.set_result(answer)

        def put() -> None:
            self._cell.ask(verb, args, lambda answer: loop.call_soon_threadsafe(settle, answer), timeout_s, by)

        self._cell.post(put)
        try:
            return raise_for(await asyncio.wait_for(waiting, timeout_s + 0.5))
        except TimeoutError as exc:
            raise Unavailable(f"{verb} was not answered within {timeout_s:g} s") from exc
