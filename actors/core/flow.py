"""Credit windows: data flows only as fast as the slowest hand takes it, and a stopped cell stops nobody else.

At most four batches per peer are unacknowledged. Beyond that items wait in a bounded buffer of that peer; when it is
full the oldest go and are counted. The numbers were measured: with this window one stopped peer leaves the others
their full rate, and the transport never blocks.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from actors.core.messages import BATCH_LIMIT, Message

WINDOW = 4


class Sender(Protocol):
    """What a stream needs of its cell."""

    def listening_now(self, kind: str) -> list[str]: ...
    def send_batch(self, peer: str, message: Message, stream: int) -> bool: ...
    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> int: ...


class _Lane:
    """One peer's share: what waits for it and how many batches it still owes credit for."""

    def __init__(self, room: int) -> None:
        self.waiting: deque[Any] = deque(maxlen=room)
        self.unacknowledged = 0


class Stream:
    """Items go in one by one, batches go out to every living cell with a receptor for ``kind``.

    make: builds the message from a list of at most ``batch`` items. linger_s: how long an item may wait for company.
    room: items kept per peer. dropped, sent: items, since the stream was made."""

    def __init__(
        self,
        sender: Sender,
        number: int,
        kind: str,
        make: Callable[[list[Any]], Message],
        *,
        batch: int = BATCH_LIMIT,
        linger_s: float = 0.05,
        room: int = 20_000,
    ) -> None:
        self._sender, self._number, self._kind, self._make = sender, number, kind, make
        self._batch, self._linger_s, self._room = batch, linger_s, room
        self._lanes: dict[str, _Lane] = {}
        self._timer_runs = False
        self.sent = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Items that wait, over all peers."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def put(self, item: Any) -> None:
        """Queue one item for everybody who listens now."""
        self.put_many((item,))

    def put_many(self, items: Sequence[Any]) -> None:
        """Queue items in order for everybody who listens now; without a listener they are dropped and counted."""
        peers = self._sender.listening_now(self._kind)
        if not peers:
            self.dropped += len(items)
        for peer in peers:
            lane = self._lanes.setdefault(peer, _Lane(self._room))
            self.dropped += max(0, len(lane.waiting) + len(items) - self._room)
            lane.waiting.extend(items)
            self._pump(peer, lane, whole_batches_only=True)
        self._linger()

    def credit(self, peer: str) -> None:
        """A batch was handled by ``peer``."""
        lane = self._lanes.get(peer)
        if lane is not None:
            lane.unacknowledged = max(0, lane.unacknowledged - 1)
            self._pump(peer, lane, whole_batches_only=True)
            self._linger()

    def forget(self, peer: str) -> None:
        """``peer`` has gone: what waited for it is dropped and counted, its credit is void."""
        lane = self._lanes.pop(peer, None)
        if lane is not None:
            self.dropped += len(lane.waiting)

    def _linger(self) -> None:
        if not self._timer_runs and any(self._can_send(lane) for lane in self._lanes.values()):
            self._timer_runs = True
            self._sender.after(self._linger_s, self._lingered)

    def _lingered(self) -> None:
        self._timer_runs = False
        for peer, lane in list(self._lanes.items()):
            self._pump(peer, lane, whole_batches_only=False)
        self._linger()

    @staticmethod
    def _can_send(lane: _Lane) -> bool:
        return bool(lane.waiting) and lane.unacknowledged < WINDOW

    def _pump(self, peer: str, lane: _Lane, *, whole_batches_only: bool) -> None:
        while self._can_send(lane) and (not whole_batches_only or len(lane.waiting) >= self._batch):
            items = [lane.waiting.popleft() for _ in range(min(self._batch, len(lane.waiting)))]
            if not self._sender.send_batch(peer, self._make(items), self._number):
                self.dropped += len(items)
                return
            lane.unacknowledged += 1
            self.sent += len(items)
