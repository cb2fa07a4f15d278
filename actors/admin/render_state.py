"""How the node, its cells, its wiring, its qualia and its feeds look."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from actors.admin import render, words
from actors.admin.session import absent

QUALIA = ("pressure", "temperature", "pain", "integrity")
LAYERS = ("root", "epidermis", "dermis", "hypodermis")


def status(document: dict[str, Any]) -> RenderableType:
    node, posture = document["node"], document["posture"]
    state = str(node.get("state", "unknown")) if not absent(node) else "unknown"
    head = Text("Tegumentar  ", style="bold").append_text(render.state(state))
    if not absent(posture):
        head.append("  ").append_text(render.posture(str(posture.get("posture", "?"))))
        head.append_text(render.quiet(_deadlines(posture)))
    if not absent(node) and node.get("since_unix_s"):
        head.append_text(render.quiet(f"  up {words.ago(float(node['since_unix_s'])).removesuffix(' ago')}"))
    parts: list[RenderableType] = [head, Text()]
    parts.append(cells({"cells": document["cells"]}))
    enforcement = _enforcement(document["reflex"], document["nft"])
    if enforcement:
        parts += [Text(), render.heading("enforcement"), render.indented(render.pairs(enforcement))]
    if not absent(document["qualia"]):
        parts += [Text(), render.heading("qualia"), render.indented(qualia(document["qualia"]))]
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
        if part is not None and absent(part):
            rows.append((name, render.problem(str(part["problem"]), str(part.get("remedy", "")))))
    if isinstance(reflex, dict) and not absent(reflex):
        rows += _reflex_rows(reflex)
    if isinstance(nft, dict) and not absent(nft):
        rows += _nft_rows(nft)
    return rows


def _reflex_rows(reflex: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, entry in (reflex.get("interfaces") or {}).items():
        said = Text(str(entry.get("rung") or "no rung yet"))
        for rung, why in (entry.get("refused") or {}).items():
            said.append(f"\nnot {rung}: {why}", style=render.QUIET)
        rows.append((name, said))
    counters = reflex.get("counters") or {}
    packets = counters.get("packets") or {}
    if packets:
        rows.append(("packets", f"{words.count(sum(packets.values()))} judged"))
        rows.append(("by reason", ", ".join(f"{reason} {words.count(n)}" for reason, n in _largest(packets))))
    return rows


def _nft_rows(nft: dict[str, Any]) -> list[tuple[str, Any]]:
    if not nft.get("table"):
        return []
    repairs = f", {words.plural(nft['repairs'], 'repair')}" if nft.get("repairs") else ""
    return [("nftables", f"table {nft['table']}, {words.plural(nft.get('bans', 0), 'ban')}{repairs}")]


def _largest(counts: dict[str, int], most: int = 6) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])[:most]


def cells(document: dict[str, Any]) -> RenderableType:
    if absent(document["cells"]):
        return render.problem("the supervisor does not tell of its cells")
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


def wiring(document: dict[str, Any]) -> RenderableType:
    messages = [[kind, "→", ", ".join(heard)] for kind, heard in document.get("messages", {}).items()]
    verbs = [[name, "→", cell] for name, cell in document.get("verbs", {}).items()]
    return Group(
        render.table([("message", {"no_wrap": True}), "", "heard by"], messages),
        Text(),
        render.table([("verb", {"no_wrap": True}), "", "answered by"], verbs),
    )


def qualia(document: dict[str, Any]) -> RenderableType:
    rows = []
    for name in QUALIA:
        quale = document.get(name)
        if isinstance(quale, dict):
            value = float(quale.get("value", 0))
            level = render.bar(value, worse_when_full=name != "integrity")
            raw = f"{float(quale.get('raw', 0)):,.4g} {quale.get('unit', '')}"
            window = f"over {words.duration(float(quale.get('window_s', 0)))}" if quale.get("window_s") else ""
            rows.append([Text(name, no_wrap=True), level, f"{value:.2f}", raw, render.quiet(window)])
    return render.table(["", "", ("", {"justify": "right", "no_wrap": True}), "", ""], rows)


def feeds(document: dict[str, Any]) -> RenderableType:
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
