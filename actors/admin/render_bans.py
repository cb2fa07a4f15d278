"""How blocks, tolerance, history and the account of one address look."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from actors.admin import render, words

_FIXED: dict[str, Any] = {"no_wrap": True}
_RIGHT: dict[str, Any] = {"no_wrap": True, "justify": "right"}
_WIDE: dict[str, Any] = {"ratio": 1}
#: More subjects than this are counted instead of listed after a change.
LISTED = 20
#: Columns that a line of `blocks` needs with the longest address.
WIDE_ENOUGH = 110
_PROOF_SIGNS = {"proven": ("●", "green"), "missing": ("✕", "red"), "pending": ("◌", "cyan")}


def blocks(document: dict[str, Any]) -> RenderableType:
    """One line a block where there is room; on a narrow screen the reason goes below, so no address is ever cut."""
    found = document["blocks"]
    if not found:
        return render.quiet("nothing is blocked")
    parts: list[RenderableType] = [_wide(found)] if render.screen().width >= WIDE_ENOUGH else _narrow(found)
    if document["total"] > len(found):
        parts.append(
            render.quiet(f"\n{words.count(len(found))} of {words.count(document['total'])}; --limit shows more")
        )
    return Group(*parts)


def _wide(found: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            Text(block["subject"], no_wrap=True),
            _action(block["action"]),
            words.remaining(block["until_unix_s"]),
            proven(block),
            words.count(block.get("hits") or 0),
            block.get("reflex") or block["origin"],
            block["reason"],
        ]
        for block in found
    ]
    columns = [("source", _FIXED), ("action", _FIXED), ("left", _FIXED), ("proven", _FIXED), ("hits", _RIGHT)]
    return render.table([*columns, ("by", _FIXED), ("reason", _WIDE)], rows)


def _narrow(found: list[dict[str, Any]]) -> list[RenderableType]:
    width = max(len(block["subject"]) for block in found)
    lines: list[RenderableType] = []
    for block in found:
        left = words.remaining(block["until_unix_s"])
        line = Text(block["subject"].ljust(width + 2)).append(left.ljust(16)).append_text(proven(block))
        told = f"{block['action']} by {block.get('reflex') or block['origin']}: {block['reason']}"
        lines += [line, render.indented(render.quiet(told))]
    return lines


def proven(block: dict[str, Any]) -> Text:
    """What each layer of the kernel said when it was asked whether it drops this source."""
    if not block.get("enforced", True):
        return Text("not enforced", style=render.QUIET, no_wrap=True)
    said = Text(no_wrap=True)
    for rung, proof in sorted((block.get("proofs") or {}).items()):
        sign, colour = _PROOF_SIGNS.get(proof["state"], ("?", render.QUIET))
        said.append(f"{sign} {rung}" if proof["state"] == "proven" else f"{sign} {rung} {proof['state']}", style=colour)
        said.append(" ")
    said.rstrip()
    return said if said else Text("✕ no layer", style="red", no_wrap=True)


def _action(action: str) -> Text:
    return Text(action, style={"ban": "red", "throttle": "yellow"}.get(action, "cyan"), no_wrap=True)


def tolerance(document: dict[str, Any]) -> RenderableType:
    rows = [
        [
            Text(entry["subject"], no_wrap=True),
            words.remaining(entry["until_unix_s"]).replace("until released", "until removed"),
            entry["origin"],
            entry["comment"],
        ]
        for entry in document["tolerance"]
    ]
    own = [
        [Text(entry["subject"], no_wrap=True), "always", "this node", entry["why"]]
        for entry in document["never_banned"]
    ]
    columns = [("never blocked", _FIXED), ("left", _FIXED), ("from", _FIXED), ("comment", _WIDE)]
    return render.table(
        columns, [*rows, *([render.quiet(cell) if isinstance(cell, str) else cell for cell in row] for row in own)]
    )


def history(document: dict[str, Any]) -> RenderableType:
    found = document["history"]
    if not found:
        return render.quiet("the journal holds nothing about it")
    columns = [("when", _RIGHT), ("what", _FIXED), ("source", _FIXED), ("more", _WIDE)]
    return render.table(columns, (_entry(entry) for entry in found))


def _entry(entry: dict[str, Any]) -> list[Any]:
    when = render.quiet(words.ago(entry["at_unix_s"]))
    return [when, entry["kind"], Text(entry.get("subject") or "", no_wrap=True), _told(entry.get("body"))]


def _told(body: Any) -> str:
    """The telling parts of a journal entry; its ids and times say nothing to a reader."""
    if not isinstance(body, dict):
        return str(body or "")
    hidden = ("unix_s", "id", "serial", "subject", "proofs")
    told = {
        key: value for key, value in body.items() if value not in ("", None, [], 0, False) and not key.endswith(hidden)
    }
    return ", ".join(f"{key} {value}" if value is not True else key for key, value in told.items())


def changed(subjects: list[str], answers: list[dict[str, Any]], done: str) -> RenderableType:
    """What came of a change, one line a subject while they are few."""
    if len(subjects) > LISTED:
        return Text(f"{words.plural(len(subjects), 'address', 'addresses')} {done}")
    rows = [row for answer in answers for row in answer.get("blocks") or answer.get("results") or []]
    by_subject = {str(row["subject"]): row for row in rows}
    return render.table(["", "", "", ""], (_line(subject, by_subject.get(subject, {}), done) for subject in subjects))


def _line(subject: str, row: dict[str, Any], done: str) -> list[Any]:
    name = Text(subject, no_wrap=True)
    if row.get("released") is False:
        return [name, Text("unchanged", style="yellow"), row.get("note", ""), ""]
    left = words.remaining(row["until_unix_s"]) if row.get("until_unix_s") else ""
    kept = proven(row) if "proofs" in row else Text()
    return [name, Text(done, style="green", no_wrap=True), left, row.get("note") or kept]


def why(answer: dict[str, Any]) -> RenderableType:
    """The account of one address: the verdict, then the sentences, then what the journal remembers."""
    verdict = str(answer["verdict"])
    colour = "red" if answer["blocked"] else "green" if verdict in {"not blocked", "tolerated"} else "yellow"
    head = Text(answer["address"], style="bold").append("  ").append(verdict, style=colour)
    parts: list[RenderableType] = [head, *(render.indented(Text(sentence)) for sentence in answer["sentences"])]
    past = answer.get("history") or []
    if past:
        rows = [[when, what, told] for when, what, _, told in (_entry(entry) for entry in past[:8])]
        parts += [
            Text(),
            render.heading("history"),
            render.indented(render.table([("", _RIGHT), ("", _FIXED), ("", _WIDE)], rows)),
        ]
    silent = answer.get("not_heard") or []
    if silent:
        parts += [Text(), render.quiet(f"not heard: {', '.join(silent)}")]
    return Group(*parts)
