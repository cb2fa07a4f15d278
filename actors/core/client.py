"""Client: how another process asks the running service; it can join one, never start one.

It speaks the actor system's own frames over the actor system's own sockets, without Thespian's machinery: a question
goes to the supervisor, which asks the cell that answers the verb and relays what it says. Only root (or the user who
runs the service) gets as far as the socket directory.
"""

import contextlib
import itertools
import os
import secrets
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.core.asks import raise_for
from actors.core.codec import decode, encode
from actors.core.errors import DecodeError, Refused, ServiceNotRunning, Unavailable
from actors.core.messages import Answer, Ask, Message
from actors.core.sockets import (
    SUPERVISOR_SOCKET,
    PeerCredentials,
    UnixAddress,
    UnixSocket,
    listen,
    peer_of,
    use_directory,
)

SOCKETS = "actors"  #: directory of the sockets, in the run directory
_NAME = "client"
_RECEIPT_LIMIT = 4096


def connect(run_dir: Path | str) -> "Client":
    """Join the service that runs in ``run_dir``. Raises ServiceNotRunning, at once, when there is none."""
    return Client(Path(run_dir))


class Client:
    """One end of a conversation with the service; not for use by several threads at a time."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / SOCKETS
        self._ids = itertools.count(secrets.randbits(32))
        self._name = f"c{secrets.token_hex(8)}"
        self._supervisor = PeerCredentials(0, -1)
        self._absent = ServiceNotRunning(
            f"no Tegumentar service answers in {run_dir}",
            remedy="start it with `python run.py`, or name the right run directory (TEGUMENTAR_RUN_DIR)",
        )
        self._path = Path(self._directory, self._name)
        try:
            use_directory(self._directory)
            self._probe()
            self._inbox = self._listen()
        except PermissionError as exc:
            raise Refused(
                f"this user may not administer the service in {run_dir}", remedy="run the command as root"
            ) from exc
        except OSError as exc:
            raise self._absent from exc

    def ask(self, verb: str, args: dict[str, Any] | None = None, by: str = "cli", timeout_s: float = 2.0) -> Any:
        """The value that the cell behind ``verb`` answers with.

        Raises what it refuses with (Refused, NotFound), Unavailable when nobody answers in ``timeout_s`` or the
        supervisor ends meanwhile, ServiceNotRunning when the service has gone."""
        ask = Ask(id=next(self._ids), verb=verb, args=args or {}, by=by, timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        self.send(ask, timeout_s)
        with _life_of(self._supervisor.pid) as life:
            return self._await(ask, life, deadline, timeout_s)

    def _await(self, ask: Ask, life: int, deadline: float, timeout_s: float) -> Any:
        while (left := deadline - time.monotonic()) > 0:
            answer = self._receive(left, life)
            if answer is not None and answer.id == ask.id:
                return raise_for(answer)
        raise Unavailable(
            f"the service did not answer {ask.verb} within {timeout_s:g} s", remedy="`cells` shows how it is"
        )

    def send(self, message: Message, timeout_s: float = 2.0) -> None:
        """Hand one message to the supervisor. Raises ServiceNotRunning when nobody takes it."""
        try:
            use_directory(self._directory)
            if not self._path.exists():  # a service that starts empties the directory
                self._inbox.close()
                self._inbox = self._listen()
            self._supervisor = deliver(SUPERVISOR_SOCKET, self._name, encode(message, _NAME, 0), timeout_s)
        except TimeoutError as exc:
            raise Unavailable("the service does not take questions at the moment", remedy="try again") from exc
        except OSError as exc:
            raise self._absent from exc

    def close(self) -> None:
        """Leave; the service goes on."""
        self._inbox.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _probe(self) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(UnixAddress(SUPERVISOR_SOCKET).path)

    def _listen(self) -> UnixSocket:
        inbox = listen(self._name)
        if os.geteuid() == 0:  # a service of another user must be able to answer root
            os.chown(self._path, self._directory.stat().st_uid, -1)
        return inbox

    def _receive(self, limit_s: float, life: int) -> Answer | None:
        """The next answer from the supervisor, or None when what came was something else."""
        from actors.core.frames import FrameRefused, dumps, loader

        poll = select.poll()
        for fd in (self._inbox.fileno(), life):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(limit_s * 1000)]
        if not ready:
            return None
        if ready == [life]:
            raise Unavailable("the supervisor ended before it answered", remedy="it is started again: ask again")
        line, _ = self._inbox.accept()
        with contextlib.closing(line):
            if peer_of(line).pid != self._supervisor.pid:
                return None
            line.settimeout(limit_s)
            try:
                _sender, data = loader(peer_of(line))(_read_frame(line))
                receipt = dumps("ACK")
                line.sendall(b"%d>" % len(receipt) + receipt)
                message = decode(data).message
            except (OSError, DecodeError, FrameRefused):
                return None
        return message if isinstance(message, Answer) else None


@contextlib.contextmanager
def _life_of(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends. Raises Unavailable when it has ended already."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as exc:
        raise Unavailable("the supervisor ended before it answered", remedy="it is started again: ask again") from exc
    try:
        yield fd
    finally:
        os.close(fd)


def deliver(to: str, reply_to: str, data: bytes, timeout_s: float) -> PeerCredentials:
    """Put application bytes into the hands of the actor that listens as ``to``; returns whose hands those were.

    Raises OSError when it does not take them."""
    from thespian.actors import ActorAddress

    from actors.core.frames import dumps

    body = dumps((ActorAddress(UnixAddress(reply_to)), data))
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(timeout_s)
        line.connect(UnixAddress(to).path)
        line.sendall(b"%d>" % len(body) + body)
        if not line.recv(_RECEIPT_LIMIT):
            raise ConnectionResetError("the receiver hung up")
        return peer_of(line)


def _read_frame(line: socket.socket) -> bytes:
    from actors.core.frames import check_header

    head = b""
    while b">" not in head:
        more = line.recv(16)
        if not more:
            raise OSError("the service hung up")
        head += more
        check_header(head)
    length, _, body = head.partition(b">")
    parts, missing = [body], int(length) - len(body)
    while missing > 0:
        more = line.recv(min(missing, 65536))
        if not more:
            raise OSError("the service hung up")
        parts.append(more)
        missing -= len(more)
    return b"".join(parts)
