"""The verbs about addresses: ``block``, ``release``, ``tolerate``, ``blocks``, ``why``, ``history``."""

import ipaddress
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.admin import session, words
from actors.admin.progress import track
from actors.admin.session import verb
from actors.core import packed

if TYPE_CHECKING:
    from actors.core.client import Client

#: As many as one message carries; longer lists are sent in parts.
BATCH, ROWS_OF_ONE = 200, 7_000
#: More subjects than this are blocked as one list, and proved later.
ONE_BY_ONE = 20
#: Parts that take longer than a person likes to look at nothing.
LONG = 10
#: Blocks asked for at once; an answer of a thousand stays well below the largest message.
PAGE = 500
MAX_FILE_BYTES = 64 << 20
CHANGE_LIMIT_S, MANY_LIMIT_S = 10.0, 60.0
#: What the journal knows besides addresses: payloads that are dropped from everybody, and signatures of other nodes.
_LESSON = re.compile(r"(?:tcp|udp)/\d{1,5}/[0-9a-f]{16}|signature/[0-9a-f]{32}")

Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Addresses = Annotated[list[str] | None, typer.Argument(metavar="ADDR...", help="addresses or prefixes, IPv4 or IPv6")]
File = Annotated[str, typer.Option("--file", "-f", metavar="PATH", help="one address a line, # comments; - is stdin")]
Lasting = Annotated[str, typer.Option("--for", metavar="T", help="90, 10m, 2h, 1d")]


@verb
def block(
    ctx: typer.Context,
    addresses: Addresses = None,
    file: File = "",
    lasting: Lasting = "",
    reason: Annotated[str, typer.Option("--reason", help="kept with the block and shown by `why`")] = "",
    as_json: Json = False,
) -> None:
    """Block addresses. Without --for policy chooses how long."""
    args: dict[str, Any] = {"reason": reason} if reason else {}
    args |= {"ttl_s": words.parse_duration(lasting)} if lasting else {}
    rows = _rows(addresses, file)
    if len(rows) > ONE_BY_ONE:
        _block_many(ctx, rows, args, as_json)
    else:
        _change(ctx, "block", packed.unpack(b"".join(rows)), args, "blocked", as_json)


@verb
def release(ctx: typer.Context, addresses: Addresses = None, file: File = "", as_json: Json = False) -> None:
    """Take blocks back."""
    _change(ctx, "release", _subjects(addresses, file), {}, "released", as_json)


@verb
def tolerate(
    ctx: typer.Context,
    addresses: Addresses = None,
    file: File = "",
    remove: Annotated[bool, typer.Option("--remove", help="take them off the list")] = False,
    lasting: Lasting = "",
    comment: Annotated[str, typer.Option("--comment", help="kept with the entry")] = "",
    as_json: Json = False,
) -> None:
    """Never block these addresses. Without any, show the list."""
    if not addresses and not file:
        _list(ctx, "tolerance.list", {}, "tolerance", as_json)
        return
    args: dict[str, Any] = {"remove": True} if remove else {}
    args |= {"comment": comment} if comment else {}
    args |= {"for_s": words.parse_duration(lasting)} if lasting else {}
    _change(
        ctx, "tolerate", _subjects(addresses, file), args, "no longer tolerated" if remove else "tolerated", as_json
    )


@verb
def blocks(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="how many at most")] = 200,
    as_json: Json = False,
) -> None:
    """The blocks in force: source, reason, time left, whether the kernel itself has proved them."""
    with session.of(ctx).service() as client:
        document = _pages(client, limit)
    _show(document, "blocks", as_json)


@verb
def why(ctx: typer.Context, address: Annotated[str, typer.Argument(metavar="ADDR")], as_json: Json = False) -> None:
    """Why an address is blocked, or why it is not."""
    with session.of(ctx).service() as client:
        answer = client.ask("why", {"address": canonical(address)}, by=session.BY, timeout_s=5.0)
    if as_json:
        session.emit(answer)
        return
    from actors.admin import render, render_bans

    render.show(render_bans.why(answer))


