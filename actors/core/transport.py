"""Transport: Thespian 4.0.1 carried over AF_UNIX.

No port, peers known to the kernel, frames capped and read through a short list, no orphans. Thespian's TCP transport
does the work; what is replaced or overridden here was found necessary by measurement, each with its reason beside it.
Every process of the system has this module in memory before it opens a socket (they are forked from the launcher), so
the replacements hold in all of them. Do not move to another version of Thespian without reading these functions again.
"""

import ctypes
import errno
import importlib.metadata
import math
import os
import secrets
import select
import signal
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("THESPLOG_FILE", os.devnull)  # its default is a fixed name in /tmp, written by root
_resolving = socket.getfqdn, socket.getaddrinfo
# Thespian resolves the host's names when it is imported: up to 50 s where the resolver is a black hole.
socket.getfqdn, socket.getaddrinfo = (lambda name="": ""), (lambda *_, **__: [])
try:
    import thespian.system.transport.TCPTransport as tcp  # noqa: N813
finally:
    socket.getfqdn, socket.getaddrinfo = _resolving
import thespian.system.transport.asyncTransportBase as async_base  # noqa: E402, N813
from thespian.actors import ActorAddress  # noqa: E402
from thespian.system.transport import ExternalInterfaceTransportInit, SendStatus  # noqa: E402
from thespian.system.transport.streamBuffer import (  # noqa: E402
    ReceiveBuffer,
    ackDataErrPacket,
    ackPacket,
    toSendBuffer,
)

from actors.core import frames  # noqa: E402
from actors.core.sockets import Inbound, UnixAddress, UnixSocket, listen, peer_of  # noqa: E402

THESPIAN = "4.0.1"
if importlib.metadata.version("thespian") != THESPIAN:
    raise ImportError(f"the actor transport is written against thespian {THESPIAN} exactly")

ADMIN_SOCKET = "admin"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class Access:
    """Who may connect, and the group of the sockets; set by the launcher, inherited by the fork."""

    uids: frozenset[int] = frozenset({0, os.geteuid()})
    gid: int = -1


def die_with_parent() -> None:
    """SIGKILL when the parent ends. The kernel forgets it at a change of credentials: call it again after one."""
    if _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def become_subreaper() -> None:
    """Descendants that lose their parent become our children, so that they can be collected."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


#: Connections held by one process: far more than cells, far fewer than descriptors.
_CONNECTIONS_MAX = 400

#: Transports opened by this process or, before a fork, by an ancestor of it.
_transports: list["UnixTransport"] = []


def _close_inherited() -> None:
    """After a fork: close the parent's sockets, through their objects so that no number is closed twice."""
    for transport in [held for held in _transports if held.owner != os.getpid()]:
        held = [getattr(transport, "socket", None)]
        for table in ("_openSockets", "_incomingSockets", "_transmitIntents"):
            held += [getattr(entry, "socket", None) for entry in getattr(transport, table, {}).values()]
        for sock in held:
            if sock is not None and sock.fileno() >= 0:
                sock.close()
        _transports.remove(transport)


class _SocketModule:
    """What the TCP transport sees as its ``socket`` module."""

    socket = UnixSocket

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


class _PollSelector:
    """The transport makes a selector in every pass: one system call with poll, one per descriptor with epoll."""

    def __init__(self) -> None:
        self._poll = select.poll()

    def register(self, fd: int, event: int) -> None:
        self._poll.register(fd, select.POLLIN if event == 1 else select.POLLOUT)

    def select(self, timeout: float | None = None) -> list[tuple[SimpleNamespace, int]]:
        try:
            ready = self._poll.poll(None if timeout is None else max(0, math.ceil(timeout * 1000)))
        except InterruptedError:
            return []
        if any(events & select.POLLNVAL for _, events in ready):
            raise OSError(errno.EBADF, "a closed descriptor is being watched")
        return [
            (SimpleNamespace(fd=fd), bool(events & ~select.POLLOUT) | bool(events & ~select.POLLIN) << 1)
            for fd, events in ready
        ]

    def close(self) -> None: ...


class _Buffer(ReceiveBuffer):  # type: ignore[misc]
    """A receive buffer that looks at the header before it collects what the header announces."""

    def addMore(self, buf: bytes) -> None:  # noqa: N802
        if self._size is None and buf:
            frames.check_header(self._buf + buf[:12])
        super().addMore(buf)


def _refuse(_data: bytes) -> Any:
    frames.REFUSED["refused_frames"] += 1
    raise frames.FrameRefused("frames arrive on connections that the sender made")


class _Incoming(tcp.TCPIncomingPersistent):  # type: ignore[misc]
    """A connection being read. On one that we made, nothing but receipts is taken: the kernel's word about the peer
    is then as old as its socket, from before it gave up root."""

    def __init__(self, remote: ActorAddress, sock: Any, buffer: Any = None) -> None:
        ours = isinstance(remote.addressDetails, UnixAddress)
        super().__init__(remote, sock, buffer or _Buffer(_refuse if ours else frames.loader(peer_of(sock))))


