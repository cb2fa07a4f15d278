"""The verbs about what was learned: ``antigens``, ``sessions``, ``attackers``."""

from typing import Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import verb

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="how many at most")]


@verb
def antigens(ctx: typer.Context, limit: Limit = 20, as_json: Json = False) -> None:
    """What this node has learned and taught, what others taught it, and whom it believes."""
    _show(ctx, "antigens.list", {"limit": limit}, "antigens", as_json)


@verb
def sessions(
    ctx: typer.Context,
    limit: Limit = 20,
    order: Annotated[str, typer.Option("--by", metavar="bytes|packets", help="the heaviest by which")] = "bytes",
    as_json: Json = False,
) -> None:
    """The conversations of this moment, the heaviest first."""
    _show(ctx, "sessions.list", {"limit": limit, "by": order}, "sessions", as_json)


@verb
def attackers(
    ctx: typer.Context,
    limit: Limit = 20,
    hours: Annotated[int, typer.Option("--hours", min=1, max=8784, help="how far back the journal is read")] = 24,
    as_json: Json = False,
) -> None:
    """The sources that the journal names most."""
    _show(ctx, "memory.attackers", {"limit": limit, "hours": hours}, "attackers", as_json)


def _show(ctx: typer.Context, wish: str, args: dict[str, Any], view: str, as_json: bool) -> None:
    with session.of(ctx).service() as client:
        document = client.ask(wish, args, by=session.BY, timeout_s=5.0)
    if as_json:
        session.emit(document)
        return
    from actors.admin import render, render_antigens

    render.show(getattr(render_antigens, view)(document))
