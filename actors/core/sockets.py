"""Sockets of the actor system: AF_UNIX files in one private directory, and who is at the other end of a connection.

The directory belongs to the process (``use_directory``); an address on the wire is only a file name, so that no frame
can make a process connect anywhere else. Sockets are reached through a descriptor of the directory: AF_UNIX paths end
at 107 bytes, and a cell that gave up root may be unable to walk the path that leads there.
"""

import errno
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any, NamedTuple

SUPERVISOR_SOCKET = "basal_layer"  #: a link to the socket of the supervisor that lives
_PATH_LIMIT = 107
_NAME = re.compile(r"[a-z0-9_]{1,32}")
_CREDENTIALS = struct.Struct("3i")


class _Directory:
    """Where the sockets of this process's actor system lie; forked children share the descriptor."""

    path = Path("/nonexistent")
    fd = -1


def use_directory(directory: Path) -> None:
    """Make ``directory`` the one that addresses of this process mean. Raises OSError when it cannot be opened."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if _Directory.fd >= 0:
        os.close(_Directory.fd)
    _Directory.path, _Directory.fd = directory, fd


class PeerCredentials(NamedTuple):
    """The kernel's word about the process that connected: as it was when it did."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> PeerCredentials:
    """SO_PEERCRED. On a connection that we made it describes the peer when it began to listen: no use there."""
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return PeerCredentials(pid, uid)


class UnixAddress:
    """Where an actor listens: the name of a socket file. Thespian keeps it as the details of its ``ActorAddress``."""

    def __init__(self, name: str) -> None:
        self.__setstate__({"name": name})

    def __setstate__(self, state: Any) -> None:
        name = state.get("name") if isinstance(state, dict) else None
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError("not the name of a socket of the actor system")
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnixAddress) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return f"(unix {self.name})"

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{_Directory.fd}/{self.name}"

    # What Thespian's TCP transport asks of an address:
    def isLocalAddr(self) -> bool:  # noqa: N802
        return True

    def isSameSystem(self, _other: Any) -> bool:  # noqa: N802
        return True

    @property
    def socketArgs(self) -> tuple[int, int, int]:  # noqa: N802
        return (socket.AF_UNIX, socket.SOCK_STREAM, 0)

    @property
    def connectArgs(self) -> tuple[str]:  # noqa: N802
        return (self.path,)


class Inbound:
    """Stands for the far end of an idle received connection in the transport's table of idle connections."""

    def isSameSystem(self, _other: Any) -> bool:  # noqa: N802
        return False


class UnixSocket(socket.socket):
    """An AF_UNIX socket that behaves as Thespian's TCP transport expects a TCP one to behave."""

    _peer: PeerCredentials | None = None

    @property
    def peer(self) -> PeerCredentials:
        """``peer_of`` this connection, asked once."""
        if self._peer is None:
            self._peer = peer_of(self)
        return self._peer

    def setsockopt(self, level: int, *args: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *args)

    def connect(self, address: Any) -> None:
        try:
            super().connect(address)
        except FileNotFoundError as exc:
            raise ConnectionRefusedError(errno.ECONNREFUSED, str(exc)) from None
        except BlockingIOError:  # the listener's backlog is full; there is no "in progress" to wait for on AF_UNIX
            self.settimeout(1.0)
            try:
                super().connect(address)
            finally:
                self.setblocking(False)

    def send(self, *args: Any) -> int:
        try:
            return super().send(*args)
        except BrokenPipeError as exc:  # an idle connection that the peer closed, not a dead peer: connect anew
            raise ConnectionResetError(errno.ECONNRESET, str(exc)) from None

    def accept(self) -> tuple["UnixSocket", Any]:
        fd, address = self._accept()  # type: ignore[attr-defined]
        return UnixSocket(self.family, self.type, self.proto, fileno=fd), address


def listen(name: str, *, gid: int = -1, backlog: int = 100) -> UnixSocket:
    """A listening socket of that name, mode 0660 and of group ``gid``; what lies there under its name is replaced."""
    address = UnixAddress(name)
    Path(address.path).unlink(missing_ok=True)
    made = UnixSocket(*address.socketArgs)
    plain = str(_Directory.path / name)  # shown by ss and /proc/net/unix, so the true name where it fits
    before = os.umask(0o117)
    try:
        made.bind(plain if len(os.fsencode(plain)) <= _PATH_LIMIT else address.path)
    finally:
        os.umask(before)
    if gid >= 0 and os.geteuid() == 0:
        os.chown(address.path, -1, gid)
    made.listen(backlog)
    return made
