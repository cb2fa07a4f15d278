"""uvicorn inside a cell: one socket, bounded connections, and no client that can hold a place by doing nothing."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import h11
import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from actors.core.errors import Unavailable
from actors.hypodermis.gateway.problem import MEDIA_TYPE, document

#: A request head larger than this is refused; ours have a few hundred bytes.
MAX_HEAD_BYTES = 16_384
#: From the connection, or from the end of the last answer, to a complete request head.
HEAD_LIMIT_S = 10.0
KEEP_ALIVE_S = 15


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for the request head and a limit on connections.

    At the limit the connection that has been idle longest makes room, so slow or silent clients cannot shut
    others out; when every connection is busy the new one is closed at once."""

    max_connections = 128

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.idle_since: float | None = asyncio.get_running_loop().time()
        super().connection_made(transport)
        self.head_timer = self.loop.call_later(HEAD_LIMIT_S, self._head_is_late)
        if len(self.connections) > self.max_connections:
            others = [other for other in self.connections if isinstance(other, BoundedProtocol)]
            idle = [other for other in others if other.idle_since is not None and other is not self]
            victim = min(idle, key=lambda other: other.idle_since or 0.0, default=self)
            victim.connections.discard(victim)
            victim.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.head_timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.idle_since = None
            self.head_timer.cancel()

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        self.head_timer.cancel()
        self.head_timer = self.loop.call_later(HEAD_LIMIT_S + KEEP_ALIVE_S, self._head_is_late)
        super().on_response_complete()

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        body = orjson.dumps(document(400, "these bytes are no HTTP request"))
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer was already under way
        self.transport.close()


class QuietServer(uvicorn.Server):
    """uvicorn, but it looks up once a second instead of ten times, and ends at once when asked to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave = asyncio.Event()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leave.wait(), 1.0)

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leave.set)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, made while the cell still may use any port. Port 0 takes a free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    except OSError as exc:
        raise Unavailable(f"the gateway cannot use the address {host}: {exc}", remedy="correct gateway.host") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(256)
    except OSError as exc:
        listener.close()
        raise Unavailable(
            f"the gateway cannot listen on {host} port {port}: {exc.strerror}",
            remedy="stop what uses the port (ss -ltnp shows it) or set gateway.port",
        ) from exc
    return listener


def listen_local(path: Path, gid: int) -> socket.socket:
    """A listening socket file for members of a group, mode 0660; one that a dead process left there is replaced.

    Raises Unavailable when another program listens there, when the place holds something else, or cannot be used."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o117)
    try:
        _clear(path)
        listener.bind(str(path))
        if os.geteuid() == 0:
            os.chown(path, 0, gid)
        listener.listen(256)
    except OSError as exc:
        listener.close()
        raise Unavailable(
            f"the gateway cannot listen on {path}: {exc.strerror or exc}",
            remedy="correct gateway.socket, or end what listens there (ss -lxp shows it)",
        ) from exc
    finally:
        os.umask(before)
    return listener


def _clear(path: Path) -> None:
    """Take away what nobody listens on. Raises OSError for all that is no such socket."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "something that is no socket is there already")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(errno.EADDRINUSE, "another program listens there")
        path.unlink()


def make_server(app: ASGIApp, max_connections: int) -> QuietServer:
    protocol: type[Any] = type("GatewayProtocol", (BoundedProtocol,), {"max_connections": max_connections})
    return QuietServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
    )
