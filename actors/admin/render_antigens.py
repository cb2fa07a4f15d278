"""How antigens, sessions and attackers look."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from actors.admin import render, words

_FIXED: dict[str, Any] = {"no_wrap": True}
_RIGHT: dict[str, Any] = {"no_wrap": True, "justify": "right"}
_WIDE: dict[str, Any] = {"ratio": 1}


def antigens(document: dict[str, Any]) -> RenderableType:
    """Who we are and whom we believe, then what was learned elsewhere, then what was learned here."""
    brokers = ", ".join(document["brokers"])
    link = "connected" if document["connected"] else "not connected"
    known = [
        f"{name} (trusted)" if name in document["trusted_nodes"] else str(name) for name in document["known_nodes"]
    ]
    about = [
        ("this node", document["node"]),
        ("public key", document["public_key"] or render.quiet("none: no Kafka broker is named")),
        ("Kafka", f"{brokers} {link}" if brokers else render.quiet("none")),
        ("known nodes", ", ".join(known) or render.quiet("none")),
        ("believed", f"a trusted node, or {document['quorum']} nodes that say the same"),
    ]
    refused = [f"{words.count(count)} {reason.replace('_', ' ')}" for reason, count in document["refused"].items()]
    about += [("refused", ", ".join(refused))] if refused else []
    parts: list[RenderableType] = [render.pairs(about)]
    if signatures := document.get("signatures"):
        parts += [
            Text(),
            render.heading("signatures of others, in quarantine"),
            render.indented(_signatures(signatures)),
        ]
    for title, rows in (("learned from others", document["vaccines"]), ("learned here", document["antigens"])):
        parts += [Text(), render.heading(title), render.indented(_lessons(rows))]
    return Group(*parts)


def _lessons(rows: list[dict[str, Any]]) -> RenderableType:
    if not rows:
        return render.quiet("nothing yet")
    columns = [("when", _RIGHT), ("source", _FIXED), ("from", _FIXED), ("why", _WIDE)]
    return render.table(
        columns,
        (
            [
                render.quiet(words.ago(row["learned_unix_s"])),
                Text(row["subject"], no_wrap=True),
                ", ".join(row.get("nodes") or []) or row.get("sensor") or "",
                row["reason"],
            ]
            for row in rows
        ),
    )


def _signatures(rows: list[dict[str, Any]]) -> RenderableType:
    columns = [("signature", _FIXED), ("from", _FIXED), ("left", _RIGHT), ("", _WIDE)]
    return render.table(
        columns,
        (
            [
                Text(row["name"], no_wrap=True),
                row["node"],
                words.remaining(row["until_unix_s"]),
                "looked for" if row["in_use"] else "being judged",
            ]
            for row in rows
        ),
    )


def sessions(document: dict[str, Any]) -> RenderableType:
    rows = document["sessions"]
    if not rows:
        return render.quiet("no conversation at this moment")
    columns = [
        ("from", _FIXED),
        ("to", _FIXED),
        ("", _FIXED),
        ("state", _FIXED),
        ("packets", _RIGHT),
        ("bytes", _RIGHT),
    ]
    return render.table(
        columns,
        (
            [
                Text(_end(row["source"], row["source_port"]), no_wrap=True),
                Text(_end(row["dest"], row["dest_port"]), no_wrap=True),
                row["protocol"],
                row["state"],
                " / ".join(words.count(value) for value in row["packets"]),
                " / ".join(words.count(value) for value in row["bytes"]),
            ]
            for row in rows
        ),
    )


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def attackers(document: dict[str, Any]) -> RenderableType:
    rows = document["attackers"]
    if not rows:
        return render.quiet(f"nobody in the last {words.plural(document['hours'], 'hour', 'hours')}")
    columns = [("source", _FIXED), ("named", _RIGHT), ("banned", _RIGHT), ("last", _RIGHT)]
    return render.table(
        columns,
        (
            [
                Text(row["subject"], no_wrap=True),
                words.count(row["times"]),
                words.count(row["bans"]),
                render.quiet(words.ago(row["last_unix_s"])),
            ]
            for row in rows
        ),
    )
