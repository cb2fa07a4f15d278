"""Bridge: an asyncio loop in one daemon thread of a cell, and the way back to the actor thread.

Actor thread → loop: ``call``. Any thread → actor thread: ``post`` (a deque and an eventfd that the cell watches).
A round trip costs a quarter of a millisecond, a third of a message between cells, so clients of servers live inside
the cell that uses them.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

Then = Callable[["Future[Any]"], Any]


class Mailbox:
    """Functions on their way to the actor thread; ``post`` may be called from anywhere."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: deque[Callable[[], Any]] = deque()

    def post(self, call: Callable[..., Any], *args: Any) -> None:
        """Have ``call(*args)`` run on the actor thread, in order of posting."""
        self._waiting.append(lambda: call(*args))
        with suppress(OSError):  # the counter is full, which wakes the reader too; or the cell has ended
            os.eventfd_write(self.fd, 1)

    def run(self) -> None:
        """On the actor thread: run what is there now; what is posted meanwhile waits for the next wake-up."""
        with suppress(BlockingIOError):  # woken for nothing, or emptied in the call before
            os.eventfd_read(self.fd)
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()


class Bridge:
    """The loop thread. ``beat`` is called in the loop once per ``beat_s`` seconds: a loop that hangs stops beating."""

    def __init__(self, mailbox: Mailbox, beat: Callable[[], None], beat_s: float) -> None:
        self._mailbox, self._beat, self._beat_s = mailbox, beat, beat_s
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="asyncio", daemon=True)
        self._thread.start()

    def call(
        self, make: Callable[..., Coroutine[Any, Any, Any]], *args: Any, then: Then | None = None
    ) -> "Future[Any]":
        """Run ``make(*args)`` in the loop; ``then(future)`` follows on the actor thread, whatever the outcome."""
        future = asyncio.run_coroutine_threadsafe(make(*args), self.loop)
        if then is not None:
            future.add_done_callback(lambda done: self._mailbox.post(then, done))
        return future

    def stop(self, limit_s: float = 2.0) -> None:
        """Cancel every task, let them clean up, end the thread; give up after ``limit_s``: the process ends anyway."""
        self.loop.call_soon_threadsafe(self._cancel_all)
        self._thread.join(limit_s)

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        if not tasks:
            self.loop.stop()
            return
        for task in tasks:
            task.cancel()
        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(lambda _: self.loop.stop())

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._tick()
        self.loop.run_forever()

    def _tick(self) -> None:
        self._beat()
        self.loop.call_later(self._beat_s, self._tick)
