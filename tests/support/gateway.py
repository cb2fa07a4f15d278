"""A gateway over a real socket in front of a node that the test plays: the same application, the same server."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from actors.core.errors import TegumentarError
from actors.hypodermis.gateway.app import make_app
from actors.hypodermis.gateway.context import Context
from actors.hypodermis.gateway.server import listen, listen_local, make_server

TOKEN = "a-token-that-only-the-tests-know-0123456789"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class PlayedNode:
    """Answers verbs from a table; a value that is an error is raised, ``None`` in the table means never answered."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    stands: tuple[bool, str] = (True, "native on veth0")

    async def ask(self, verb: str, args: dict[str, Any], by: str, timeout_s: float) -> Any:
        self.asked.append((verb, args, by))
        answer = self.answers.get(verb, {"verb": verb})
        if isinstance(answer, TegumentarError):
            raise answer
        if answer is None:
            await asyncio.sleep(3600)
        return answer

    def metrics(self) -> bytes:
        return b"tegumentar_up 1\n"

    def enforcing(self) -> tuple[bool, str]:
        return self.stands


@dataclass
class Running:
    http: httpx2.Client
    node: PlayedNode
    context: Context
    port: int
    loop: asyncio.AbstractEventLoop

    def event(self, kind: str, body: Any) -> None:
        self.loop.call_soon_threadsafe(self.context.events.put, kind, body)


@contextmanager
def gateway(
    node: PlayedNode | None = None,
    *,
    max_connections: int = 64,
    max_body: int = 65_536,
    local: Path | None = None,
) -> Iterator[Running]:
    """A served gateway on a free port of the loopback, and a client for it. local: a socket file beside the port."""
    node = node or PlayedNode()
    context = Context(node, TOKEN)
    server = make_server(make_app(context, max_body=max_body), max_connections)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listeners = [listener] if local is None else [listener, listen_local(local, -1)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(listeners),), daemon=True)
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield Running(http, node, context, port, loop)
    finally:
        server.stop()
        thread.join(10)
        loop.close()
        for each in listeners:
            each.close()
    assert not thread.is_alive()
