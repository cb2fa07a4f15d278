"""What the routes know of the node: ask a verb, read the latest known answer, listen to events.

``Skin`` is the border between HTTP and the cells; the cell implements it, tests may too. ``Memory`` keeps the last
good answer of each reading verb, so that a burst of readers costs few questions and a dead supervisor
leaves an old answer, marked as such, instead of a request that hangs."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from actors.core.errors import Unavailable

#: An answer younger than this is as good as a new one, if nothing has changed since. Seconds.
FRESH_S = 0.2
#: How long a reader waits for a cell before the old answer is taken. Seconds.
READ_LIMIT_S = 1.5
#: How long a change may take: the journal comes first, then the kernel, then its proof. Seconds.
CHANGE_LIMIT_S = 5.0


def stands(states: Mapping[str, str]) -> tuple[bool, str]:
    """Whether packets are refused on this node, and by what, from the states of its cells.

    A degraded reflex arc may hold no rung at all; a degraded keratinocyte still has its table."""
    if states.get("reflex_arc") == "healthy":
        return True, "in the kernel program"
    if states.get("keratinocyte") in {"healthy", "degraded"}:
        return True, "in nftables"
    told = ", ".join(f"{name} {states[name]}" for name in ("reflex_arc", "keratinocyte") if name in states)
    return False, told or "no enforcing cell has reported"


class Skin(Protocol):
    """The node as a route sees it. ``ask`` raises the errors of ``actors.core.errors``."""

    async def ask(self, verb: str, args: dict[str, Any], by: str, timeout_s: float) -> Any: ...

    def metrics(self) -> bytes: ...

    def enforcing(self) -> tuple[bool, str]: ...


class Memory:
    """The last good answer of each reading verb. One question at a time for each verb, however many readers wait."""

    def __init__(self, skin: Skin, clock: Callable[[], float] = time.monotonic) -> None:
        self._skin = skin
        self._clock = clock
        self._known: dict[str, tuple[float, Any]] = {}
        self._asking: dict[str, asyncio.Future[Any]] = {}
        self._changed_at = float("-inf")

    def changed(self) -> None:
        """Something on the node is no longer as it was: what was asked before this moment is old."""
        self._changed_at = self._clock()
        self._asking.clear()

    async def read(self, verb: str) -> tuple[Any, float]:
        """The answer and its age in seconds. Raises the error of the question when nothing was ever known."""
        at, value = self._known.get(verb, (float("-inf"), None))
        if at > self._changed_at and self._clock() - at < FRESH_S:
            return value, 0.0
        task = self._asking.get(verb)
        if task is None or task.done():
            task = self._asking[verb] = asyncio.ensure_future(self._ask(verb))
        try:
            return await asyncio.shield(task), 0.0
        except Unavailable:
            if verb not in self._known:
                raise
            at, value = self._known[verb]
            return value, self._clock() - at

    async def _ask(self, verb: str) -> Any:
        asked_at = self._clock()
        value = await self._skin.ask(verb, {}, "gateway", READ_LIMIT_S)
        if asked_at >= self._known.get(verb, (asked_at, None))[0]:
            self._known[verb] = (asked_at, value)
        return value


class Events:
    """Fan-out of what happens to a bounded number of readers; a slow one loses the oldest and is told how many."""

    max_readers = 32
    backlog = 256

    def __init__(self) -> None:
        self._last_id = 0
        self._recent: deque[tuple[int, str, Any]] = deque(maxlen=self.backlog)
        self._readers: set[asyncio.Event] = set()

    def put(self, kind: str, body: Any) -> None:
        """Call on the loop's thread."""
        self._last_id += 1
        self._recent.append((self._last_id, kind, body))
        for wake in self._readers:
            wake.set()

    @property
    def full(self) -> bool:
        return len(self._readers) >= self.max_readers

    async def follow(self, after: int | None) -> AsyncIterator[tuple[int, str, Any]]:
        """Events with an id above ``after``, those still remembered first; without it only new ones.

        A gap is told as an event ``lost`` with the number of events that are gone."""
        seen = self._last_id if after is None or after > self._last_id else after
        wake = asyncio.Event()
        self._readers.add(wake)
        try:
            while True:
                wake.clear()
                pending = [event for event in self._recent if event[0] > seen]
                if pending and pending[0][0] > seen + 1:
                    yield pending[0][0] - 1, "lost", {"events": pending[0][0] - seen - 1}
                for event in pending:
                    seen = event[0]
                    yield event
                if seen == self._last_id:
                    await wake.wait()
        finally:
            self._readers.discard(wake)
