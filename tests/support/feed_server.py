"""Real HTTP servers that misbehave on request: one that publishes lists, and a small CrowdSec local API."""

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Page:
    """What one path answers. behaviour: ``well``, ``gzip``, ``truncated``, ``endless``, ``slow``, ``bomb``, status."""

    data: bytes = b""
    behaviour: str = "well"
    location: str = ""
    failures: int = 0  #: so many answers of 503 come first


@dataclass
class Publisher:
    """Publishes ``pages`` with ETag; ``requests`` are (path, headers, status) as they came."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def statuses(self) -> list[int]:
        return [status for _, _, status in self.requests]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(urlsplit(request.path).path, Page(behaviour="404"))
        tag = f'"{hashlib.sha256(page.data).hexdigest()[:16]}"'
        if page.failures:
            page.failures -= 1
            self._send(request, 503, b"")
        elif page.behaviour.isdigit():
            self._send(request, int(page.behaviour), b"", Location=page.location)
        elif request.headers.get("If-None-Match") == tag:
            self._send(request, 304, b"", ETag=tag)
        elif page.behaviour == "gzip":
            self._send(request, 200, gzip.compress(page.data), ETag=tag, **{"Content-Encoding": "gzip"})
        elif page.behaviour == "bomb":
            self._send(request, 200, gzip.compress(b"0" * 50_000_000), **{"Content-Encoding": "gzip"})
        elif page.behaviour == "slow":
            self.released.wait(20)
            self._send(request, 200, page.data)
        elif page.behaviour == "truncated":
            self._send(request, 200, page.data, length=len(page.data) + 100)
        elif page.behaviour == "endless":
            self._endless(request)
        else:
            self._send(request, 200, page.data, ETag=tag)

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None, **headers: str
    ) -> None:
        self.requests.append((request.path, dict(request.headers.items()), status))
        request.send_response(status)
        for name, value in headers.items():
            if value:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body)

    def _endless(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.path, dict(request.headers.items()), 200))
        request.send_response(200)
        request.end_headers()
        for _ in range(1_000):
            request.wfile.write(b"192.0.2.1\n" * 10_000)


@dataclass
class FakeLapi:
    """The decision stream of a CrowdSec local API: what a bouncer has been told is not told again.

    trouble, once per entry: ``403``, ``500``, ``truncated`` (cut in the middle), ``short`` (closed early, well formed)
    or ``slow``."""

    url: str
    key: str = "good-key"
    live: dict[int, dict[str, Any]] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    usage: list[dict[str, Any]] = field(default_factory=list)  #: reports of usage metrics, as they came
    knows_usage: bool = True  #: False: an API before 1.6.3
    _told: set[int] = field(default_factory=set)
    _gone: list[dict[str, Any]] = field(default_factory=list)

    def decide(self, value: str, duration: str = "4h", number: int = 0, **more: Any) -> int:
        number = number or 1 + max(self.live, default=0) + len(self._gone)
        scope = "Range" if "/" in value else "Ip"
        self.live[number] = {
            "id": number, "origin": "cscli", "type": "ban", "scope": scope, "value": value,
            "duration": duration, "scenario": "test",
        } | more  # fmt: skip
        return number

    def delete(self, number: int) -> None:
        self._gone.append(self.live.pop(number) | {"duration": "-1s"})

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        if request.command == "POST":
            self._take_usage(request)
            return None
        self.requests.append((request.command, parts.query, dict(request.headers.items())))
        if parts.path != "/v1/decisions/stream":
            return self._send(request, 404, b"{}")
        if request.headers.get("X-Api-Key") != self.key:
            return self._send(request, 403, b'{"message":"access forbidden"}')
        if request.command == "HEAD":
            return self._send(request, 200, b"")
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble.isdigit():
            return self._send(request, int(trouble), b"")
        if trouble == "slow":
            self.released.wait(20)
        whole = parse_qs(parts.query).get("startup") == ["true"]
        body = self._body(whole, short=trouble == "short")
        return self._send(request, 200, body, cut=trouble == "truncated")

    def _take_usage(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        known = request.path == "/v1/usage-metrics" and self.knows_usage
        allowed = request.headers.get("X-Api-Key") == self.key
        self.usage.append(json.loads(body) if known and allowed else {})
        self._send(request, 201 if known and allowed else 403 if known else 404, b"")

    def _body(self, whole: bool, short: bool) -> bytes:
        new = [decision for number, decision in self.live.items() if whole or number not in self._told]
        if short:
            new = new[: len(new) // 10]
        self._told |= set(self.live)
        deleted, self._gone = self._gone, []
        return json.dumps({"new": new or None, "deleted": deleted or None}).encode()

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, cut: bool = False) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[: len(body) // 2] if cut else body)


@contextmanager
def serving(made: type[Publisher] | type[FakeLapi]) -> Iterator[Any]:
    """The server on a free port of the loopback interface; ends with the block, whatever its requests do."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                app.answer(self)
            except OSError:
                self.close_connection = True

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    app = made(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield app
    finally:
        app.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
