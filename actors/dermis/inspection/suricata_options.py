"""The options of a Suricata rule, one by one: what each means, or a reason in words why it is not understood. Pure."""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace

from actors.dermis.inspection.suricata_nets import BadRule
from actors.dermis.inspection.suricata_types import (
    PAYLOAD,
    SEVERAL,
    ByteTest,
    Content,
    FlagsTest,
    Group,
    Item,
    Pcre,
    Rule,
    Size,
    Threshold,
)

#: Sticky buffers: the contents after the word are looked for in it.
BUFFERS = {
    **{
        name: name
        for name in (
            "http.method", "http.uri", "http.uri.raw", "http.host", "http.host.raw", "http.user_agent", "http.cookie",
            "http.header", "http.header.raw", "http.request_body", "http.response_body", "http.stat_code",
            "http.stat_msg", "http.request_header", "http.response_header", "http.request_line", "http.response_line",
            "http.protocol", "http.referer", "http.content_type", "http.accept", "http.server", "http.location",
            "tls.sni", "dns.query", "file.data", "ssh.proto", "ssh.software",
        )
    },
    "file_data": "file.data",
    "dns_query": "dns.query",
    "tls_sni": "tls.sni",
    "pkt_data": PAYLOAD,
}  # fmt: skip
#: Older words that stand behind a content and say where that one is looked for.
MODIFIERS = {
    "http_method": "http.method", "http_uri": "http.uri", "http_raw_uri": "http.uri.raw", "http_host": "http.host",
    "http_raw_host": "http.host.raw", "http_user_agent": "http.user_agent", "http_cookie": "http.cookie",
    "http_header": "http.header", "http_raw_header": "http.header.raw", "http_client_body": "http.request_body",
    "http_server_body": "http.response_body", "http_stat_code": "http.stat_code", "http_stat_msg": "http.stat_msg",
}  # fmt: skip
_PCRE_BUFFERS = {
    "U": "http.uri", "I": "http.uri.raw", "P": "http.request_body", "Q": "http.response_body", "H": "http.header",
    "D": "http.header.raw", "M": "http.method", "C": "http.cookie", "S": "http.stat_code", "Y": "http.stat_msg",
    "V": "http.user_agent", "W": "http.host", "Z": "http.host.raw",
}  # fmt: skip
_TCP_FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128, "1": 128, "2": 64, "0": 0}
_COMPARABLE = ("dsize", "itype", "icode", "ttl", "icmp_id")
_IP_PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "sctp": 132,
}
_WORDS_ONLY = frozenset({"gid", "classtype", "reference", "metadata", "target", "rawbytes"})


def _whole(text: str, what: str, low: int = 0, high: int = 1 << 32) -> int:
    try:
        number = int(text.strip(), 0)
    except ValueError as error:
        raise BadRule(f"{what}: {text!r} is no whole number") from error
    if not low <= number <= high:
        raise BadRule(f"{what}: {number} does not lie between {low} and {high}")
    return number


def _unquoted(value: str, what: str) -> tuple[str, bool]:
    """The text between the quotes and whether a ``!`` stood in front."""
    negated = value.startswith("!")
    value = value[1:].strip() if negated else value
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1], negated
    raise BadRule(f"{what} wants its value in quotes")


def content_bytes(text: str) -> bytes:
    """``ab|20 63|d`` as bytes. Raises BadRule."""
    out, inside, hexes = bytearray(), False, ""
    letters = iter(text)
    for letter in letters:
        if letter == "|":
            if inside:
                try:
                    out += bytes.fromhex(hexes)
                except ValueError as error:
                    raise BadRule(f"content: |{hexes}| is no row of bytes") from error
            inside, hexes = not inside, ""
        elif inside:
            hexes += letter
        elif letter == "\\":
            out += next(letters, "\\").encode()
        else:
            out += letter.encode()
    if inside:
        raise BadRule("content: a | is not closed")
    if not out:
        raise BadRule("content: it is empty")
    return bytes(out)


def _size(text: str, what: str, high: int = 1 << 32) -> Size:
    """``5``, ``>5``, ``<5``, ``3<>9`` (both excluded), ``!5``."""
    text = text.strip()
    negated = text.startswith("!")
    text = text[1:].strip() if negated else text
    first, between, last = text.partition("<>")
    if between:
        size = Size(_whole(first, what) + 1, _whole(last, what) - 1, negated)
    elif text[:2] in (">=", "<="):
        number = _whole(text[2:], what)
        size = Size(number, high, negated) if text[0] == ">" else Size(0, number, negated)
    elif text[:1] in ("<", ">"):
        number = _whole(text[1:], what)
        size = Size(number + 1, high, negated) if text[0] == ">" else Size(0, number - 1, negated)
    else:
        number = _whole(text, what)
        size = Size(number, number, negated)
    return size


