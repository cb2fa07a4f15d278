"""The verbs that read the node: ``status``, ``cells``, ``qualia``, ``feeds``. Each can be watched or given as JSON.

``feeds reload`` is the one that also commands."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import Exit, verb
from actors.core.pages import STATUS_PARTS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from actors.core.client import Client

#: The feed cell answers within two seconds, whether all feeds have come in by then or not.
RELOAD_PATIENCE_S = 5.0
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="draw again every second until Ctrl-C")]


@verb
def status(
    ctx: typer.Context,
    watch: Watch = False,
    as_json: Json = False,
    check: Annotated[bool, typer.Option("--check", help="exit code 6 when the node is not whole")] = False,
) -> None:
    """The whole node on one page."""
    document = _read(ctx, _status, "status", watch, as_json)
    if check and not _whole(document):
        raise typer.Exit(Exit.DEGRADED)


@verb
def cells(
    ctx: typer.Context,
    wiring: Annotated[bool, typer.Option("--wiring", help="who hears which message, who answers which verb")] = False,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Every cell: state, reason, process, restarts."""
    if wiring:
        _read(ctx, lambda client: client.ask("wiring", by=session.BY), "wiring", watch, as_json)
    else:
        _read(ctx, lambda client: {"cells": client.ask("cells", by=session.BY)}, "cells", watch, as_json)


@verb
def qualia(ctx: typer.Context, watch: Watch = False, as_json: Json = False) -> None:
    """What the skin feels: pressure, temperature, pain, integrity."""
    _read(ctx, lambda client: client.ask("qualia", by=session.BY), "qualia", watch, as_json)


@verb
def feeds(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="[list|reload]", help="what to do")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="[FEED]", help="for reload: this one only")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="for reload: take what comes even if its size changed absurdly")
    ] = False,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """The blocklists: entries, age, what was quarantined and why; read and fetch them again."""
    if action == "reload":
        _reload_feeds(ctx, name, accept, as_json)
    elif action != "list":
        raise ValueError(f"feeds can be listed and reloaded; {action!r} is neither")
    elif name is not None or accept:
        raise ValueError("a name and --accept belong to: feeds reload")
    else:
        _read(ctx, lambda client: client.ask("feeds.list", by=session.BY), "feeds", watch, as_json)


def _reload_feeds(ctx: typer.Context, name: str | None, accept: bool, as_json: bool) -> None:
    """Exit code 6 when one of them did not come well; what is in force then stays."""
    arguments = {"accept": accept} | ({} if name is None else {"feed": name})
    with session.of(ctx).service() as client:
        document = client.ask("feeds.reload", arguments, by=session.BY, timeout_s=RELOAD_PATIENCE_S)
    if as_json:
        session.emit(document)
    else:
        from actors.admin import render, render_state

        render.show(render_state.feeds_reloaded(document))
    if any(feed["state"] not in ("healthy", "new") for feed in document["feeds"]):
        raise typer.Exit(Exit.DEGRADED)


def _read(
    ctx: typer.Context,
    ask: "Callable[[Client], Any]",
    view: str,
    watch: bool,
    as_json: bool,
) -> Any:
    """Ask once, or again every second; show it to a person (``view`` of ``render_state``) or to a program.

    Returns the last document."""
    with session.of(ctx).service() as client:
        document = ask(client)
        if as_json:
            session.emit(document)
            while watch:
                time.sleep(1.0)
                session.emit(ask(client))
            return document
        from actors.admin import render, render_state

        draw: Callable[[Any], RenderableType] = getattr(render_state, view)
        if watch:
            render.watch(lambda: draw(ask(client)))
        else:
            render.show(draw(document))
    return document


def _status(client: "Client") -> dict[str, Any]:
    """Every part whose cell is part of this node; the others are ``None``, so that nobody waits for them."""
    answered = client.ask("wiring", by=session.BY)["verbs"]
    return {name: session.part(client, wish) if wish in answered else None for name, wish in STATUS_PARTS.items()}


def _whole(document: dict[str, Any]) -> bool:
    node = document.get("node")
    return isinstance(node, dict) and node.get("state") == "healthy"
