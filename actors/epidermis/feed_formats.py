"""Reads reputation feeds in the formats in which they are published. Pure.

    plain      one address, prefix or range per line; ``#`` and ``;`` comments. FireHOL netset and ipset, Spamhaus DROP
               text (``1.2.3.0/24 ; SBL1``), ranges (``1.2.3.4-1.2.3.9``), hosts with ports (``1.2.3.4:443``)
    csv        abuse.ch (comments, quotes, CRLF) and ``address,category,score`` lists: the column with addresses
    json       one object a line (Spamhaus DROP, with its metadata record), or one array or object; CrowdSec decisions

Feeds are hostile input: sizes and line lengths are bounded, gzip is unpacked up to a limit, and whatever comes in,
``FeedError`` is all that goes out. A few lines that are no addresses are skipped and counted; when they are more than
``BAD_SHARE`` the whole feed is refused, because then the format is not what it was. Host bits below a prefix length
are ignored. IPv4 in IPv6 clothes (``::ffff:1.2.3.4``) is IPv4, as packets from it would be. Plain lists take about half
a second for a million lines.
"""

import csv
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from actors.core.errors import TegumentarError
from actors.epidermis.feed_lines import BAD_LIMIT, BadAddress, read_addresses
from actors.epidermis.prefixes import Prefixes

MAX_BYTES = 64 << 20  #: unpacked; the largest list in common use has 30 MiB
MAX_JSON_BYTES = 32 << 20  #: as objects JSON takes many times its size
MAX_LINE = 4_096
MAX_LINES = 5_000_000
MAX_ENTRIES = 4_000_000
#: more unreadable lines than this (and than BAD_ALWAYS) and the feed is refused
BAD_SHARE, BAD_ALWAYS = 0.02, 3

#: names that publishers give to the field with the address, best first
ADDRESS_FIELDS = ("cidr", "dst_ip", "dstip", "ip_address", "ipaddress", "src_ip", "ip", "network", "prefix", "address")
_JSON_FIELDS = (*ADDRESS_FIELDS, "value")


