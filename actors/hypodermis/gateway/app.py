"""The HTTP application: routes, problems, and the guard around them. Knows nothing of actors or sockets."""

import socket
from collections.abc import Iterable

from fastapi import FastAPI
from starlette.types import ASGIApp

from actors.hypodermis.gateway import problem
from actors.hypodermis.gateway.context import Context
from actors.hypodermis.gateway.guard import Guard
from actors.hypodermis.gateway.routes import blocks, events, health, immunity, posture, ratelimit, state

VERSION = "0.1.0"
#: The longest a request may take; changes wait for the kernel's proof.
REQUEST_LIMIT_S = 15.0


def make_app(context: Context, *, hosts: Iterable[str] = (), max_body: int = 1_048_576) -> ASGIApp:
    """The guarded application. ``hosts``: further names this node answers to."""
    app = FastAPI(
        title="Tegumentar",
        version=VERSION,
        summary="The skin of a Linux node: read what it feels, change its posture, its blocks and its tolerance.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.state.context = context
    problem.install(app)
    for part in (health, state, posture, blocks, immunity, ratelimit, events):
        app.include_router(part.router)
    names = {*hosts, socket.gethostname()}
    return Guard(app, hosts=names, max_body=max_body, limit_s=REQUEST_LIMIT_S)
