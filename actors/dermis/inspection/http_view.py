"""HTTP/1 as rules see it: the bytes of a side taken apart into messages with named buffers. Pure and bounded.

Lenient on purpose: what some server or browser would accept is accepted (any line end, folded and misspelt headers,
blank lines in front), and oddity is remembered, because an odd head makes the body ambiguous (``http_body.readings``).
Names of buffers are those of Suricata rules. HTTP/2 is not read. Source: RFC 9110, RFC 9112; Suricata user guide.
"""

import re
from dataclasses import dataclass, field

from actors.dermis.inspection.http_body import Work, readings, unchunk

MESSAGES_MAX = 64
HEAD_MAX = 32_768
HEADERS_MAX = 512
_REQUEST = re.compile(rb"[\r\n\t ]{0,16}([A-Za-z][A-Za-z_\-]{1,31})[ \t]++([^\r\n]*+)(?:\r\n|\n|\r)")
_METHODS = re.compile(
    rb"[\r\n\t ]{0,16}(?:GET|POST|HEAD|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PROPFIND|MOVE|COPY|MKCOL|LOCK|UNLOCK"
    rb"|SEARCH)[ \t]",
    re.I,
)
#: Browsers skip a line of junk before the status line.
_RESPONSE = re.compile(
    rb"(?:[^\r\n]{0,64}\r?\n)??[\r\n\t ]{0,16}"
    rb"(HTTP/?[^ \t\r\n]{0,16})[ \t]*([0-9]{0,3})[ \t]*([^\r\n]*)(?:\r\n|\n|\r)?",
    re.I,
)
#: Where a head may end, from the book to the wild: an empty line by any line end, or one that holds only white space.
_BOOK_END = re.compile(rb"\r\n\r\n")
_WILD_ENDS = (
    re.compile(rb"\r\n\r\n|\n\n|\n\r\n|\r\n\n|\n\r\r\n|\r\r\n\r\n|\r\n\r\r\n"),
    re.compile(rb"(?:\r\n|\n|\r(?!\n))[ \x00-\x1f]{0,8}(?:\r\n|(?<!\r)\n)"),
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LINE = re.compile(rb"\r\n|\n|\r")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})|%u00([0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Message:
    """One request or response. buffers: name → its instances. ended: nothing can be added to it any more."""

    buffers: dict[str, list[bytes]]
    ended: bool
    is_request: bool
    headed: bool = True  #: the head is whole
    size: int = field(default=0, compare=False)


def looks_like_request(data: bytes) -> bool:
    """Whether the client speaks HTTP/1, from the first bytes it said."""
    line = _METHODS.match(data)
    if line is None:
        return False
    first = _LINE.split(data[line.end() : line.end() + 4096], maxsplit=1)[0]
    return b"HTTP/" in first or b"/" in first or not _LINE.search(data, line.end())


def looks_like_response(data: bytes) -> bool:
    """Whether a status line is there, at most one line of junk before it."""
    return _RESPONSE.match(data[:256]) is not None


def requests(data: bytes, closed: bool, work: Work | None = None) -> list[Message]:
    """The requests that a client's bytes hold. closed: no byte will follow. work: what may still be spent on them."""
    return _messages(data, closed, work or Work(), is_request=True)


def responses(data: bytes, closed: bool, work: Work | None = None) -> list[Message]:
    """The responses that a server's bytes hold."""
    return _messages(data, closed, work or Work(), is_request=False)


def _messages(data: bytes, closed: bool, work: Work, *, is_request: bool) -> list[Message]:
    found: list[Message] = []
    at = 0
    while at < len(data) and len(found) < MESSAGES_MAX:
        rest = data[at:]
        if not work.spend(len(rest)):
            break
        if found and not (looks_like_request(rest) if is_request else looks_like_response(rest)):
            break
        line = (_REQUEST if is_request else _RESPONSE).match(rest)
        if line is None:
            break
        message = _message(rest, line, closed, work, is_request=is_request)
        found.append(message)
        if not message.size:
            break
        at += message.size
    return found


def _message(data: bytes, line: re.Match[bytes], closed: bool, work: Work, *, is_request: bool) -> Message:
    """The message that begins here. Its ``size`` is 0 when it reaches to the end of what there is."""
    ends = _head_ends(data, line.end())
    head_end = ends[0] if ends else len(data)
    head = data[line.end() : head_end]
    fields, odd = _fields(head)
    odd = odd or len(ends) > 1 or not _plain_start(line, is_request)
    hints = _CONTROLS.sub(b"", data[: ends[-1] if ends else 0]).lower()
    buffers = _request_head(line, fields, head) if is_request else _response_head(line, fields, head)
    if not ends:
        return Message(buffers, closed, is_request, headed=closed)
    length, chunked, odd_length = _framing(fields)
    odd = odd or odd_length or (b"chunked" in hints) != chunked or (chunked and not is_request and _old(line))
    size, whole = _extent(data, head_end, length, chunked, closed, is_request=is_request)
    body_end = size or len(data)
    bodies = readings([data[end:body_end] for end in ends], length, chunked, hints, odd, work)
    if body_end > head_end or length:
        buffers["http.request_body" if is_request else "http.response_body"] = bodies
        buffers["file.data"] = bodies
    return Message(buffers, whole or closed, is_request, size=size)


def _head_ends(data: bytes, line_end: int) -> list[int]:
    """Every place where the body may begin, the earliest first; empty while the head is not whole."""
    area = data[: line_end + HEAD_MAX]
    begin = max(0, line_end - 2)
    ends: dict[int, None] = {}
    for pattern in (_BOOK_END, *_WILD_ENDS):
        if match := pattern.search(area, begin):
            ends[match.end()] = None
    return sorted(ends)


def _plain_start(line: re.Match[bytes], is_request: bool) -> bool:
    if is_request:
        return _target(line)[1] in (b"HTTP/1.1", b"HTTP/1.0") and line.start(1) == 0 and line.group().endswith(b"\r\n")
    return (
        line.group(1) in (b"HTTP/1.1", b"HTTP/1.0") and line.start(1) == 0 and len(line.group(2)) == 3
        and line.group().endswith(b"\r\n") and line.group(2)[:1] in b"2345" and line.group(2) not in (b"204", b"304")
    )  # fmt: skip


def _old(line: re.Match[bytes]) -> bool:
    return line.group(1) == b"HTTP/1.0"


def _fields(head: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Name and value of each header, folded lines joined; and whether anything was not by the book."""
    fields: list[tuple[bytes, bytes]] = []
    odd = bool(_CONTROLS.search(head)) or head.count(b"\r") != head.count(b"\r\n")
    odd = odd or head.count(b"\n") != head.count(b"\r\n")
    for raw in _LINE.split(head, HEADERS_MAX)[:HEADERS_MAX]:
        if not raw.strip():
            continue
        if raw[:1] in b" \t" and fields:
            name, value = fields[-1]
            fields[-1] = (name, (value + b" " + raw.strip()).strip())
            odd = True
            continue
        name, colon, value = raw.partition(b":")
        clean = name.strip(b" \t\x00\x0b\x0c")
        odd = odd or clean != name or not colon
        fields.append((clean, value.strip(b" \t\x00\x0b\x0c\x7f")))
    return fields, odd


def _framing(fields: list[tuple[bytes, bytes]]) -> tuple[int | None, bool, bool]:
    """Declared length, whether chunked, and whether these contradict each other or the book."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    encodings = [value.lower() for name, value in fields if name.lower() == b"content-encoding"]
    odd = len(lengths) > 1 or len(codings) > 1 or len(encodings) > 1 or bool(lengths and codings)
    odd = odd or any(value not in (b"gzip", b"deflate", b"identity", b"br", b"zstd", b"x-gzip") for value in encodings)
    chunked = any(b"chunked" in value for value in codings)
    odd = odd or any(value != b"chunked" for value in codings)
    length = None
    if lengths:
        digits = re.match(rb"\d{1,15}", lengths[0])
        odd = odd or digits is None or digits.group() != lengths[0]
        length = int(digits.group()) if digits else None
    return (None if chunked else length), chunked, odd


def _extent(
    data: bytes, start: int, length: int | None, chunked: bool, closed: bool, *, is_request: bool
) -> tuple[int, bool]:
    """Where the message ends (0: with all there is) and whether it is whole."""
    if chunked:
        taken_apart = unchunk(data[start:])
        if taken_apart is None:
            return 0, False
        end, whole = start + taken_apart[1], taken_apart[2]
    elif length is not None or is_request:
        end = start + (length or 0)
        whole = len(data) >= end
    else:
        return 0, False
    if not whole:
        return 0, False
    follows = data[end:]
    if not follows or (looks_like_request(follows) if is_request else looks_like_response(follows)):
        return end, True
    return 0, True  # what follows is no message: it is part of this one for some receiver


# --- buffers ----------------------------------------------------------------------------------------------


def _target(line: re.Match[bytes]) -> tuple[bytes, bytes]:
    """What is asked for and the protocol behind it, which very old clients leave out."""
    rest = line.group(2)
    at = rest.rfind(b"HTTP/")
    if at > 0 and rest[at - 1 : at] in (b" ", b"\t"):
        return rest[:at].rstrip(b" \t"), rest[at:]
    return rest, b""


def _request_head(line: re.Match[bytes], fields: list[tuple[bytes, bytes]], head: bytes) -> dict[str, list[bytes]]:
    method, (raw_uri, protocol) = line.group(1), _target(line)
    absolute = re.match(rb"(?i)[a-z][a-z0-9+.\-]*://([^/?#]*)", raw_uri)
    path = raw_uri[absolute.end() :] or b"/" if absolute else raw_uri
    buffers = {
        "http.method": [method],
        "http.uri": [normal_uri(path)],
        "http.uri.raw": [raw_uri],
        "http.protocol": [protocol],
        "http.request_line": [line.group().strip(b"\r\n")],
    }
    host = _value(fields, b"host")
    host = absolute.group(1) if absolute and host is None else host
    if host is not None:
        buffers["http.host"] = [re.sub(rb":\d*$", b"", host).lower()]
        buffers["http.host.raw"] = [host]
    for name, header in (
        ("http.user_agent", b"user-agent"), ("http.referer", b"referer"), ("http.cookie", b"cookie"),
        ("http.content_type", b"content-type"), ("http.accept", b"accept"),
    ):  # fmt: skip
        if (value := _value(fields, header)) is not None:
            buffers[name] = [value]
    return buffers | _headers(fields, head, "http.request_header")


def _response_head(line: re.Match[bytes], fields: list[tuple[bytes, bytes]], head: bytes) -> dict[str, list[bytes]]:
    buffers = {
        "http.protocol": [line.group(1)],
        "http.stat_code": [line.group(2)],
        "http.stat_msg": [line.group(3).strip()],
        "http.response_line": [line.group().strip(b"\r\n")],
    }
    for name, header in (
        ("http.cookie", b"set-cookie"), ("http.server", b"server"), ("http.location", b"location"),
        ("http.content_type", b"content-type"),
    ):  # fmt: skip
        if (value := _value(fields, header)) is not None:
            buffers[name] = [value]
    return buffers | _headers(fields, head, "http.response_header")


def _headers(fields: list[tuple[bytes, bytes]], head: bytes, each: str) -> dict[str, list[bytes]]:
    shown = [name + b": " + value for name, value in fields if name.lower() not in (b"cookie", b"set-cookie")]
    return {
        "http.header": [b"".join(line + b"\r\n" for line in shown)],
        "http.header.raw": [head],
        each: [name + b": " + value for name, value in fields],
    }


def _value(fields: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    values = [value for name, value in fields if name.lower() == wanted]
    return b", ".join(values) if values else None


def unescaped(data: bytes) -> bytes:
    """Percent-encoding undone once; what is no encoding stays."""
    return _PERCENT.sub(lambda found: bytes([int(found.group(1) or found.group(2), 16)]), data)


def normal_uri(uri: bytes) -> bytes:
    """Percent-encoding undone once, back slashes turned, doubled slashes, ``.`` and ``..`` taken out of the path."""
    plain = unescaped(uri)
    path, mark, query = plain.partition(b"?")
    path = path.replace(b"\\", b"/")
    if b"//" in path or b"/." in path:
        kept: list[bytes] = []
        parts = path.split(b"/")
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if part == b"..":
                kept = kept[:-1] if len(kept) > 1 else kept
            elif part not in (b"", b".") or number == 0:
                kept.append(part)
                continue
            if last:
                kept.append(b"")
        path = b"/".join(kept)
    return path + mark + query
