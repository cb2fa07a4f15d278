"""Codec of the membrane: one msgpack map per message ⇄ the frozen dataclasses of ``messages``.

    {v: 1, kind: "Verdict", cell: "mast_cell", inc: 3, body: {…}}      and  stream: 7  on a batch that wants credit

Unknown kinds and unknown fields are ignored and counted, so that cells of two versions can meet; everything else that
is wrong raises ``DecodeError`` and nothing else, whatever the bytes are. Types are strict, bounds are those declared
with the message, and a float that is not finite is refused: no handler expects one.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from actors.core import lifecycle
from actors.core.errors import DecodeError, Refused
from actors.core.messages import KINDS, Message

VERSION = 1
#: Bigger things travel as a file, a map or a row, and are announced.
SIZE_LIMIT = 128 * 1024
_DEPTH_LIMIT = 16

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()
assert lifecycle.Birth.__name__ in KINDS  # the tissue's own kinds are declared before the first frame arrives


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded frame. ``message`` is None when the kind is unknown here. stream 0: no credit is wanted."""

    kind: str
    cell: str
    incarnation: int
    message: Message | None
    stream: int = 0


def encode(message: Message, cell: str, incarnation: int, stream: int = 0) -> bytes:
    """Bytes for the wire. Raises Refused when the message is larger than 128 KB or holds what msgpack cannot carry."""
    kind = type(message).__name__
    frame = {"v": VERSION, "kind": kind, "cell": cell, "inc": incarnation, "body": message}
    if stream:
        frame["stream"] = stream
    try:
        data = _encoder.encode(frame)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise Refused(
            f"cannot send {kind}: {exc}", remedy="send plain values: text, numbers, bytes, lists, maps"
        ) from exc
    if len(data) > SIZE_LIMIT:
        raise Refused(
            f"cannot send {kind}: {len(data)} bytes, the limit is {SIZE_LIMIT}",
            remedy="ask for a part of it (limit, after), or let it travel as a file",
        )
    return data


def decode(data: bytes, counters: Counter[str] | None = None) -> Envelope:
    """The message in these bytes. Raises DecodeError, only that, for whatever is not one.

    counters: gets ``unknown_kinds`` and ``unknown_fields``."""
    if len(data) > SIZE_LIMIT:
        raise DecodeError(f"a frame of {len(data)} bytes is above the limit of {SIZE_LIMIT}")
    try:
        frame = _decoder.decode(data)
        _check_plain(frame)
        return _open(frame, counters)
    except DecodeError:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError) as exc:
        raise DecodeError(f"not a message of ours: {str(exc)[:200]}") from None


def _open(frame: Any, counters: Counter[str] | None) -> Envelope:
    if not isinstance(frame, dict):
        raise DecodeError("a frame must be a map")
    if frame.get("v") != VERSION:
        raise DecodeError(f"version {str(frame.get('v'))[:20]} is not spoken here, only {VERSION}")
    kind, cell, incarnation = frame.get("kind"), frame.get("cell"), frame.get("inc")
    stream, body = frame.get("stream", 0), frame.get("body")
    if not (isinstance(kind, str) and isinstance(cell, str) and len(cell) <= 32 and isinstance(body, dict)):
        raise DecodeError("a frame needs kind and cell as text and body as a map")
    if type(incarnation) is not int or type(stream) is not int or incarnation < 0 or stream < 0:
        raise DecodeError("inc and stream must be natural numbers")
    declared = KINDS.get(kind)
    if declared is None:
        _count(counters, "unknown_kinds", 1)
        return Envelope(kind[:64], cell, incarnation, None, stream)
    known = declared.__dataclass_fields__
    _count(counters, "unknown_fields", sum(1 for name in body if name not in known) + len(frame.keys() - _FRAME_FIELDS))
    return Envelope(kind, cell, incarnation, msgspec.convert(body, declared), stream)


_FRAME_FIELDS = {"v", "kind", "cell", "inc", "body", "stream"}


def _count(counters: Counter[str] | None, name: str, amount: int) -> None:
    if counters is not None and amount:
        counters[name] += amount


def _check_plain(root: Any) -> None:
    """Refuse depth beyond 16, non-finite floats, msgpack extensions and map keys that are not text."""
    level = [root]
    for _ in range(_DEPTH_LIMIT):
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                if not all(type(key) is str for key in value):
                    raise DecodeError("map keys must be text")
                below.extend(value.values())
            elif type(value) is list:
                below.extend(value)
            elif type(value) is float:
                if not math.isfinite(value):
                    raise DecodeError("a number must be finite")
            elif type(value) not in _SCALARS:
                raise DecodeError(f"{type(value).__name__} is not a plain value")
        if not below:
            return
        level = below
    raise DecodeError("nested too deeply")


_SCALARS = {str, int, bool, bytes, type(None)}
