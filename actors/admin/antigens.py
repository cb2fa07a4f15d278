"""The verbs about what was learned: ``antigens``, ``sessions``, ``attackers``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from actors.admin import session, words
from actors.admin.session import verb

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="how many at most")]


@verb
def antigens(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="[list|share|release]", help="what to do")] = "list",
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|NAME]...", help="share: files of one signature each; release: learned signatures"
        ),
    ] = None,
    lasting: Annotated[str, typer.Option("--for", metavar="T", help="share: how long, a day at most")] = "",
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """What this node has learned and taught, what others taught it, and whom it believes; share a signature."""
    if action not in ("list", "share", "release"):
        raise ValueError(f"antigens can be listed, signatures shared and released; {action!r} is none of these")
    if bool(what) != (action != "list"):
        raise ValueError("share wants files, release wants names, and list wants neither")
    if action == "list":
        _show(ctx, "antigens.list", {"limit": limit}, "antigens", as_json)
        return
    wishes: list[dict[str, Any]] = [{"names": what}]
    if action == "share":
        life = {"for_s": words.parse_duration(lasting)} if lasting else {}
        wishes = [{"text": _text(path)} | life for path in what or ()]
    with session.of(ctx).service() as client:
        done = [client.ask(f"signatures.{action}", wish, by=session.BY, timeout_s=15.0) for wish in wishes]
    if as_json:
        session.emit({"done": done})
        return
    from actors.admin import render

    for one in done:
        render.show(f"{one['name']} goes to the other nodes" if action == "share" else f"released: {one['released']}")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path} cannot be read: {exc}") from exc


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
