"""The verbs that read the node: ``status``, ``cells``, ``qualia``, ``feeds``. Each can be watched or given as JSON."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.admin import session, words
from actors.admin.session import Exit, absent, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from actors.core.client import Client

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="draw again every second until Ctrl-C")]

#: Part of the status document → the verb that answers it.
STATUS_PARTS = {
    "node": "node",
    "cells": "cells",
    "posture": "posture.get",
    "qualia": "qualia",
    "reflex": "reflex.status",
    "nft": "nft.status",
    "memory": "memory.status",
}
QUALIA = ("pressure", "temperature", "pain", "integrity")
#: What a reader wants to know of a cell in one line, in this order.
LAYERS = ("root", "epidermis", "dermis", "hypodermis")


@verb
def status(
    ctx: typer.Context,
    watch: Watch = False,
    as_json: Json = False,
    check: Annotated[bool, typer.Option("--check", help="exit code 6 when the node is not whole")] = False,
) -> None:
    """The whole node on one page."""
    document = _read(ctx, _status, _draw_status, watch, as_json)
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
        _read(ctx, lambda client: client.ask("wiring", by=session.by()), _draw_wiring, watch, as_json)
    else:
        _read(ctx, lambda client: {"cells": client.ask("cells", by=session.by())}, _draw_cells, watch, as_json)


@verb
def qualia(ctx: typer.Context, watch: Watch = False, as_json: Json = False) -> None:
    """What the skin feels: pressure, temperature, pain, integrity."""
    _read(ctx, lambda client: client.ask("qualia", by=session.by()), _draw_qualia, watch, as_json)


@verb
def feeds(ctx: typer.Context, watch: Watch = False, as_json: Json = False) -> None:
    """The blocklists: entries, age, what was quarantined and why."""
    _read(ctx, lambda client: _named("feeds", client.ask("feeds.list", by=session.by())), _draw_feeds, watch, as_json)


def _read(
    ctx: typer.Context,
    ask: "Callable[[Client], Any]",
    draw: "Callable[[Any], RenderableType]",
    watch: bool,
    as_json: bool,
) -> Any:
    """Ask once, or again every second; show it to a person or to a program. Returns the last document."""
    with session.of(ctx).service() as client:
        document = ask(client)
        if as_json:
            session.emit(document)
        from actors.admin import render

        if watch and as_json:
            _every_second(lambda: session.emit(ask(client)))
        elif watch:
            render.watch(lambda: draw(ask(client)))
        elif not as_json:
            render.show(draw(document))
    return document


def _every_second(call: Callable[[], Any]) -> None:
    import time

    while True:
        time.sleep(1.0)
        call()


def _status(client: "Client") -> dict[str, Any]:
    return {name: session.part(client, verb_name) for name, verb_name in STATUS_PARTS.items()}


def _named(name: str, answer: Any) -> Any:
    return {name: answer} if isinstance(answer, list) else answer


def _whole(document: dict[str, Any]) -> bool:
    node = document.get("node")
    return isinstance(node, dict) and node.get("state") == "healthy"


# --- drawing ----------------------------------------------------------------------------------------------


def _draw_status(document: dict[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from actors.admin import render

    node, posture = document["node"], document["posture"]
    state = str(node.get("state", "unknown")) if not absent(node) else "unknown"
    head = Text("Tegumentar  ", style="bold").append_text(render.state(state))
    if not absent(posture):
        head.append("  ").append_text(render.posture(str(posture.get("posture", "?"))))
        head.append_text(render.quiet(_deadlines(posture)))
    if not absent(node) and node.get("since"):
        head.append_text(render.quiet(f"  up {words.ago(float(node['since'])).removesuffix(' ago')}"))
    parts: list[RenderableType] = [head, Text()]
    parts.append(_draw_cells({"cells": document["cells"]}))
    enforcement = _enforcement(document["reflex"], document["nft"])
    if enforcement:
        parts += [Text(), render.heading("enforcement"), render.indented(render.pairs(enforcement))]
    if not absent(document["qualia"]):
        parts += [Text(), render.heading("qualia"), render.indented(_draw_qualia(document["qualia"]))]
    return Group(*parts)


def _deadlines(posture: dict[str, Any]) -> str:
    said = ""
    if posture.get("until_unix_s"):
        said += f"  {words.remaining(float(posture['until_unix_s']))} left"
    if posture.get("confirm_by_unix_s"):
        said += f"  unconfirmed: returns in {words.remaining(float(posture['confirm_by_unix_s']))}"
    return said


def _enforcement(reflex: Any, nft: Any) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, part in (("kernel program", reflex), ("nftables", nft)):
        if absent(part):
            from actors.admin import render

            rows.append((name, render.problem(str(part["problem"]), str(part.get("remedy", "")))))
    if isinstance(reflex, dict) and not absent(reflex):
        rows += _reflex_rows(reflex)
    if isinstance(nft, dict) and not absent(nft):
        rows += _nft_rows(nft)
    return rows


def _reflex_rows(reflex: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    interfaces = reflex.get("interfaces")
    for entry in interfaces if isinstance(interfaces, list) else []:
        refused = entry.get("refused") or {}
        better = "; ".join(f"{rung}: {why}" for rung, why in refused.items())
        rows.append((str(entry.get("interface", "?")), f"{entry.get('rung', '?')}{f'  ({better})' if better else ''}"))
    return rows


def _nft_rows(nft: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("nftables", f"table {nft['table']}")] if nft.get("table") else []


def _draw_cells(document: dict[str, Any]) -> "RenderableType":
    from rich.text import Text

    from actors.admin import render

    if absent(document["cells"]):
        return render.problem(document["cells"]["problem"], document["cells"].get("remedy", ""))
    rows: list[list[Any]] = []
    found = sorted(document["cells"], key=lambda cell: (_rank(cell.get("layer")), str(cell.get("name"))))
    layer = None
    for cell in found:
        first = cell.get("layer") != layer
        layer = cell.get("layer")
        told = Text(str(cell.get("reason") or ""))
        if cell.get("state") in {"degraded", "down"} and cell.get("remedy"):
            told.append(f"\n→ {cell['remedy']}")
        if cell.get("state") in {"degraded", "down"} and cell.get("last_cause"):
            told.append(f"\nlast: {cell['last_cause']}", style=render.QUIET)
        rows.append(
            [
                render.quiet(str(layer) if first else ""),
                Text(str(cell.get("name")), no_wrap=True),
                render.state(str(cell.get("state"))),
                words.duration(float(cell.get("uptime_s") or 0)) if cell.get("pid") else "-",
                str(cell.get("restarts", 0)) if cell.get("restarts") else render.quiet("0"),
                told,
            ]
        )
    fixed = {"no_wrap": True}
    return render.table(
        [
            ("layer", fixed),
            ("cell", fixed),
            ("state", fixed),
            ("up", fixed | {"justify": "right"}),
            ("restarts", fixed | {"justify": "right"}),
            ("says", {"ratio": 1}),
        ],
        rows,
    )


def _rank(layer: Any) -> int:
    return LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


def _draw_wiring(document: dict[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from actors.admin import render

    messages = [[kind, "→", ", ".join(heard)] for kind, heard in document.get("messages", {}).items()]
    verbs = [[name, "→", cell] for name, cell in document.get("verbs", {}).items()]
    return Group(
        render.table([("message", {"no_wrap": True}), "", "heard by"], messages),
        Text(),
        render.table([("verb", {"no_wrap": True}), "", "answered by"], verbs),
    )


def _draw_qualia(document: dict[str, Any]) -> "RenderableType":
    from rich.text import Text

    from actors.admin import render

    rows = []
    for name in QUALIA:
        quale = document.get(name)
        if isinstance(quale, dict):
            value = float(quale.get("value", 0))
            level = render.bar(1 - value if name == "integrity" else value) if name != "integrity" else _health(value)
            raw = f"{float(quale.get('raw', 0)):,.4g} {quale.get('unit', '')}"
            window = f"over {words.duration(float(quale.get('window_s', 0)))}" if quale.get("window_s") else ""
            rows.append([Text(name, no_wrap=True), level, f"{value:.2f}", raw, render.quiet(window)])
    return render.table(["", "", ("", {"justify": "right", "no_wrap": True}), "", ""], rows)


def _health(value: float) -> "RenderableType":
    """Integrity is the one quale of which more is better."""
    from rich.text import Text

    full = max(0, min(20, round(value * 20)))
    colour = "green" if value > 0.9 else "yellow" if value > 0.5 else "red"
    return Text("━" * full, style=colour).append("━" * (20 - full), style="grey23")


def _draw_feeds(document: dict[str, Any]) -> "RenderableType":
    from rich.text import Text

    from actors.admin import render

    feeds = document.get("feeds") or []
    if not feeds:
        return render.quiet("no feed is configured")
    rows = [
        [
            Text(str(feed.get("name", "?")), no_wrap=True),
            render.state(str(feed.get("state", "unknown"))),
            words.count(feed.get("entries") or 0),
            words.ago(float(feed.get("fetched_unix_s") or 0)),
            str(feed.get("reason") or ""),
        ]
        for feed in feeds
    ]
    return render.table(["feed", "state", ("entries", {"justify": "right"}), "fetched", ("says", {"ratio": 1})], rows)
