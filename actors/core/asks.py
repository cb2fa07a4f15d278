"""Asks: questions on their way, and answers owed.

Nothing waits: a question has an id, a deadline and a function to call; an answer may be given later, through
``Deferred``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.core.errors import NotFound, Refused, TegumentarError, Unavailable
from actors.core.messages import Answer, Ask

Then = Callable[[Answer], Any]
_TEXT_LIMIT = 2000


def problem(ask_id: int, error: TegumentarError) -> Answer:
    """The answer that carries an error of ours across the border."""
    code = "failed"
    for kind, name in ((NotFound, "not_found"), (Refused, "refused"), (Unavailable, "unavailable")):
        if isinstance(error, kind):
            code = name
            break
    return Answer(id=ask_id, code=code, problem=str(error)[:_TEXT_LIMIT], remedy=error.remedy[:_TEXT_LIMIT])


def raise_for(answer: Answer) -> Any:
    """The value of an answer, or the error that it carries: Refused, NotFound, Unavailable, else TegumentarError."""
    if not answer.code and not answer.problem:
        return answer.value
    kinds: dict[str, type[TegumentarError]] = {"not_found": NotFound, "refused": Refused, "unavailable": Unavailable}
    raise kinds.get(answer.code, TegumentarError)(answer.problem, remedy=answer.remedy)


class Deferred:
    """An answer that is owed. The first ``reply`` or ``refuse`` counts, later ones are ignored."""

    def __init__(self, ask_id: int, send: Callable[[Answer], None]) -> None:
        self._id, self._send = ask_id, send
        self.done = False

    def reply(self, value: Any = None) -> None:
        """Answer with plain msgpack values."""
        self._finish(Answer(id=self._id, value=value))

    def refuse(self, error: TegumentarError) -> None:
        """Answer with an error; its kind decides the code."""
        self._finish(problem(self._id, error))

    def relay(self, answer: Answer) -> None:
        """Pass on what another cell answered."""
        self._finish(
            Answer(id=self._id, value=answer.value, code=answer.code, problem=answer.problem, remedy=answer.remedy)
        )

    def _finish(self, answer: Answer) -> None:
        if not self.done:
            self.done = True
            self._send(answer)


@dataclass
class Question:
    """An ask under way. peer empty: held, because the cell that answers is away."""

    ask: Ask
    then: Then
    timer: int
    peer: str = ""


class Questions:
    """Asks under way, by id. Bounded: beyond 256 a new one is answered ``unavailable`` at once."""

    LIMIT = 256

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}
        self._last = 0

    def next_id(self) -> int:
        self._last += 1
        return self._last

    def full(self) -> bool:
        return len(self._open) >= self.LIMIT

    def add(self, question: Question) -> None:
        self._open[question.ask.id] = question

    def take(self, ask_id: int, source: str | None = None) -> Question | None:
        """Remove and return a question; with ``source`` only when it was put to that cell."""
        question = self._open.get(ask_id)
        if question is None or (source is not None and question.peer != source):
            return None
        return self._open.pop(ask_id)

    def held(self) -> list[Question]:
        return [question for question in self._open.values() if not question.peer]

    def put_to(self, peer: str) -> list[Question]:
        return [question for question in self._open.values() if question.peer == peer]
