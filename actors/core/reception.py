"""Reception: how frames become calls. The half of ``Cell`` that its authors never touch.

Each frame is decoded, its source is held against the registry and the kernel's word about the sending process, and it
is handed to the one handler that declared it. Nothing here raises for bytes from outside: they are counted.
"""

import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgspec

from actors.core import log
from actors.core.asks import Deferred, Question, Questions, problem
from actors.core.codec import Envelope, decode, encode
from actors.core.errors import DecodeError, Refused, TegumentarError, Unavailable
from actors.core.flow import Stream
from actors.core.lifecycle import Credit, Hello, Introduction, Introductions, Reload, Stop
from actors.core.membrane import Frame, Membrane, Self
from actors.core.messages import ASKERS, SPEAKERS, Answer, Ask, CellReport, Message
from actors.core.peers import Peers, Standing
from actors.core.wiring import receptors

SUPERVISOR = "basal_layer"
#: A handler that takes longer is counted: while it runs, the cell neither receives nor beats.
SLOW_HANDLER_S = 0.05
#: Frames of a cell whose introduction is still on its way.
_EARLY_LIMIT, _EARLY_FOR_S = 64, 2.0
_ARGUMENT_ERRORS = (KeyError, TypeError, ValueError, msgspec.ValidationError)


class Reception(ABC):
    """Decoding, believing, dispatching; asks, answers and credit."""

    def __init__(self, me: Self, membrane: Membrane) -> None:
        self.name, self.incarnation = me.name, me.incarnation
        self._membrane = membrane
        self.counters: Counter[str] = Counter()
        self.peers = Peers(me.name)
        self.questions = Questions()
        self.streams: dict[int, Stream] = {}
        self.receptors = receptors(type(self))
        self.supervisor_socket = ""
        self.log: Any = log.logger(cell=me.name)
        self.read_settings: Callable[[], Any] | None = None
        self.settings: Any = me.settings
        self._answering: Deferred | None = None
        self._early: deque[tuple[float, Frame]] = deque(maxlen=_EARLY_LIMIT)
        self._say_once = log.OncePer()

    # --- what ``Cell`` provides ------------------------------------------------------------------------------

    @abstractmethod
    def end(self) -> None: ...
    @abstractmethod
    def on_peer_up(self, name: str) -> None: ...
    @abstractmethod
    def on_peer_down(self, name: str) -> None: ...
    @abstractmethod
    def report(self) -> CellReport: ...
    @abstractmethod
    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> int: ...
    @abstractmethod
    def cancel(self, timer: int) -> None: ...
    @abstractmethod
    def _encoded(self, message: Message, stream: int = 0) -> bytes | None: ...

    # --- frames in -------------------------------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """One frame from outside. Raises only what a handler raises."""
        try:
            envelope = decode(frame.data, self.counters)
        except DecodeError as error:
            self.counters["undecodable"] += 1
            if self._say_once("undecodable"):
                self.log.warning("undecodable", problem=str(error), pid=frame.pid, uid=frame.uid)
            return
        if envelope.message is None:
            return
        if frame.pid == self._membrane.supervisor_pid and envelope.cell == SUPERVISOR:
            self._from_supervisor(envelope.message, envelope)
            return
        standing = self._standing(envelope, frame)
        if standing is Standing.KNOWN:
            self._from_peer(envelope)
        elif standing is Standing.STALE:
            self.counters["stale"] += 1
        else:
            self._from_stranger(frame, envelope)

    def _standing(self, envelope: Envelope, frame: Frame) -> Standing:
        return self.peers.standing(envelope.cell, envelope.incarnation, frame.pid)

    def _from_stranger(self, frame: Frame, envelope: Envelope) -> None:
        """Not introduced yet: wait a moment for the introduction, it travels on another connection."""
        if len(self._early) == self._early.maxlen:
            self.counters["early_dropped"] += 1
        self._early.append((time.monotonic() + _EARLY_FOR_S, frame))

    def _from_supervisor(self, message: Message, envelope: Envelope) -> None:
        if isinstance(message, Introductions):
            for row in message.rows:
                self._meet(row)
            self._hear_early()
        elif isinstance(message, Stop):
            self.end()
            self._membrane.leave()
        elif isinstance(message, Reload):
            self._reload()
            self._dispatch(envelope)
        else:
            self._from_peer(envelope)

    def _from_peer(self, envelope: Envelope) -> None:
        message, source = envelope.message, envelope.cell
        if isinstance(message, Ask):
            self._answer_peer(message, source)
        elif isinstance(message, Answer):
            self._take_answer(message, source)
        elif isinstance(message, Credit):
            stream = self.streams.get(message.stream)
            if stream is not None:
                stream.credit(source)
        else:
            self._dispatch(envelope)
            if envelope.stream:
                self._send_to(source, Credit(stream=envelope.stream))

    def _dispatch(self, envelope: Envelope) -> None:
        if envelope.cell not in SPEAKERS.get(envelope.kind, (envelope.cell,)):
            self.counters["wrong_speaker"] += 1
            if self._say_once(f"speaker {envelope.kind}"):
                self.log.warning("wrong_speaker", kind=envelope.kind, source=envelope.cell)
            return
        method = self.receptors.kinds.get(envelope.kind)
        if method is None:
            if not isinstance(envelope.message, Reload):
                self.counters["unexpected"] += 1
            return
        began = time.monotonic()
        getattr(self, method)(envelope.message, envelope.cell)
        self._timed(envelope.kind, began)

    def _timed(self, what: str, began: float) -> None:
        took = time.monotonic() - began
        if took > SLOW_HANDLER_S:
            self.counters["slow_handlers"] += 1
            if self._say_once(f"slow {what}"):
                self.log.warning("slow_handler", handler=what, took_ms=round(took * 1000))

    def _hear_early(self) -> None:
        now = time.monotonic()
        early, self._early = self._early, deque(maxlen=_EARLY_LIMIT)
        for deadline, frame in early:
            if deadline > now:
                self.hear(frame)
            else:
                self.counters["stale"] += 1

    # --- peers -----------------------------------------------------------------------------------------------

    def _meet(self, row: Introduction) -> None:
        old, gone, come = self.peers.learn(row)
        if gone and old is not None:
            self._membrane.forget(old.socket)
            for stream in self.streams.values():
                stream.forget(row.cell)
            for question in self.questions.put_to(row.cell):
                self._close(question, f"{row.cell} ended before it answered")
            if row.cell != SUPERVISOR:
                self.on_peer_down(row.cell)
        if come:
            for frame in self.peers.release(row.cell):
                self._membrane.send(row.socket, frame)
            if CellReport.__name__ in row.receives and row.cell != SUPERVISOR:
                self._send_to(row.cell, self.report())
            if row.cell != SUPERVISOR:
                self.on_peer_up(row.cell)
            for question in self.questions.held():
                self._put(question)

    def _send_to(self, peer: str, message: Message) -> bool:
        row = self.peers.living(peer)
        if row is None:
            return False
        self._membrane.send(row.socket, encode(message, self.name, self.incarnation))
        return True

    def _tell_supervisor(self, message: Message) -> None:
        if self.supervisor_socket:
            self._membrane.send(self.supervisor_socket, encode(message, self.name, self.incarnation))

    def greet(self) -> None:
        """Say hello to the supervisor: listening, with these receptors."""
        self._tell_supervisor(
            Hello(
                socket=self._membrane.socket,
                pid=os.getpid(),
                receives=list(self.receptors.kinds),
                answers=list(self.receptors.verbs),
                report=self.report(),
            )
        )

    def _reload(self) -> None:
        if self.read_settings is None:
            return
        try:
            self.settings = self.read_settings()
            log.configure(getattr(self.settings, "log_level", "info"))
        except Exception as exc:  # settings come from files and the environment: anything may be wrong with them
            self.counters["reload_failed"] += 1
            self.log.warning(
                "reload_failed", problem=str(exc)[:500], remedy="the settings in force stay; correct the file"
            )

    # --- asks and answers --------------------------------------------------------------------------------------

    def _put(self, question: Question) -> None:
        """Send a held question when the cell that answers it is there."""
        row = self.peers.answering(question.ask.verb)
        if row is None or not row.up:
            return
        question.peer = row.cell
        try:
            frame = encode(question.ask, self.name, self.incarnation)
        except Refused as refused:
            self._take_answer(problem(question.ask.id, refused), row.cell)
            return
        self._membrane.send(row.socket, frame)

    def _unanswered(self, ask_id: int) -> None:
        question = self.questions.take(ask_id)
        if question is None:
            return
        verb = question.ask.verb
        row = self.peers.answering(verb)
        if question.peer:
            what, remedy = f"{question.peer} did not answer {verb} in time", "ask again; `cells` shows how it is"
        elif row is not None:
            what, remedy = f"{row.cell}, which answers {verb}, is {row.state.value}", "ask again; `cells` shows why"
        else:
            what, remedy = f"no cell answers {verb}", "`cells` shows what runs on this node"
        question.then(problem(ask_id, Unavailable(what, remedy=remedy)))

    def _close(self, question: Question, why: str) -> None:
        self._take_answer(problem(question.ask.id, Unavailable(why, remedy="ask again")), question.peer)

    def _take_answer(self, answer: Answer, source: str) -> None:
        question = self.questions.take(answer.id, source)
        if question is None:
            self.counters["late_answers"] += 1
            return
        self.cancel(question.timer)
        question.then(answer)

    def _reply(self, source: str, answer: Answer) -> None:
        try:
            self._send_to(source, answer)
        except Refused as refused:
            self._send_to(source, problem(answer.id, refused))

    def _answer_peer(self, ask: Ask, source: str) -> None:
        """source: as the kernel and the registry tell it, not as ``ask.by`` does."""
        if self._may_ask(ask, source):
            self._answer(ask, lambda answer: self._reply(source, answer))
            return
        self.counters["wrong_asker"] += 1
        if self._say_once(f"asker {ask.verb}"):
            self.log.warning("wrong_asker", verb=ask.verb, source=source)
        self._reply(source, problem(ask.id, Refused(f"{source} may not ask for {ask.verb}")))

    def _may_ask(self, ask: Ask, source: str) -> bool:
        return source in ASKERS.get(ask.verb, (source,))

    def _answer(self, ask: Ask, send: Callable[[Answer], None]) -> None:
        """Call the handler for a question. Wrong arguments are refused; a broken handler answers, then raises."""
        deferred = Deferred(ask.id, send)
        method = self.receptors.verbs.get(ask.verb)
        if method is None:
            deferred.refuse(Unavailable(f"{self.name} does not answer {ask.verb}"))
            return
        self._answering = deferred
        began = time.monotonic()
        try:
            value = getattr(self, method)(ask.args, ask.by)
        except TegumentarError as error:
            deferred.refuse(error)
        except _ARGUMENT_ERRORS as exc:
            self.counters["bad_arguments"] += 1
            self.log.warning("bad_arguments", verb=ask.verb, by=ask.by, exc_info=self._say_once(f"args {ask.verb}"))
            deferred.refuse(
                Refused(f"{ask.verb} does not accept these arguments: {type(exc).__name__} {str(exc)[:200]}")
            )
        except Exception:
            deferred.refuse(TegumentarError(f"{self.name} failed while it answered {ask.verb} and starts anew"))
            raise
        else:
            if value is not deferred:
                deferred.reply(value)
        finally:
            self._answering = None
        self._timed(ask.verb, began)

    # --- what streams need -------------------------------------------------------------------------------------

    def listening_now(self, kind: str) -> list[str]:
        """Living peers with a receptor for ``kind``."""
        return [row.cell for row in self.peers.listening(kind) if row.up]

    def send_batch(self, peer: str, message: Message, stream: int) -> bool:
        """Send a batch that wants credit. False when the peer has gone or the batch cannot be sent."""
        row = self.peers.living(peer)
        frame = self._encoded(message, stream) if row is not None else None
        if row is None or frame is None:
            return False
        self._membrane.send(row.socket, frame)
        return True
