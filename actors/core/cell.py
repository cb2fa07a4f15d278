"""Cell: the base of every organ. A cell is one process with one actor thread and, where it talks to servers, a loop.

Authors write ``on_*`` hooks and handlers marked ``@receives`` or ``@answers``; everything here is called on the actor
thread unless it says otherwise. A handler finishes within 50 ms and never sleeps. It does not raise for bad input
(count it); what it does raise is a broken invariant: the cell leaves the cause behind, dies and is started anew.

How frames become calls is in ``reception.py``; the process around a cell is ``host.py``.
"""

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ClassVar

from actors.core import log
from actors.core.asks import Deferred, Question, Then, problem
from actors.core.bridge import Bridge, Mailbox
from actors.core.codec import encode
from actors.core.errors import Refused, Unavailable
from actors.core.flow import Stream
from actors.core.membrane import Membrane, Self
from actors.core.messages import BATCH_LIMIT, Ask, CellReport, CellState, Message
from actors.core.reception import Reception
from actors.core.timers import Timers
from actors.core.wiring import answers, receives

__all__ = ["Cell", "Deferred", "answers", "receives"]

REPORT_EVERY_S = 10.0
#: A report that says nothing new goes out at every third time only: one message costs a millisecond at each end.
REPEAT_EVERY = 3


