"""The codec: what goes in comes out, and whatever else comes in raises DecodeError and nothing else."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.core.codec import SIZE_LIMIT, Envelope, decode, encode
from actors.core.errors import DecodeError, Refused
from actors.core.lifecycle import Introduction, Introductions
from actors.core.messages import (
    KINDS,
    Action,
    Answer,
    Ask,
    CellReport,
    CellState,
    Enforce,
    FeedCompiled,
    Message,
    Order,
    Posture,
    PostureChanged,
    Record,
    ReflexEvent,
    ReflexEvents,
    Verdict,
)

VERDICT = Verdict(subject="203.0.113.7", action=Action.BAN, reason="syn flood", origin="mast_cell", seen_unix_s=1.5)
SAMPLES: tuple[Message, ...] = (
    VERDICT,
    Ask(id=1, verb="posture.set", args={"posture": "lockdown", "list": [1, 2.5, None, True, b"\x00"]}, by="cli"),
    Answer(id=1, value={"nested": [{"deep": "é"}]}),
    CellReport(cell="merkel", state=CellState.DEGRADED, reason="no counters", counters={"a": 1}, gauges={"b": 0.5}),
    Enforce(orders=[Order(subject="::1", action=Action.THROTTLE, until_unix_s=0.0, reason="r")], generation=4),
    PostureChanged(posture=Posture.LOCKDOWN, previous=Posture.BALANCED, since_unix_s=1.0),
    ReflexEvents(events=[ReflexEvent(subject="10.0.0.1", reflex="syn", banned=True, seen_unix_s=2.0)], lost=3),
    Introductions(rows=[Introduction(cell="merkel", state=CellState.HEALTHY, incarnation=2, up=True, socket="ab12")]),
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=20,
)


def pack(**frame: Any) -> bytes:
    return msgspec.msgpack.encode({"v": 1, "kind": "Verdict", "cell": "mast_cell", "inc": 1, "body": {}} | frame)


def body_of(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(message)
    return body


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    data = encode(message, "merkel", 7, stream=2)

    assert decode(data) == Envelope(type(message).__name__, "merkel", 7, message, 2)


@given(st.binary(max_size=2000))
@example(b"")
@example(b"\xc1")
@example(b"\x80")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\x91" * 1999)
@example(b"\x81" * 1999)
@example(b"\xc7\x00\x01")
def test_random_bytes_raise_only_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(data)


@given(plain)
def test_any_value_that_is_no_frame_raises_only_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError):
        decode(msgspec.msgpack.encode(value))


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(SAMPLES),
    st.dictionaries(st.text(max_size=12), plain, max_size=3),
    st.dictionaries(st.sampled_from(["v", "kind", "cell", "inc", "body", "stream"]), plain, max_size=2),
)
def test_damaged_frames_of_every_kind_raise_only_decode_error(
    kind: str, sample: Message, extra: dict[str, Any], damage: dict[str, Any]
) -> None:
    frame = {"v": 1, "kind": kind, "cell": "c", "inc": 1, "body": body_of(sample) | extra} | damage

    try:
        envelope = decode(msgspec.msgpack.encode(frame))
    except DecodeError:
        return

    assert envelope.message is None or isinstance(envelope.message, Message)


@given(st.sampled_from(SAMPLES), st.data())
def test_a_frame_with_flipped_bytes_raises_only_decode_error(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message, "merkel", 1))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DecodeError):
        decode(bytes(frame))


def test_unknown_kinds_and_fields_are_ignored_and_counted() -> None:
    counters: Counter[str] = Counter()

    unknown = decode(pack(kind="FromTheFuture", body={"x": 1}), counters)
    extended = decode(pack(body=body_of(VERDICT) | {"new": 1, "newer": 2}, trace="abc"), counters)

    assert unknown.message is None
    assert extended.message == VERDICT
    assert counters == {"unknown_kinds": 1, "unknown_fields": 3}


@pytest.mark.parametrize(
    "change",
    [
        {"subject": 7},
        {"subject": "x" * 50},
        {"action": "destroy"},
        {"score": 1.01},
        {"score": -0.1},
        {"score": math.nan},
        {"seen_unix_s": math.inf},
        {"ttl_s": -1.0},
        {"origin": "Not A Name"},
        {"score": "1"},
        {"reason": None},
        {"reason": "x" * 201},
    ],
    ids=str,
)
def test_types_and_bounds_are_those_declared(change: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(pack(body=body_of(VERDICT) | change))


def test_a_missing_field_is_no_message() -> None:
    body = body_of(VERDICT)
    del body["subject"]

    with pytest.raises(DecodeError, match="subject"):
        decode(pack(body=body))


@pytest.mark.parametrize(
    "change", [{"v": 2}, {"v": "1"}, {"inc": -1}, {"inc": True}, {"cell": "x" * 33}, {"stream": -1}], ids=str
)
def test_a_wrong_envelope_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(pack(**({"body": body_of(VERDICT)} | change)))


def test_a_batch_over_its_limit_is_refused() -> None:
    order = msgspec.to_builtins(Order(subject="::1", action=Action.BAN, until_unix_s=0.0, reason=""))

    with pytest.raises(DecodeError):
        decode(pack(kind="Enforce", body={"orders": [order] * 201, "generation": 1}))


def test_what_is_too_large_is_refused_on_both_sides() -> None:
    with pytest.raises(Refused, match="limit is 131072"):
        encode(Answer(id=1, value="x" * SIZE_LIMIT), "a", 1)
    with pytest.raises(DecodeError, match="above the limit"):
        decode(b"\x81" + b"\xa1v" * SIZE_LIMIT)


def test_what_msgpack_cannot_carry_is_refused_by_the_sender() -> None:
    with pytest.raises(Refused, match="cannot send Answer"):
        encode(Answer(id=1, value=object()), "a", 1)


def test_nesting_is_bounded() -> None:
    deep: Any = 1
    for _ in range(20):
        deep = [deep]

    with pytest.raises(DecodeError, match="deep"):
        decode(encode(Answer(id=1, value=deep), "a", 1))


def test_every_declared_kind_is_known_by_its_class_name() -> None:
    assert {FeedCompiled.__name__, Record.__name__, "Hello", "Introductions"} <= set(KINDS)
    assert all(name == kind.__name__ for name, kind in KINDS.items())
