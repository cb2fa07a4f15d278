"""What every request passes before a route sees it: host name, origin, size of the body, time.

A plain ASGI wrapper, because it has to act before and around the framework. It defends the operator's browser (DNS
rebinding, cross-site requests) and the process (endless bodies, endless requests)."""

import asyncio
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.hypodermis.gateway.problem import Problem, response

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
#: Probes and scrapers use whatever name they like, and find nothing here that a rebinding page could use.
PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/health", "/metrics"})
#: A stream lives as long as its reader.
STREAM_PATHS = frozenset({"/api/tegumentar/events"})


class Guard:
    """Wraps the application. ``hosts`` are names this node answers to, besides addresses and localhost; ``*`` is all.

    max_body: bytes. limit_s: seconds from the request line to the end of the answer, streams excepted."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], max_body: int, limit_s: float) -> None:
        self.app = app
        self.hosts = frozenset(name.lower() for name in hosts)
        self.max_body = max_body
        self.limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = self._refuse(scope)
        if problem is not None:
            await response(problem)(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        limit = None if scope["path"] in STREAM_PATHS else self.limit_s
        try:
            async with asyncio.timeout(limit):
                await self.app(scope, _bounded(receive, self.max_body), watched)
        except TimeoutError:
            if not started:
                late = Problem(503, f"no answer within {self.limit_s:g} s", headers={"Connection": "close"})
                await response(late)(scope, receive, send)

    def _refuse(self, scope: Scope) -> Problem | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if scope["path"] not in PUBLIC_PATHS and not self._known(host):
            return Problem(
                421,
                "this node does not answer to the host name of the request",
                remedy="use its address or localhost, or add the name to gateway.allowed_hosts",
            )
        if scope["method"] not in SAFE_METHODS and not _same_origin(headers, host):
            return Problem(403, "a page of another origin may not change anything here")
        length = headers.get(b"content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_body:
            return Problem(413, f"a request body is at most {self.max_body} bytes", headers={"Connection": "close"})
        return None

    def _known(self, host: str) -> bool:
        name = _host_name(host)
        if not name:
            return False
        if "*" in self.hosts or name == "localhost" or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, lower case; empty when it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _same_origin(headers: dict[bytes, str], host: str) -> bool:
    """Browsers name the origin of a page that posts; tools do not, and carry the token instead."""
    if headers.get(b"sec-fetch-site", "none") not in {"none", "same-origin"}:
        return False
    origin = headers.get(b"origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def _bounded(receive: Receive, limit: int) -> Receive:
    """Count what a chunked body brings, because it announces no length."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, f"a request body is at most {limit} bytes", {"Connection": "close"})
        return message

    return counted