class Cell(Reception):
    """Base class. ``name``, ``settings``, ``incarnation`` and ``log`` are there before ``before_drop`` runs."""

    uses_asyncio: ClassVar[bool] = False  #: True: an asyncio loop runs in one daemon thread of this cell
    section: ClassVar[str] = ""  #: its part of the settings; a mistake there keeps the cell at ``degraded``

    def __init__(self, me: Self, membrane: Membrane) -> None:
        super().__init__(me, membrane)
        self.layer = me.layer
        self.settings: Any = me.settings
        self.log = log.logger(cell=me.name, incarnation=me.incarnation)
        self.gauges: dict[str, float] = {}
        self.timers = Timers()
        self.mailbox = Mailbox()
        self._heartbeat_s = me.heartbeat_s
        self._bridge: Bridge | None = None
        self._watched: dict[int, Callable[[], Any]] = {}
        self._state, self._reason, self._remedy = CellState.STARTING, "", ""
        self._started = False
        self._reported: CellReport | None = None
        self._unsaid = 0

    # --- hooks ---------------------------------------------------------------------------------------------

    def before_drop(self) -> None:
        """Still root, still one thread: open pins and raw sockets here. Does nothing by default."""

    def on_start(self) -> None:
        """Begin; must be idempotent: adopt what an earlier incarnation left. May take 300 ms."""

    def on_stop(self) -> None:
        """End in order; never removes protection. May take two seconds."""

    def on_peer_up(self, name: str) -> None:
        """``name`` is there now; also called for each peer already there when this cell starts."""

    def on_peer_down(self, name: str) -> None:
        """``name`` has gone."""

    # --- sending -------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> int:
        """Send to every cell with a receptor for this type, and hold it for those that are away for a moment.

        Returns how many living cells it was sent to."""
        kind = type(message).__name__
        rows = self.peers.listening(kind)
        if not rows:
            return 0
        frame = self._encoded(message)
        if frame is None:
            return 0
        reached = 0
        for row in rows:
            if row.up:
                self._membrane.send(row.socket, frame)
                reached += 1
            elif not self.peers.hold(row.cell, frame):
                self.counters["held_dropped"] += 1
        return reached

    def tell(self, peer: str, message: Message) -> bool:
        """Send to one cell. False when it is away (nothing is held: the caller knows and decides)."""
        row = self.peers.living(peer)
        frame = self._encoded(message) if row is not None else None
        if row is None or frame is None:
            self.counters["undeliverable"] += 1
            return False
        self._membrane.send(row.socket, frame)
        return True

    def ask(self, verb: str, args: dict[str, Any], then: Then, timeout_s: float = 2.0, by: str = "") -> None:
        """Put a question to whoever answers ``verb``; ``then(Answer)`` is called exactly once, later.

        While the cell that answers is away the question is held. Without an answer in ``timeout_s``, or when that
        cell dies meanwhile, the code is ``unavailable``. by: on whose behalf, for the record."""
        by = by or f"cell {self.name}"
        ask = Ask(id=self.questions.next_id(), verb=verb, args=args, by=by[:200], timeout_s=timeout_s)
        if self.questions.full():
            self.after(0, then, problem(ask.id, Unavailable(f"{self.name} has too many open questions")))
            return
        timer = self.after(timeout_s, self._unanswered, ask.id)
        question = Question(ask, then, timer)
        self.questions.add(question)
        if verb in self.receptors.verbs:
            question.peer = self.name
            self.after(0, self._answer, ask, lambda answer: self._take_answer(answer, self.name))
        else:
            self._put(question)

    def defer(self) -> Deferred:
        """In an ``@answers`` handler: ``return`` this, and call ``reply`` or ``refuse`` on it later."""
        if self._answering is None:
            raise RuntimeError("defer() is for the handler that is answering right now")
        return self._answering

    def stream(
        self,
        kind: type[Message],
        make: Callable[[list[Any]], Message],
        *,
        batch: int = BATCH_LIMIT,
        linger_s: float = 0.05,
        room: int = 20_000,
    ) -> Stream:
        """A credit window towards everybody with a receptor for ``kind``: ``put`` items, ``make`` builds batches."""
        number = len(self.streams) + 1
        made = Stream(self, number, kind.__name__, make, batch=batch, linger_s=linger_s, room=room)
        self.streams[number] = made
        return made

    # --- time, descriptors, threads --------------------------------------------------------------------------

    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> int:
        """Call once after ``seconds``. Returns the id for ``cancel``."""
        return self.timers.after(seconds, call, *args)

    def every(self, seconds: float, call: Callable[[], Any]) -> int:
        """Call again and again, first after one period. Returns the id for ``cancel``."""
        return self.timers.every(seconds, call)

    def cancel(self, timer: int) -> None:
        """Forget a timer; one that has fired is no error."""
        self.timers.cancel(timer)

    def watch(self, fd: int, call: Callable[[], Any]) -> None:
        """``call()`` whenever ``fd`` is readable. Spurious calls happen: make the descriptor non-blocking."""
        self._watched[fd] = call

    def unwatch(self, fd: int) -> None:
        """Stop watching; do it before the descriptor is closed."""
        self._watched.pop(fd, None)

    def call(
        self,
        make: Callable[..., Coroutine[Any, Any, Any]],
        *args: Any,
        then: Callable[["Future[Any]"], Any] | None = None,
    ) -> "Future[Any]":
        """Run ``make(*args)`` in the cell's loop; ``then(future)`` follows on the actor thread. Needs ``uses_asyncio``.

        With ``then`` absent an exception is logged and counted (``loop_errors``); it does not end the cell."""
        if self._bridge is None:
            raise RuntimeError(f"{type(self).__name__} must declare uses_asyncio = True to use call()")
        return self._bridge.call(make, *args, then=then or self._loop_done)

    def _loop_done(self, future: "Future[Any]") -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self.counters["loop_errors"] += 1
            self.log.error("loop_error", exc_info=error)

    def post(self, call: Callable[..., Any], *args: Any) -> None:
        """From any thread: have ``call(*args)`` run on the actor thread."""
        self.mailbox.post(call, *args)

    # --- mode ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> CellState:
        return self._state

    def healthy(self, reason: str = "") -> None:
        """All of this cell's work is done, as far as its settings could be read."""
        mistake = getattr(self.settings, "problems", {}).get(self.section, "")
        if mistake:
            remedy = f"correct the [{self.section}] section (`config check` shows it), then `python run.py reload`"
            self.degraded(mistake, remedy)
        else:
            self._become(CellState.HEALTHY, reason, "")

    def degraded(self, reason: str, remedy: str) -> None:
        """A part of the work is not done; reason and remedy are sentences for the operator."""
        self._become(CellState.DEGRADED, reason, remedy)

    def off(self, reason: str, remedy: str) -> None:
        """Nothing is done, and nothing needs to be: switched off, or its optional server is absent."""
        self._become(CellState.OFF, reason, remedy)

    def report(self) -> CellReport:
        """State, counters and gauges as of now."""
        finite = {name: float(value) for name, value in self.gauges.items() if abs(value) < float("inf")}
        finite["queued_frames"] = float(self._membrane.queued())
        return CellReport(
            cell=self.name,
            state=self._state,
            reason=self._reason[:2000],
            remedy=self._remedy[:2000],
            counters=dict(self.counters),
            gauges=finite,
        )

    def _become(self, state: CellState, reason: str, remedy: str) -> None:
        if (state, reason, remedy) == (self._state, self._reason, self._remedy):
            return
        write = self.log.info if state in (CellState.HEALTHY, CellState.OFF) else self.log.warning
        write("state", state=state.value, before=self._state.value, reason=reason, remedy=remedy)
        self._state, self._reason, self._remedy = state, reason, remedy
        if self._started:
            self._send_report(self.report())

    def _report_again(self) -> None:
        """What has changed since the last time; unchanged it is repeated only now and then."""
        report, self._unsaid = self.report(), self._unsaid + 1
        if report != self._reported or self._unsaid >= REPEAT_EVERY:
            self._send_report(report)

    def _send_report(self, report: CellReport) -> None:
        self._reported, self._unsaid = report, 0
        self._tell_supervisor(report)
        self.publish(report)

    # --- birth and end: called by the host -------------------------------------------------------------------

    def begin(self) -> None:
        """Start threads and timers, then the cell's own work; afterwards the mode is at least ``healthy``."""
        self._membrane.beat()
        self.every(self._heartbeat_s, self._membrane.beat)
        if self.uses_asyncio:
            self._bridge = Bridge(self.mailbox, self._membrane.beat_loop, self._heartbeat_s)
        self.on_start()
        if self._state is CellState.STARTING:
            self.healthy()
        self._started = True
        self._membrane.beat()  # on_start may have taken long
        self.every(REPORT_EVERY_S, self._report_again)

    def end(self) -> None:
        """The orderly end: the cell's own, then its loop's."""
        self.on_stop()
        if self._bridge is not None:
            self._bridge.stop()

    def ready(self, fds: "set[int] | list[int]") -> None:
        """Descriptors of ``descriptors()`` are, or may be, readable."""
        if self.timers.fd in fds:
            self.timers.run()
        if self.mailbox.fd in fds:
            self.mailbox.run()
        for fd in fds:
            call = self._watched.get(fd)
            if call is not None:
                call()

    def descriptors(self) -> list[int]:
        """What the process has to wait for on behalf of this cell."""
        return [self.timers.fd, self.mailbox.fd, *self._watched]

    def _encoded(self, message: Message, stream: int = 0) -> bytes | None:
        """The frame, or None after counting and logging why there is none."""
        try:
            return encode(message, self.name, self.incarnation, stream)
        except Refused as refused:
            self.counters["unsendable"] += 1
            if self._say_once("unsendable"):
                self.log.error("unsendable", problem=str(refused), remedy=refused.remedy)
            return None
