"""Arguments of the policy verbs, checked: bounded, typed, refused with a sentence. Pure."""

from typing import Any

import msgspec

from actors.core.errors import Refused
from actors.core.messages import BATCH_LIMIT, Posture
from actors.hypodermis.subjects import Prefix, parse_prefix, unpack
from actors.hypodermis.tolerance import COMMENT_LIMIT, Toleration

LONGEST_S = 31_536_000.0
#: A message may have 128 kB; this much of it is for the rows of a page.
PAGE_BYTES = 100_000


def subjects(args: dict[str, Any], most: int = BATCH_LIMIT) -> list[Prefix]:
    """``subjects``: 1 to ``most`` addresses or prefixes, each once, in order; many may come as ``rows`` instead
    (``core.packed``), as many as a message carries."""
    rows, texts = args.get("rows"), args.get("subjects")
    if isinstance(rows, bytes) and texts is None:
        named = unpack(rows)
    elif isinstance(texts, list | tuple) and len(texts) <= most:
        named = [parse_prefix(text) for text in texts]
    elif isinstance(texts, list | tuple):
        raise Refused(f"{len(texts)} addresses are too many for one request", remedy=f"send {most} at a time")
    else:
        named = []
    if not named:
        raise Refused("no address was given", remedy="name at least one address or prefix")
    return list(dict.fromkeys(named))


def seconds(args: dict[str, Any], name: str) -> float:
    """A duration in seconds; 0 when it is not given. Raises Refused for what is no time from 1 s to a year."""
    value = args.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= LONGEST_S):
        raise Refused(f"{name} {value!r:.40} is no usable time", remedy="give seconds from 1 to 31536000 (one year)")
    return float(value)


def number(args: dict[str, Any], name: str, usual: int, most: int) -> int:
    """A count from 1; more than ``most`` becomes ``most``."""
    value = args.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refused(f"{name} must be a whole number from 1")
    return min(value, most)


def sentence(args: dict[str, Any], name: str) -> str:
    """Free text for people: one line, cut to its limit, without control characters."""
    value = args.get(name) or ""
    if not isinstance(value, str):
        raise Refused(f"{name} must be text")
    return "".join(char if char.isprintable() else " " for char in value)[:COMMENT_LIMIT].strip()


def posture(value: Any) -> Posture:
    try:
        return Posture(value.lower() if isinstance(value, str) else value)
    except ValueError:
        known = ", ".join(Posture)
        raise Refused(f"there is no posture {value!r:.40}", remedy=f"choose one of {known}") from None


def fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the first rows as one message carries; at least one."""
    room = PAGE_BYTES
    for count, row in enumerate(rows):
        room -= len(msgspec.msgpack.encode(row))
        if room < 0 and count:
            return rows[:count]
    return rows


def toleration(prefix: Prefix, body: dict[str, Any]) -> Toleration:
    """An entry as the journal keeps it. Raises ValueError or TypeError for what is none."""
    return Toleration(
        prefix,
        str(body.get("comment", ""))[:COMMENT_LIMIT],
        str(body.get("by", ""))[:COMMENT_LIMIT],
        float(body.get("since_unix_s", 0.0)),
        float(body.get("until_unix_s", 0.0)),
    )