tcp.socket = _SocketModule()
tcp.selectors = SimpleNamespace(DefaultSelector=_PollSelector, EVENT_READ=1, EVENT_WRITE=2)
tcp.serializer = SimpleNamespace(loads=frames.loads_acknowledgement, dumps=frames.dumps)
tcp.ReceiveBuffer, tcp.TCPIncomingPersistent = _Buffer, _Incoming
tcp.ackMsg = toSendBuffer(ackPacket, frames.dumps)
tcp.ackDataErrMsg = toSendBuffer(ackDataErrPacket, frames.dumps)
#: Pending transmits, of all targets together, that stop every send. A stopped peer is killed after three seconds;
#: until then at most 20 messages a second pile up for it.
async_base.MAX_PENDING_TRANSMITS = 200


class UnixTransport(tcp.TCPTransport):  # type: ignore[misc]
    """One process's end of the actor system."""

    def __init__(self, init: Any, *args: Any) -> None:
        async_base.asyncTransportBase.__init__(self)  # cooperative: the wake-up base follows
        name, is_child = "", False
        if isinstance(init, ExternalInterfaceTransportInit):
            self.txOnly, self._adminAddr, self._parentAddr = False, self.getAdminAddr(args[0]), None
        elif isinstance(init, tcp.TCPEndpoint):
            is_child = True
            _number, assigned, self._parentAddr, self._adminAddr, _routing, self.txOnly = init.args
            name = assigned.addressDetails.name if assigned is not None else ""
        else:
            (self._adminAddr, self.txOnly, _routing), self._parentAddr = args, None
        _close_inherited()
        if is_child:
            die_with_parent()
            frames.REFUSED = Counter()  # not the parent's
        self.owner = os.getpid()
        self.name = name or secrets.token_hex(8)  # never used twice
        self.myAddress = ActorAddress(UnixAddress(self.name))
        self.socket = listen(self.name, gid=Access.gid, backlog=tcp.LISTEN_DEPTH)
        self._transmitIntents: dict[int, Any] = {}
        self._waitingTransmits: list[Any] = []
        self._incomingSockets: dict[int, Any] = {}
        self._incomingEnvelopes: list[Any] = []
        self._finished_intents: list[Any] = []
        self._watches: list[int] = []
        self._openSockets: dict[Any, Any] = {}
        self._checkChildren = self._shutdownSignalled = False
        _transports.append(self)

    def close_outbound(self) -> None:
        """Drop idle connections that we made: their far ends still remember the credentials of that moment."""
        for key, idle in list(self._openSockets.items()):
            if isinstance(key, UnixAddress):
                del self._openSockets[key]
                idle.close()

    def queued(self) -> int:
        """Messages that no receiver has acknowledged yet."""
        return len(self._aTB_queuedPendingTransmits) + int(self._aTB_numPendingTransmits)

    def _complete_expired_intents(self) -> tuple[int, bool]:
        """The original looks at the whole queue at every send. Life times are equal: only the head can be expired."""
        queue, expired = self._aTB_queuedPendingTransmits, []
        with self._aTB_lock:
            while queue and queue[0].expired():
                expired.append(queue.popleft())
            left = len(queue)
        for intent in expired:
            intent.tx_done(SendStatus.Failed)
        return left, bool(expired)

    def _next_XMIT_2(self, intent: Any) -> Any:  # noqa: N802
        """AF_UNIX is writable only below a quarter of its buffer: do not wait for that after the last byte."""
        result = super()._next_XMIT_2(intent)
        if result and intent.stage == self._XMITStepShutdownWrite:
            return self._next_XMIT_3(intent)
        return result

    def _finishIncoming(self, incoming: Any, _sender: Any) -> None:  # noqa: N802
        """One connection per direction: frames never cross on one, and there are no duplicates to close."""
        far_end = ActorAddress(Inbound())
        self._openSockets[far_end.addressDetails] = tcp.IdleSocket(incoming.socket, far_end)

    def _acceptNewIncoming(self) -> None:  # noqa: N802
        before = set(self._incomingSockets)
        super()._acceptNewIncoming()
        for fd in set(self._incomingSockets) - before:
            crowded = len(self._incomingSockets) + len(self._openSockets) > _CONNECTIONS_MAX
            if crowded or peer_of(self._incomingSockets[fd].socket).uid not in Access.uids:
                frames.REFUSED["refused_peers"] += 1
                self._incomingSockets.pop(fd).close()

    def childResetFileNumList(self) -> list[int]:  # noqa: N802
        """Nothing to close by number: ``_close_inherited`` does it through the objects."""
        return []

    def external_transport_clone(self) -> "UnixTransport":
        return type(self)(tcp.ExternalTransportCopy(), self._adminAddr, self.txOnly, False)

    def close(self) -> None:
        if self in _transports:
            _transports.remove(self)
        if getattr(self, "owner", None) == os.getpid():
            with suppress(OSError):
                Path(self.myAddress.addressDetails.path).unlink()
        super().close()

    @staticmethod
    def getAdminAddr(_capabilities: Any) -> ActorAddress:  # noqa: N802
        return ActorAddress(UnixAddress(ADMIN_SOCKET))

    @staticmethod
    def getConventionAddress(_capabilities: Any) -> None:  # noqa: N802
        return None

    @staticmethod
    def probeAdmin(address: ActorAddress) -> bool:  # noqa: N802
        """Whether something listens there."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(address.addressDetails.path)
            except OSError:
                return False
            return True