class FeedError(TegumentarError):
    """The text is no feed that can be used. line: where, counted from 1; 0 when it is about the whole."""

    def __init__(self, reason: str, *, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.line, self.reason = line, reason


class Format(StrEnum):
    AUTO = "auto"
    PLAIN = "plain"
    CSV = "csv"
    JSON = "json"


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """What a feed lists, as published: doubles and overlaps included. skipped: lines that were no addresses."""

    v4: Prefixes
    v6: Prefixes
    format: Format
    skipped: int = 0
    first_skipped: str = ""

    def __len__(self) -> int:
        return len(self.v4) + len(self.v6)


def parse(data: bytes, format: Format = Format.AUTO, *, max_bytes: int = MAX_BYTES) -> Parsed:
    """Read one feed. Raises FeedError and nothing else."""
    text = _text(data, max_bytes)
    chosen = detect(text) if format is Format.AUTO else format
    lines = _lines(text, chosen)
    values = {Format.PLAIN: _plain, Format.CSV: _csv, Format.JSON: _json}[chosen](text, lines)
    if len(values) > MAX_ENTRIES:
        raise FeedError(f"{len(values)} entries are more than the {MAX_ENTRIES} that a feed may have")
    v4, v6, bad = read_addresses(values)
    tolerable = min(max(BAD_ALWAYS, BAD_SHARE * len(values)), BAD_LIMIT)
    if len(bad) > tolerable or (bad and len(bad) == len(values)):
        problem = f"{_cut(bad[0].text)} is no address ({bad[0].reason}); so are {len(bad)} of {len(values)} entries"
        raise FeedError(problem, line=_line_of(bad[0], lines))
    first = f"line {_line_of(bad[0], lines)}: {_cut(bad[0].text)}: {bad[0].reason}" if bad else ""
    return Parsed(v4, v6, chosen, len(bad), first)


def detect(text: str) -> Format:
    """The format, from the first character and the first line that is no comment."""
    start = text.lstrip()[:1]
    if start == "<":
        raise FeedError("this is a web page, not a list", line=1)
    if start in ("{", "["):
        return Format.JSON if not _looks_bracketed(text) else Format.PLAIN
    for line in text[:65_536].split("\n"):
        content = _without_comment(line)
        if content:
            return Format.CSV if "," in content else Format.PLAIN
    return Format.PLAIN


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """Unpack gzip, never more than ``max_bytes``. Raises FeedError."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as exc:
        raise FeedError(f"damaged gzip data ({exc})") from exc
    if len(out) > max_bytes:
        raise FeedError(f"unpacks to more than {max_bytes} bytes")
    if not unpacker.eof:
        raise FeedError("the gzip data end early")
    return out


def _text(data: bytes, max_bytes: int) -> str:
    if data[:2] == b"\x1f\x8b":
        data = gunzip(data, max_bytes)
    if len(data) > max_bytes:
        raise FeedError(f"{len(data)} bytes are more than the {max_bytes} that a feed may have")
    if b"\0" in data:
        raise FeedError("this is binary data, not text", line=data.count(b"\n", 0, data.index(b"\0")) + 1)
    text = data.decode("utf-8", errors="replace").removeprefix("\N{BOM}")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _lines(text: str, chosen: Format) -> list[str]:
    if text.count("\n") > MAX_LINES:
        raise FeedError(f"more than the {MAX_LINES} lines that a feed may have")
    if chosen is Format.JSON:  # a document may be one line; its parser knows no lines
        if len(text) > MAX_JSON_BYTES:
            raise FeedError(f"{len(text)} bytes are more than the {MAX_JSON_BYTES} that JSON may have")
        return text.split("\n")
    lines = text.split("\n")
    longest = max(map(len, lines))
    if longest > MAX_LINE:
        number = next(i for i, line in enumerate(lines, 1) if len(line) > MAX_LINE)
        raise FeedError(f"a line of {longest} characters; the longest allowed is {MAX_LINE}", line=number)
    return lines


def _without_comment(line: str) -> str:
    return line.partition("#")[0].partition(";")[0].strip()


def _plain(text: str, lines: list[str]) -> list[str]:
    """Lines up to the last one with a comment or a blank are cleaned one by one; below it, there is nothing to do."""
    last = max(text.rfind(mark) for mark in "#; \t")
    dirty = text.count("\n", 0, last + 1) + 1 if last >= 0 else 0
    cleaned = [_without_comment(line) for line in lines[:dirty]]
    return [line for line in cleaned + lines[dirty:] if line]


def _csv(text: str, lines: list[str]) -> list[str]:
    rows = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not rows:
        return []
    names = _header(rows[:1])
    rows = rows[1:] if names else rows
    names = names or _header(line.lstrip("# ") for line in lines[:100] if line.startswith("#"))
    try:
        reader = csv.reader(rows, skipinitialspace=True)
        first = next(reader, None)
        if first is None:
            return []
        column = _address_column(names) if names else _column_by_look(first)
        return [_field(first, column), *(_field(row, column) for row in reader)]
    except csv.Error as exc:
        raise FeedError(f"this is no CSV ({exc})") from exc


def _field(row: list[str], column: int) -> str:
    return row[column].strip() if len(row) > column else ""


def _header(candidates: Iterable[str]) -> list[str]:
    """The field names of the first line that has one of ``ADDRESS_FIELDS``, else nothing."""
    for line in candidates:
        names = [name.strip().strip('"').strip().lower() for name in line.split(",")]
        if len(names) > 1 and any(name in ADDRESS_FIELDS for name in names):
            return names
    return []


def _address_column(names: list[str]) -> int:
    return next(names.index(name) for name in ADDRESS_FIELDS if name in names)


def _column_by_look(row: list[str]) -> int:
    for column, field in enumerate(row):
        if not read_addresses([field.strip()])[2]:
            return column
    raise FeedError("no column of this CSV holds addresses", line=1)


def _json(text: str, lines: list[str]) -> list[str]:
    """One document, or one object a line."""
    try:
        document = orjson.loads(text)
        records = _records(document)
    except orjson.JSONDecodeError:
        records = [_line_record(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    values = [value for value in map(_value, records) if value is not None]
    announced = [record["records"] for record in records if _is_metadata(record) and "records" in record]
    if announced and announced[-1] != len(values):
        raise FeedError(f"the feed says that it has {_cut(str(announced[-1]))} records, and {len(values)} came")
    return values


def _records(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and ("new" in document or "deleted" in document):
        new = document.get("new") or []
        if not isinstance(new, list):
            raise FeedError("the new decisions are no list")
        return new
    return [document]


def _line_record(line: str, number: int) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise FeedError("this is no JSON", line=number) from exc


def _is_metadata(record: Any) -> bool:
    return isinstance(record, dict) and record.get("type") == "metadata"


def _value(record: Any) -> str | None:
    """The address of one record; None when it is not about one; text that is no address when it should be."""
    if isinstance(record, str):
        return record.strip()
    if not isinstance(record, dict):
        return _cut(str(record))
    if _is_metadata(record):
        return None
    if "scope" in record and not _is_ban(record):
        return None
    for name in _JSON_FIELDS:
        value = record.get(name)
        if isinstance(value, str):
            return value.strip()
    return _cut(str(record))


def _is_ban(decision: dict[str, Any]) -> bool:
    """Of CrowdSec decisions, those that ban an address or a range in earnest."""
    scope = str(decision.get("scope")).lower()
    return scope in ("ip", "range") and decision.get("type", "ban") == "ban" and not decision.get("simulated")


def _looks_bracketed(text: str) -> bool:
    """``[2001:db8::1]:443`` starts as a JSON array does."""
    first = text.lstrip().split("\n", 1)[0]
    return first.startswith("[") and ":" in first and not first.lstrip("[ ").startswith(('"', "{", "["))


def _line_of(bad: BadAddress, lines: list[str]) -> int:
    """The first line with this text: the same text is as bad everywhere."""
    return next((number for number, line in enumerate(lines, 1) if bad.text and bad.text in line), 0)


def _cut(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in text[:80])
    return repr(printable)
