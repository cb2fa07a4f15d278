"""The verbs of upkeep: ``reload`` (read the settings again) and ``restart`` (one cell anew)."""

from typing import Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import verb

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]

#: The settings are read and checked by the supervisor itself; a cell that has to end first may take this long.
CHANGE_LIMIT_S = 10.0


@verb
def reload(ctx: typer.Context, as_json: Json = False) -> None:
    """Read the settings again; cells that take in a changed one only at their start are started anew, one by one."""
    answer = _ask(ctx, "reload", {})
    if as_json:
        session.emit(answer)
        return
    again, whole = answer.get("restarting", []), answer.get("needs_restart_of_node", [])
    typer.echo(f"the settings were read again; started anew: {', '.join(again) or 'no cell'}")
    if whole:
        session.say_error(f"only a new start of the service takes in: {', '.join(whole)}")


@verb
def restart(ctx: typer.Context, cell: Annotated[str, typer.Argument(metavar="CELL")], as_json: Json = False) -> None:
    """Start one cell anew, by its orderly end. What the kernel enforces stays."""
    answer = _ask(ctx, "cell.restart", {"name": cell})
    if as_json:
        session.emit(answer)
    else:
        typer.echo(f"{cell} is started anew")


def _ask(ctx: typer.Context, wish: str, args: dict[str, Any]) -> Any:
    with session.of(ctx).service() as client:
        return client.ask(wish, args, by=session.BY, timeout_s=CHANGE_LIMIT_S)