class Builder:
    """Takes the options one by one."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._buffer = PAYLOAD
        self._groups: list[tuple[str, list[Item]]] = []
        self._last: tuple[list[Item], int] | None = None  # the content that a modifier would speak of

    def option(self, name: str, value: str) -> None:
        handler = _OPTIONS.get(name)
        if handler is not None:
            handler(self, value)
        elif name in BUFFERS:
            self._buffer = BUFFERS[name]
            if self._buffer in SEVERAL:
                self._groups.append((self._buffer, []))
            self._last = None
        elif name in MODIFIERS:
            self._move_last(MODIFIERS[name])
        elif name in _COMPARABLE:
            self._rule = replace(self._rule, numbers=(*self._rule.numbers, (name, _size(value, name))))
        elif name not in _WORDS_ONLY:
            raise BadRule(f"the option {name!r} is not supported")

    def rule(self) -> Rule:
        if not self._rule.sid:
            raise BadRule("it has no sid")
        groups = tuple(Group(buffer, tuple(items)) for buffer, items in self._groups if items)
        empty = [buffer for buffer, items in self._groups if not items and buffer not in SEVERAL]
        if empty:
            raise BadRule(f"nothing is looked for in {empty[0]}")
        rule = replace(self._rule, groups=groups)
        if rule.proto in ("icmp", "udp") and any(name.startswith(("http", "tls", "file")) for name in rule.buffers):
            raise BadRule(f"the protocol {rule.proto} has no such buffer")
        return rule

    # --- where things are looked for ---

    def _items(self, buffer: str) -> list[Item]:
        for name, items in reversed(self._groups):
            if name == buffer:
                return items
        self._groups.append((buffer, []))
        return self._groups[-1][1]

    def _add(self, item: Item, buffer: str) -> None:
        items = self._items(buffer)
        items.append(item)
        self._last = (items, len(items) - 1) if isinstance(item, Content) else None

    def _content(self) -> Content:
        if self._last is None:
            raise BadRule("a modifier stands where no content is before it")
        item = self._last[0][self._last[1]]
        if not isinstance(item, Content):
            raise BadRule("a modifier stands where no content is before it")
        return item

    def _change(self, **what: object) -> None:
        content = self._content()
        if self._last is not None:
            self._last[0][self._last[1]] = replace(content, **what)  # type: ignore[arg-type]

    def _move_last(self, buffer: str) -> None:
        content = self._content()
        if self._last is not None:
            items, at = self._last
            del items[at]
            if not items:
                self._groups = [(name, others) for name, others in self._groups if others is not items]
        self._add(content, buffer)

    # --- options ---

    def content(self, value: str) -> None:
        text, negated = _unquoted(value, "content")
        self._add(Content(content_bytes(text), negated), self._buffer)

    def uricontent(self, value: str) -> None:
        text, negated = _unquoted(value, "uricontent")
        self._add(Content(content_bytes(text), negated), "http.uri")

    def nocase(self, value: str) -> None:
        self._change(nocase=True)

    def offset(self, value: str) -> None:
        self._change(offset=_whole(value, "offset", 0, 65_535))

    def depth(self, value: str) -> None:
        self._change(depth=_whole(value, "depth", len(self._content().data), 65_535))

    def distance(self, value: str) -> None:
        self._change(distance=_whole(value, "distance", -1_048_576, 1_048_576))

    def within(self, value: str) -> None:
        self._change(within=_whole(value, "within", len(self._content().data), 1_048_576))

    def startswith(self, value: str) -> None:
        self._change(begins=True)

    def endswith(self, value: str) -> None:
        self._change(ends=True)

    def fast_pattern(self, value: str) -> None:
        self._content()  # only a hint for speed; we choose for ourselves

    def pcre(self, value: str) -> None:
        text, negated = _unquoted(value, "pcre") if '"' in value else (value.lstrip("!"), value.startswith("!"))
        item, buffer = _pcre(text, negated, self._buffer)
        self._add(item, buffer)

    def byte_test(self, value: str) -> None:
        self._add(_byte_test(value), self._buffer)

    def bsize(self, value: str) -> None:
        if self._buffer == PAYLOAD:
            raise BadRule("bsize stands behind no buffer")
        self._add(_size(value, "bsize"), self._buffer)

    def urilen(self, value: str) -> None:
        size, _, kind = value.partition(",")
        if kind.strip() not in ("", "norm", "raw"):
            raise BadRule(f"urilen: {kind.strip()!r} is not supported")
        self._add(_size(size, "urilen"), "http.uri.raw" if kind.strip() == "raw" else "http.uri")

    def tcp_flags(self, value: str) -> None:
        wanted, _, ignored = (part.strip() for part in value.partition(","))
        mode = wanted[:1] if wanted[:1] in "+*!" and wanted else "="
        letters = wanted.lstrip("+*!")
        if wanted and wanted[-1] in "+*":
            mode, letters = wanted[-1], wanted[:-1]
        if not letters or not set(letters + ignored) <= set(_TCP_FLAGS):
            raise BadRule(f"flags: {value!r} names unknown flags")
        self._rule = replace(
            self._rule,
            flags=FlagsTest(
                sum({_TCP_FLAGS[letter] for letter in letters}), mode, sum({_TCP_FLAGS[letter] for letter in ignored})
            ),
        )

    def ip_proto(self, value: str) -> None:
        negated, name = value.startswith("!"), value.lstrip("!").strip().lower()
        number = _IP_PROTOCOLS[name] if name in _IP_PROTOCOLS else _whole(name, "ip_proto", 0, 255)
        self._rule = replace(self._rule, ip_proto=(number, negated))

    def flow(self, value: str) -> None:
        known: dict[str, dict[str, object]] = {
            "to_server": {"to": 0}, "from_client": {"to": 0}, "to_client": {"to": 1}, "from_server": {"to": 1},
            "established": {"established": True}, "not_established": {"established": False}, "stateless": {},
            "only_stream": {"only_stream": True}, "no_stream": {"no_stream": True},
        }  # fmt: skip
        test = self._rule.flow
        for word in (part.strip() for part in value.split(",")):
            if word not in known:
                raise BadRule(f"flow: {word!r} is not supported")
            test = replace(test, **known[word])  # type: ignore[arg-type]
        self._rule = replace(self._rule, flow=test)

    def flowbits(self, value: str) -> None:
        command, _, name = (part.strip() for part in value.partition(","))
        if command == "noalert":
            self._rule = replace(self._rule, noalert=True)
        elif command in ("set", "isset", "isnotset", "unset", "toggle") and re.fullmatch(r"[\w.\-]{1,64}", name):
            self._rule = replace(self._rule, bits=(*self._rule.bits, (command, name)))
        else:
            raise BadRule(f"flowbits: {value!r} is not supported")

    def noalert(self, value: str) -> None:
        self._rule = replace(self._rule, noalert=True)

    def threshold(self, value: str) -> None:
        self._rule = replace(self._rule, threshold=_threshold(value, "threshold"))

    def detection_filter(self, value: str) -> None:
        self._rule = replace(self._rule, detection_filter=_threshold(value, "detection_filter"))

    def msg(self, value: str) -> None:
        self._rule = replace(self._rule, msg=re.sub(r"\\(.)", r"\1", _unquoted(value, "msg")[0])[:200])

    def classtype(self, value: str) -> None:
        self._rule = replace(self._rule, classtype=value[:64])

    def sid(self, value: str) -> None:
        self._rule = replace(self._rule, sid=_whole(value, "sid", 1))

    def rev(self, value: str) -> None:
        self._rule = replace(self._rule, rev=_whole(value, "rev"))

    def priority(self, value: str) -> None:
        self._rule = replace(self._rule, priority=_whole(value, "priority", 1, 255))


def _byte_test(value: str) -> ByteTest:
    """``bytes, [!]operator, value, offset [, relative] [, endian] [, string, hex|dec|oct] [, bitmask 0xff]``."""
    parts = [part.strip() for part in value.split(",")]
    if len(parts) < 4:
        raise BadRule(f"byte_test: {value!r} names fewer than four things")
    negated, operator = parts[1].startswith("!"), parts[1].lstrip("!").strip() or "="
    if operator not in ("<", ">", "=", "<=", ">=", "&", "^"):
        raise BadRule(f"byte_test: the operator {parts[1]!r} is not supported")
    words, mask = set(parts[4:]), -1
    for word in list(words):
        if word.startswith("bitmask "):
            words.discard(word)
            mask = _whole(word.removeprefix("bitmask "), "byte_test: bitmask")
    bases = {"hex": 16, "dec": 10, "oct": 8}
    base = next((bases[word] for word in words if word in bases), 10) if "string" in words else 0
    if not words <= {"relative", "big", "little", "string", *bases}:
        raise BadRule(f"byte_test: {value!r} uses what is not supported")
    return ByteTest(
        bytes=_whole(parts[0], "byte_test: bytes", 1, 23 if base else 8),
        operator=operator,
        value=_whole(parts[2], "byte_test: value"),
        offset=_whole(parts[3], "byte_test: offset", -65_535),
        relative="relative" in words,
        negated=negated,
        little="little" in words,
        base=base,
        mask=mask,
    )


def _threshold(value: str, what: str) -> Threshold:
    given: dict[str, str] = {}
    for part in value.split(","):
        name, _, text = part.strip().partition(" ")
        given[name] = text.strip()
    kind = given.pop("type", "filter" if what == "detection_filter" else "")
    track, count = given.pop("track", ""), _whole(given.pop("count", ""), f"{what}: count", 1)
    seconds = _whole(given.pop("seconds", "0"), f"{what}: seconds")
    multiplier = _whole(given.pop("multiplier", "1"), f"{what}: multiplier", 1)
    unique = given.pop("unique_on", "")
    if kind not in ("limit", "threshold", "both", "backoff", "filter") or (kind == "filter") != (
        what == "detection_filter"
    ):
        raise BadRule(f"{what}: the type {kind!r} is not supported")
    if track not in ("by_src", "by_dst", "by_rule", "by_both", "by_flow"):
        raise BadRule(f"{what}: track {track!r} is not supported")
    if given or unique not in ("", "src_port", "dst_port"):
        raise BadRule(f"{what}: {next(iter(given), unique)!r} is not supported")
    return Threshold(kind, track, count, float(seconds), multiplier, unique)


def explosive(pattern: str) -> bool:
    """Whether a repeated group holds another endless repetition: such a pattern may take exponential time to fail."""
    opened: list[int] = []
    inner: list[bool] = [False]
    at, in_class = 0, False
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            at += 2
            continue
        if in_class:
            in_class = letter != "]"
        elif letter == "[":
            in_class = True
            at += pattern[at + 1 : at + 2] == "]"
        elif letter == "(":
            opened.append(at)
            inner.append(False)
        elif letter == ")" and opened:
            opened.pop()
            held = inner.pop()
            repeats = re.match(r"[*+]|\{\d*,\d{0}\}", pattern[at + 1 :]) is not None
            if repeats and held:
                return True
            inner[-1] = inner[-1] or held or repeats
        elif letter in "*+" or re.match(r"\{\d+,\}", pattern[at:]):
            inner[-1] = True
        at += 1
    return False


def _pcre(text: str, negated: bool, buffer: str) -> tuple[Pcre, str]:
    first, last = text.find("/"), text.rfind("/")
    if first != 0 or last <= 0:
        raise BadRule("pcre: it has not the form /pattern/flags")
    pattern, letters = text[1:last], text[last + 1 :]
    flags, anchored, relative = 0, False, False
    for letter in letters:
        if letter in "imsx":
            flags |= {"i": re.I, "m": re.M, "s": re.S, "x": re.X}[letter]
        elif letter == "R":
            relative = True
        elif letter == "A":
            anchored = True
        elif letter in _PCRE_BUFFERS:
            buffer = _PCRE_BUFFERS[letter]
        elif letter not in "BO":
            raise BadRule(f"pcre: the flag {letter!r} is not supported")
    if "[[:" in pattern or explosive(pattern):
        raise BadRule("pcre: classes like [[:alpha:]] and nested endless repetitions are not supported")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compiled = re.compile(pattern.encode("latin-1"), flags)
        except (re.error, UnicodeError, OverflowError, RecursionError, Warning) as error:
            raise BadRule(f"pcre: {error}") from error
    return Pcre(compiled, negated, relative, anchored), buffer


_OPTIONS: dict[str, Callable[[Builder, str], None]] = {
    "content": Builder.content, "uricontent": Builder.uricontent, "nocase": Builder.nocase,
    "offset": Builder.offset, "depth": Builder.depth, "distance": Builder.distance, "within": Builder.within,
    "startswith": Builder.startswith, "endswith": Builder.endswith, "fast_pattern": Builder.fast_pattern,
    "pcre": Builder.pcre, "bsize": Builder.bsize, "byte_test": Builder.byte_test, "urilen": Builder.urilen,
    "flags": Builder.tcp_flags, "tcp.flags": Builder.tcp_flags, "ip_proto": Builder.ip_proto, "flow": Builder.flow,
    "flowbits": Builder.flowbits, "noalert": Builder.noalert, "threshold": Builder.threshold,
    "detection_filter": Builder.detection_filter, "msg": Builder.msg, "classtype": Builder.classtype,
    "sid": Builder.sid, "rev": Builder.rev, "priority": Builder.priority,
}  # fmt: skip
