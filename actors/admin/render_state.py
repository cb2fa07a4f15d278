"""How the node, its cells, its wiring, its qualia and its feeds look."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from actors.admin import render, words
from actors.admin.session import absent

QUALIA = ("pressure", "temperature", "pain", "integrity")
_FIXED: dict[str, Any] = {"no_wrap": True}
_RIGHT: dict[str, Any] = {"no_wrap": True, "justify": "right"}
_WIDE: dict[str, Any] = {"ratio": 1}
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
    enforcement = _enforcement(document)
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


def _enforcement(document: dict[str, Any]) -> list[tuple[str, Any]]:
    """Where packets are refused, for each layer that is there and at work."""
    off = {cell["name"] for cell in document["cells"] or [] if cell["state"] == "off"}
    rows: list[tuple[str, Any]] = []
    for title, cell, part, told in (
        ("kernel program", "reflex_arc", document["reflex"], _reflex_rows),
        ("nftables", "keratinocyte", document["nft"], _nft_rows),
    ):
        if part is None or cell in off:
            rows.append((title, render.quiet("off")))
        elif absent(part):
            rows.append((title, render.problem(str(part["problem"]), str(part.get("remedy", "")))))
        else:
            rows += told(part)
    return rows


def _reflex_rows(reflex: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, entry in (reflex.get("interfaces") or {}).items():
        said = Text(str(entry.get("rung") or "no rung yet"))
        for rung, why in (entry.get("refused") or {}).items():
            said.append(f"\nnot {rung}: {why}", style=render.QUIET)
        flows = (reflex.get("flows") or {}).get(name) or {}
        if flows.get("sides") == "both":
            said.append(f"\nflows of both sides ({flows['way']})", style=render.QUIET)
        elif flows.get("reason"):
            said.append(f"\n{flows['reason']}")
        rows.append((name, said))
    counters = reflex.get("counters") or {}
    packets = counters.get("packets") or {}
    if packets:
        rows.append(("packets", f"{words.count(sum(packets.values()))} judged"))
        rows.append(("by reason", ", ".join(f"{reason} {words.count(n)}" for reason, n in _largest(packets))))
    if standing := reflex.get("vaccines"):
        dropped = words.plural(packets.get("vaccine", 0), "packet")
        rows.append(("vaccines", f"{words.plural(standing, 'payload')} dropped from everybody, {dropped} so far"))
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
    found = sorted(document["cells"], key=lambda cell: (_rank(cell["layer"]), str(cell["name"])))
    layer = None
    for cell in found:
        told = _because(cell)
        cause = str(cell.get("last_cause") or "")
        if cause and cell["state"] in {"degraded", "down"} and cause not in told.plain:
            told.append(f"\nlast: {cause}", style=render.QUIET)
        rows.append(
            [
                render.quiet(cell["layer"] if cell["layer"] != layer else ""),
                Text(cell["name"], no_wrap=True),
                render.state(cell["state"]),
                words.duration(cell["uptime_s"] or 0) if cell.get("pid") else "-",
                str(cell["restarts"]) if cell["restarts"] else render.quiet("0"),
                told,
            ]
        )
        layer = cell["layer"]
    columns = [("layer", _FIXED), ("cell", _FIXED), ("state", _FIXED), ("up", _RIGHT), ("restarts", _RIGHT)]
    return render.table([*columns, ("says", _WIDE)], rows)


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
    found = document["feeds"]
    parts: list[RenderableType] = []
    if found:
        parts.append(_feed_table(found))
        v4, v6 = words.count(document["entries_v4"]), words.count(document["entries_v6"])
        parts.append(render.quiet(f"\nin force: {v4} entries of IPv4, {v6} of IPv6"))
    else:
        parts.append(render.quiet("no feed is on; name some in feeds.enable, or put lists into feeds.directory"))
    off = [name for name in document.get("known") or [] if name not in {feed["name"] for feed in found}]
    if off:
        parts.append(render.quiet(f"known, and off: {', '.join(off)}"))
    parts += [render.problem(str(problem)) for problem in document.get("problems") or []]
    return Group(*parts)


def feeds_reloaded(document: dict[str, Any]) -> RenderableType:
    """How those fare that were asked for again."""
    parts: list[RenderableType] = [_feed_table(document["feeds"])] if document["feeds"] else []
    if not document["done"]:
        parts.append(render.quiet("\nnot all have come in yet; see: feeds"))
    parts += [render.problem(str(problem)) for problem in document.get("problems") or []]
    return Group(*parts or [render.quiet("no feed is on")])


def _feed_table(found: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            Text(feed["name"], no_wrap=True),
            render.state(feed["state"]),
            words.count(feed["entries"]),
            words.ago(feed["fetched_unix_s"]),
            _because(feed) or render.quiet(feed.get("note") or feed.get("place") or ""),
        ]
        for feed in found
    ]
    columns = [("feed", _FIXED), ("state", _FIXED), ("entries", _RIGHT), ("fetched", _FIXED), ("says", _WIDE)]
    return render.table(columns, rows)


def _because(row: dict[str, Any]) -> Text:
    """Reason, and the next step where something is wrong."""
    told = Text(str(row.get("reason") or ""))
    if row.get("remedy") and row["state"] not in {"healthy", "off"}:
        told.append(f"\n→ {row['remedy']}")
    return told
