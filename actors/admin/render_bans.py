"""How blocks, tolerance, history and the account of one address look."""

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from actors.admin import render, words

_FIXED = {"no_wrap": True}


def blocks(document: dict[str, Any]) -> RenderableType:
    found = document.get("blocks") or []
    if not found:
        return render.quiet("nothing is blocked")
    rows = [
        [
            Text(str(block.get("subject", "?")), no_wrap=True),
            _action(block),
            words.remaining(float(block.get("until_unix_s") or 0)),
            proven(block),
            str(block.get("origin") or "-"),
            str(block.get("reason") or ""),
        ]
        for block in found
    ]
    columns = [("source", _FIXED), ("action", _FIXED), ("left", _FIXED), ("proven", _FIXED), ("by", _FIXED)]
    total = document.get("total")
    parts: list[RenderableType] = [render.table([*columns, ("reason", {"ratio": 1})], rows)]
    if isinstance(total, int) and total > len(found):
        parts.append(render.quiet(f"\n{words.count(len(found))} of {words.count(total)}; --limit shows more"))
    return Group(*parts)


def proven(entry: dict[str, Any]) -> Text:
    """Whether the kernel itself said that it drops this source; which layers said so."""
    said = entry.get("proven")
    proofs = entry.get("proofs")
    rungs = ", ".join(sorted(proofs)) if isinstance(proofs, dict) else ""
    if said is True:
        return Text(f"● {rungs or 'yes'}", style="green", no_wrap=True)
    if said is False:
        return Text("✕ no", style="yellow", no_wrap=True)
    return Text("-", style=render.QUIET)


def _action(block: dict[str, Any]) -> Text:
    action = str(block.get("action") or "ban")
    return Text(action, style={"ban": "red", "throttle": "yellow"}.get(action, "cyan"), no_wrap=True)


def tolerance(document: dict[str, Any]) -> RenderableType:
    found = document.get("tolerance") or []
    if not found:
        return render.quiet("nothing is tolerated beyond the node's own addresses")
    rows = [
        [
            Text(str(entry.get("subject") or entry.get("prefix") or "?"), no_wrap=True),
            words.remaining(float(entry.get("until_unix_s") or 0)).replace("until released", "until removed"),
            str(entry.get("origin") or "-"),
            str(entry.get("comment") or ""),
        ]
        for entry in found
    ]
    return render.table([("source", _FIXED), ("left", _FIXED), ("from", _FIXED), ("comment", {"ratio": 1})], rows)


def history(document: dict[str, Any]) -> RenderableType:
    found = document.get("history") or document.get("entries") or []
    if not found:
        return render.quiet("the journal holds nothing about it")
    rows = [
        [
            render.quiet(words.ago(float(entry.get("at_unix_s") or 0))),
            str(entry.get("kind", "?")),
            Text(str(entry.get("subject") or ""), no_wrap=True),
            _said(entry.get("body")),
        ]
        for entry in found
    ]
    return render.table([("when", _FIXED), ("what", _FIXED), ("source", _FIXED), ("more", {"ratio": 1})], rows)


def _said(body: Any) -> str:
    """The telling parts of a journal entry's body; its times and ids say nothing to a reader."""
    if not isinstance(body, dict):
        return str(body or "")
    hidden = ("unix_s", "id", "serial", "subject")
    told = {key: value for key, value in body.items() if value not in ("", None, [], 0) and not key.endswith(hidden)}
    return ", ".join(f"{key} {value}" for key, value in told.items())


def changed(subjects: list[str], answers: list[Any], done: str) -> RenderableType:
    """What came of a change, one line a subject while they are few."""
    told: list[dict[str, Any]] = []
    for answer in answers:
        rows = answer if isinstance(answer, list) else answer.get("results") or answer.get("blocks") or []
        told += [row for row in rows if isinstance(row, dict)]
    if len(subjects) > 20:
        return Text(f"{words.plural(len(subjects), 'address', 'addresses')} {done}")
    by_subject = {str(row.get("subject")): row for row in told}
    return Group(*(_line(subject, by_subject.get(subject, {}), done) for subject in subjects))


def _line(subject: str, row: dict[str, Any], done: str) -> Text:
    line = Text(subject).append(f"  {done}", style="green")
    if row.get("until_unix_s"):
        line.append(f" for {words.remaining(float(row['until_unix_s']))}")
    if row.get("note"):
        line.append(f"  {row['note']}", style=render.QUIET)
    return line


def why(answer: dict[str, Any]) -> RenderableType:
    """The account of one address: the verdict in one line, then every cell's part in it."""
    subject = str(answer.get("address") or answer.get("subject") or "?")
    verdict = str(answer.get("verdict") or answer.get("summary") or "")
    parts: list[RenderableType] = [Text(subject, style="bold").append(f"  {verdict}", style="not bold")]
    for name, value in answer.items():
        if name in {"address", "subject", "verdict", "summary"} or value in (None, "", [], {}):
            continue
        parts += [Text(), *_account(name, value)]
    return Group(*parts)


def _account(name: str, value: Any) -> Iterable[RenderableType]:
    title = name.replace("_", " ")
    entries = value if isinstance(value, list) else [value]
    if all(isinstance(entry, dict) for entry in entries):
        yield Text(title, style="bold")
        for entry in entries:
            rows = [(key.replace("_", " "), _value(key, told)) for key, told in entry.items()]
            yield render.indented(render.pairs(rows))
    else:
        yield render.pairs([(title, _value(name, value))])


def _value(key: str, value: Any) -> str:
    if key.startswith("until") and isinstance(value, int | float):
        return words.remaining(float(value))
    if key.endswith("unix_s") and isinstance(value, int | float):
        return words.ago(float(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(name, item)}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "-"
    return "-" if value in (None, "") else str(value)
