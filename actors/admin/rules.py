"""The verb about signatures and rules: ``rules``, ``rules check [FILE...]``, ``rules reload``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import Exit, verb

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
#: Many rules take a while to compile. Seconds.
PATIENCE_S = 30.0


@verb
def rules(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="[list|check|reload]", help="what to do")] = "list",
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="for check: *.yaml or *.rules; needs no service")
    ] = None,
    as_json: Json = False,
) -> None:
    """Signatures and Suricata rules: what is looked for and found, what was skipped and why; read them again."""
    if action not in ("list", "check", "reload"):
        raise ValueError(f"rules can be listed, checked and reloaded; {action!r} is none of these")
    if files and action != "check":
        raise ValueError(f"only check takes files, {action} does not")
    if files:
        document = _checked(files)
    else:
        with session.of(ctx).service() as client:
            document = client.ask(f"rules.{action}", by=session.BY, timeout_s=PATIENCE_S)
    if as_json:
        session.emit(document)
    else:
        _show(document)
    if action == "check" and document["problems"]:
        raise typer.Exit(Exit.ERROR)


def _checked(files: list[Path]) -> dict[str, Any]:
    """Read and judge files here, with the very code of the cell."""
    from actors.dermis.inspection.rulebook import check_files

    book = check_files(files)
    return {
        "engine": book.engine,
        "signatures": len(book.signatures),
        "rules": len(book.rules),
        "problems": [{"file": one.file, "name": one.name, "reason": one.reason} for one in book.problems],
    }


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from actors.admin import render

    signatures, rows = document["signatures"], document["rules"]
    total = document.get("total") or {"signatures": signatures, "rules": rows}
    render.show(
        render.heading(f"{total['signatures']} signatures, {total['rules']} rules", f"engine: {document['engine']}")
    )
    if isinstance(signatures, list):
        table = Table(box=None, pad_edge=False)
        for name in ("signature or rule", "action", "found"):
            table.add_column(name)
        for one in signatures:
            table.add_row(Text(one["name"]), f"{one['action']} ({one['severity']})", str(one["found"]))
        for one in rows:
            table.add_row(Text(f"sid {one['sid']} {one['msg']}"), one["action"], str(one["found"]))
        render.show(table)
    for problem in document["problems"]:
        render.show(Text(f"skipped: {problem['file']} {problem['name']}: {problem['reason']}"))
