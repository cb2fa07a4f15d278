"""The verb ``posture``: show it, set it (for a time, or until nobody confirms), confirm it."""

from typing import Annotated, Any

import typer

from actors.admin import session, words
from actors.admin.session import verb
from actors.core.messages import Posture

NAMES = [posture.value for posture in Posture]


def _names(incomplete: str) -> list[str]:
    return [name for name in [*NAMES, "confirm"] if name.startswith(incomplete)]


@verb
def posture(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="[NAME|confirm]", help=f"{', '.join(NAMES)}", autocompletion=_names)
    ] = "",
    lasting: Annotated[str, typer.Option("--for", metavar="T", help="end by itself after T: 90, 10m, 2h, 1d")] = "",
    within: Annotated[
        str,
        typer.Option("--confirm-within", metavar="T", help="return unless `posture confirm` follows within T"),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Show the posture, set it, or confirm it."""
    name = name.lower()
    args: dict[str, Any] = {}
    if name and name != "confirm" and name not in NAMES:
        raise ValueError(f"there is no posture {name!r}; there are {', '.join(NAMES)}")
    if (lasting or within) and name not in NAMES:
        raise ValueError("--for and --confirm-within go with a posture to set")
    if name in NAMES:
        args = {"posture": name}
        args |= {"for_s": words.parse_duration(lasting)} if lasting else {}
        args |= {"confirm_within_s": words.parse_duration(within)} if within else {}
    wish = "posture.get" if not name else "posture.confirm" if name == "confirm" else "posture.set"
    with session.of(ctx).service() as client:
        answer = client.ask(wish, args, by=session.BY, timeout_s=5.0)
    if as_json:
        session.emit(answer)
        return
    from actors.admin import render

    render.show(*_draw(answer))


def _draw(answer: dict[str, Any]) -> list[Any]:
    from actors.admin import render

    line = render.posture(str(answer.get("posture", "?")))
    rows: list[tuple[str, Any]] = []
    if answer.get("since_unix_s"):
        rows.append(("since", words.ago(float(answer["since_unix_s"]))))
    if answer.get("until_unix_s"):
        rows.append(("ends in", words.remaining(float(answer["until_unix_s"]))))
    if answer.get("confirm_by_unix_s"):
        left = words.remaining(float(answer["confirm_by_unix_s"]))
        rows.append(("unconfirmed", f"returns to {answer.get('return_to') or answer.get('previous')} in {left}"))
        rows.append(("to keep it", "python run.py posture confirm"))
    for key, title in (("by", "set by"), ("reason", "because")):
        if answer.get(key):
            rows.append((title, str(answer[key])))
    proved = answer.get("proven")
    if proved is not None:
        rows.append(("proven", "yes" if proved else "not yet"))
    return [line, render.pairs(rows)] if rows else [line]
