"""Host: the Thespian actor around one cell, and the birth of its process.

What a cell is made of reaches it by the fork itself: the parent puts a ``Seed`` in place, forks, and the child's first
act is to take it. Nothing of it crosses a socket. The rules of the runtime that cannot be seen from a cell are kept
here: signals that must kill, a log that does not travel through Thespian, a watch list returned from every path.
"""

import faulthandler
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setproctitle import setproctitle
from thespian.actors import Actor, ActorAddress, ActorExitRequest, ChildActorExited, ThespianWatch, WatchMessage

from actors.core import frames, log, thrift
from actors.core.anatomy import Anatomy, CellSpec
from actors.core.capability import Identity, drop
from actors.core.cell import Cell
from actors.core.codec import decode
from actors.core.errors import DecodeError
from actors.core.frames import Delivery
from actors.core.lifecycle import Birth
from actors.core.membrane import Frame, Self
from actors.core.pulse import Pulse
from actors.core.sockets import UnixAddress
from actors.core.transport import UnixTransport, die_with_parent

#: Exit code of a cell that ended itself because of an exception; the cause is on its page.
CRASHED = 70


@dataclass
class Seed:
    """Everything a process needs to become a cell."""

    spec: CellSpec
    me: Self
    pulse: Pulse
    identity: Identity | None  #: None: privileges stay as they are
    read_settings: Callable[[], Any] | None = None
    anatomy: Anatomy | None = None  #: for the supervisor only


class Nursery:
    """Where the parent leaves the seed for the next fork."""

    seed: Seed | None = None


class CellActor(Actor):  # type: ignore[misc]
    """One cell's process as Thespian sees it. Also the cell's ``Membrane``."""

    def __init__(self) -> None:
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
            signal.signal(number, signal.SIG_DFL)  # Thespian catches them all, and a real fault would run for ever
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.enable()
        seed = Nursery.seed
        if seed is None:
            os._exit(CRASHED)
        Nursery.seed = None
        self._seed: Seed = seed
        self._supervisor_pid = os.getppid()
        self._cell: Cell | None = None
        self._ended = False

    # --- Thespian's side ---------------------------------------------------------------------------------------

    def receiveMessage(self, message: Any, sender: ActorAddress) -> Any:  # noqa: N802
        """Never raises (Thespian would run the handler again) and always returns the watch list."""
        try:
            self._receive(message, sender)
        except Exception as exc:
            self.crash(f"{type(exc).__name__}: {exc}"[:500])
        return ThespianWatch(self._cell.descriptors() if self._cell is not None else [])

    def _receive(self, message: Any, sender: ActorAddress) -> None:
        cell = self._cell
        if isinstance(message, Delivery):
            frame = Frame(message, message.peer.pid, message.peer.uid, sender.addressDetails.name)
            if cell is not None:
                cell.hear(frame)
            else:
                self._maybe_born(frame)
        elif isinstance(message, WatchMessage) and cell is not None:
            cell.ready(message.ready)
        elif isinstance(message, ChildActorExited):
            self.child_ended()
        elif isinstance(message, ActorExitRequest):
            self.asked_to_exit()

    def asked_to_exit(self) -> None:
        """SIGTERM, or our own ``leave``: Thespian ends this process when we return."""
        if self._cell is not None and not self._ended:
            self._ended = True
            self._cell.end()

    def make_cell(self, me: Self) -> Cell:
        """The cell itself, not started yet."""
        return self._seed.spec.cell_class()(me, self)

    def child_ended(self) -> None:
        """A child process may have ended; only the supervisor has any."""

    def parents(self) -> tuple[int, ...]:
        """Processes that may call this one into life."""
        return (self._supervisor_pid,)

    def _maybe_born(self, frame: Frame) -> None:
        """Become the cell, when it is the parent who says so."""
        if frame.pid not in self.parents():
            return
        with suppress(DecodeError):
            if isinstance(decode(frame.data).message, Birth):
                self._become_cell(frame.reply_to)

    def _become_cell(self, supervisor_socket: str) -> None:
        seed = self._seed
        setproctitle(f"tegumentar: {seed.spec.name} [{seed.me.incarnation}]")
        with suppress(OSError):  # without root the score can only be raised
            Path("/proc/self/oom_score_adj").write_text(str(seed.spec.oom_score_adj))
        cell = self.make_cell(seed.me)
        cell.read_settings = seed.read_settings
        cell.supervisor_socket = supervisor_socket
        cell.before_drop()
        if seed.identity is not None:
            parent = os.getppid()
            drop(seed.identity, seed.spec.privileges.capabilities, ambient=seed.spec.privileges.ambient)
            self._transport.close_outbound()
            die_with_parent()
            if os.getppid() != parent:
                os._exit(0)
        early, frames.REFUSED = frames.REFUSED, cell.counters  # the transport's refusals are reported with the cell's
        if isinstance(early, Counter):
            cell.counters.update(early)
        self._cell = cell
        cell.begin()
        cell.greet()
        for seconds in thrift.SETTLE_S:
            cell.after(seconds, thrift.settle)
        cell.every(thrift.EVERY_S, thrift.give_back)

    @property
    def _transport(self) -> UnixTransport:
        transport: UnixTransport = self._myRef.transport
        return transport

    # --- the cell's side: Membrane -------------------------------------------------------------------------------

    @property
    def socket(self) -> str:
        return self._transport.name

    @property
    def supervisor_pid(self) -> int:
        return self._supervisor_pid

    def send(self, socket: str, frame: bytes) -> None:
        super().send(ActorAddress(UnixAddress(socket)), frame)

    def forget(self, socket: str) -> None:
        self._transport.deadAddress(self._myRef._addrManager, ActorAddress(UnixAddress(socket)))

    def queued(self) -> int:
        return self._transport.queued()

    def beat(self) -> None:
        self._seed.pulse.beat()

    def beat_loop(self) -> None:
        self._seed.pulse.beat_loop()

    def crash(self, cause: str) -> None:
        """Leave the cause, say it once with its traceback, and go: a half-changed actor must not go on."""
        with suppress(Exception):
            self._seed.pulse.leave(cause)
            log.logger(cell=self._seed.spec.name).error("crash", cause=cause, traceback=traceback.format_exc()[-4000:])
            sys.stderr.flush()
        os._exit(CRASHED)

    def leave(self) -> None:
        self._ended = True
        super().send(self.myAddress, ActorExitRequest())
