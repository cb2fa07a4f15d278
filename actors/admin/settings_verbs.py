"""The verbs about settings: ``config`` (each value and where it came from) and ``config check``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actors.admin import session
from actors.admin.session import Exit, verb

if TYPE_CHECKING:
    from rich.text import Text

app = typer.Typer(help="Settings: each value and where it came from; `config check` only tells whether they are right.")

File = Annotated[Path | None, typer.Option("--config", help="settings file to read instead of the system's")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]


@app.callback(invoke_without_command=True)
@verb
def config(ctx: typer.Context, file: File = None, as_json: Json = False) -> None:
    """Show every setting, its value and where it came from. Secrets are never shown."""
    call = session.of(ctx)
    call.config = file or call.config
    if ctx.invoked_subcommand is not None:
        return
    from config.load import describe

    loaded = call.load()
    rows = describe(loaded)
    if as_json:
        files = [str(path) for path in loaded.files]
        session.emit({"settings": rows, "files": files, "warnings": loaded.warnings})
        return
    from actors.admin import render

    lines = [[row["name"], row["value"] or "-", _origin(str(row["origin"]))] for row in rows]
    render.show(render.table([("setting", {"no_wrap": True}), "value", "from"], lines))
    for warning in loaded.warnings:
        session.say_error(warning)


@app.command()
@verb
def check(ctx: typer.Context, file: File = None, as_json: Json = False) -> None:
    """Exit code 0 when the service can start with these settings, 78 when it cannot; mistakes on stderr."""
    call = session.of(ctx)
    call.config = file or call.config
    if as_json:
        _check_as_json(call)
        return
    loaded = call.load()
    for warning in loaded.warnings:
        session.say_error(warning)
    where = ", ".join(str(path) for path in loaded.files) or "no file: defaults and environment"
    typer.echo(f"the settings are right ({where})" if not loaded.warnings else f"the service can start ({where})")


def _origin(origin: str) -> "Text":
    from rich.text import Text

    return Text(origin, style="bright_black" if origin == "default" else "")


def _check_as_json(call: session.Call) -> None:
    from config.load import load
    from config.sources import SettingsError

    try:
        loaded = load(call.options, config=call.config)
    except SettingsError as exc:
        session.emit({"ok": False, "problems": exc.problems, "warnings": []})
        raise typer.Exit(Exit.CONFIG) from exc
    files = [str(path) for path in loaded.files]
    session.emit({"ok": True, "problems": [], "warnings": loaded.warnings, "files": files})
