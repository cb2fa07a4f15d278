"""The verb about vaccines: ``vaccines``, ``vaccines release NAME...``: payloads that are dropped from everybody."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import verb

if TYPE_CHECKING:
    from rich.console import RenderableType


@verb
def vaccines(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="[list|release]", help="what to do")] = "list",
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="for release: as listed")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Hostile payloads that the kernel drops whoever sends them; release some, for a day at least."""
    if action not in ("list", "release"):
        raise ValueError(f"vaccines can be listed and released; {action!r} is neither")
    if bool(names) != (action == "release"):
        raise ValueError("release wants the names of vaccines, and list wants none")
    with session.of(ctx).service() as client:
        document = client.ask(f"vaccines.{action}", {"names": names} if names else {}, by=session.BY, timeout_s=5.0)
    if as_json:
        session.emit(document)
    elif action == "release":
        _released(document)
    else:
        _show(document)


def _released(document: dict[str, Any]) -> None:
    from actors.admin import render

    for name in document["released"]:
        render.show(f"{name} is released")


def _show(document: dict[str, Any]) -> None:
    from actors.admin import render

    rows = document["vaccines"]
    render.show(table(rows) if rows else render.quiet("no payload is dropped from everybody"))


def table(rows: list[dict[str, Any]]) -> "RenderableType":
    """Each vaccine on a line."""
    from rich.text import Text

    from actors.admin import render, words

    columns: list[str | tuple[str, dict[str, Any]]] = [
        "vaccine", "begins with", ("dropped", {"justify": "right"}), ("left", {"justify": "right"}), "proof", "why"
    ]  # fmt: skip
    proofs = {True: "proven", False: "missing", None: "unknown"}
    return render.table(
        columns,
        (
            [
                Text(row["name"], no_wrap=True),
                Text(row["begins_with"]),
                words.count(row["hits"]),
                words.remaining(row["until_unix_s"]),
                proofs[row["proven"]],
                Text(row["reason"]),
            ]
            for row in rows
        ),
    )