@verb
def history(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(metavar="[ADDR|VACCINE]")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """What the journal remembers, of one address or vaccine or of the node; newest first."""
    subject = canonical(address) if address and not _LESSON.fullmatch(address) else address
    _list(ctx, "memory.history", {"subject": subject, "limit": limit}, "history", as_json)


def canonical(text: str) -> str:
    """An address or prefix as the cells write it: shortest form, no length for a host, an IPv4 address in IPv6 clothes
    as IPv4. Raises ValueError."""
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is no IPv4 or IPv6 address or prefix") from None
    if network.num_addresses > 1:
        return str(network)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return str(mapped or network.network_address)


def _subjects(addresses: list[str] | None, file: str) -> list[str]:
    """All that were named, each once, in order. Nothing is sent when one of them is wrong."""
    return packed.unpack(b"".join(_rows(addresses, file)))


def _rows(addresses: list[str] | None, file: str) -> list[bytes]:
    """The same as rows of ``core.packed``: a hundred thousand of them in a tenth of a second."""
    named = list(addresses or [])
    if file:
        named += [line.partition("#")[0].strip() for line in _read(file).splitlines()]
    rows = list(dict.fromkeys(_row(text) for text in named if text))
    if not rows:
        raise ValueError("name at least one address, or a file of them with --file")
    return rows


def _row(text: str) -> bytes:
    try:
        return packed.row(text)
    except ValueError:
        return packed.row(canonical(text))


def _read(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read(MAX_FILE_BYTES)
        path = Path(file)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_text()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text") from None
    except OSError as exc:
        raise ValueError(f"{file} cannot be read: {exc.strerror}") from exc


def _change(ctx: typer.Context, wish: str, subjects: list[str], args: dict[str, Any], done: str, as_json: bool) -> None:
    """Send in parts of one message each; the first that is declined ends it, and what was done before is told."""
    answers = []
    with session.of(ctx).service() as client:
        for start in track(range(0, len(subjects), BATCH), wish, long=LONG):
            part = {"subjects": subjects[start : start + BATCH]} | args
            answers.append(client.ask(wish, part, by=session.BY, timeout_s=CHANGE_LIMIT_S))
    if as_json:
        session.emit(answers[0] if len(answers) == 1 else {"parts": answers})
        return
    from actors.admin import render, render_bans

    render.show(render_bans.changed(subjects, answers, done))


def _block_many(ctx: typer.Context, rows: list[bytes], args: dict[str, Any], as_json: bool) -> None:
    """A long list, in order, so that the journal writes it in one stroke: all of it is blocked or nothing."""
    ordered = b"".join(sorted(rows))
    args = args | {"list": secrets.token_hex(8)}
    with session.of(ctx).service() as client:
        for start in range(0, len(ordered), ROWS_OF_ONE * packed.ROW):
            end = start + ROWS_OF_ONE * packed.ROW
            part = {"rows": ordered[start:end], "more": end < len(ordered)} | args
            answer = client.ask("block", part, by=session.BY, timeout_s=MANY_LIMIT_S)
    if as_json:
        until = answer["until_unix_s"]
        results = [{"subject": subject, "until_unix_s": until} for subject in packed.unpack(b"".join(rows))]
        session.emit({"results": results, "total": answer["total"]})
        return
    typer.echo(f"{words.plural(len(rows), 'address', 'addresses')} blocked")


def _list(ctx: typer.Context, wish: str, args: dict[str, Any], name: str, as_json: bool) -> None:
    with session.of(ctx).service() as client:
        answer = client.ask(wish, args, by=session.BY, timeout_s=5.0)
    _show(answer, name, as_json)


def _pages(client: "Client", limit: int) -> dict[str, Any]:
    """The first ``limit`` blocks, newest first, in as many questions as it takes."""
    page: dict[str, Any] = {"next": ""}
    found: list[Any] = []
    while len(found) < limit:
        args = {"limit": min(PAGE, limit - len(found)), "after": page["next"]}
        page = client.ask("blocks.list", args, by=session.BY, timeout_s=5.0)
        found += page["blocks"]
        if not page["next"]:
            break
    return page | {"blocks": found}


def _show(document: dict[str, Any], view: str, as_json: bool) -> None:
    if as_json:
        session.emit(document)
        return
    from actors.admin import render, render_bans

    render.show(getattr(render_bans, view)(document))
