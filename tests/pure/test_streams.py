"""Reassembly: whatever the order, the cut and the repetition, the same bytes; bounded; conflicts seen both ways."""

from hypothesis import given
from hypothesis import strategies as st

from actors.dermis.inspection.streams import Counts, Flows, Limits, Side

SEQ = 4_294_967_000  # close below the wrap of sequence numbers
TEXT = bytes(range(1, 200))


def a_side(**limits):
    return Side(Limits(**limits), Counts())


def whole(side):
    return [bytes(run.first) for run in side.runs]


@st.composite
def segments(draw):
    """TEXT in pieces that overlap, repeat and come in any order, and cover it all."""
    cuts = sorted(draw(st.sets(st.integers(1, len(TEXT) - 1), max_size=15)))
    bounds = list(zip([0, *cuts], [*cuts, len(TEXT)], strict=True))
    extra = draw(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(1, 40)), max_size=5))
    pieces = [(a, TEXT[a:b]) for a, b in bounds] + [(a, TEXT[a : a + n]) for a, n in extra]
    return draw(st.permutations(pieces))


@given(segments(), st.booleans())
def test_any_order_overlap_and_repetition_gives_the_same_bytes(pieces, with_syn):
    side = a_side()
    if with_syn:
        side.start((SEQ - 1) % 2**32)

    for offset, data in pieces:
        side.add((SEQ + offset) % 2**32, data)

    assert whole(side) == [TEXT]
    assert side.runs[0].last is None


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=60))
def test_no_segments_whatever_break_the_bounds(pieces):
    side = a_side(side_bytes=1_000, runs=4)

    for seq, data in pieces:
        side.add(seq, data)

    assert len(side.runs) <= 4
    assert all(before.end < after.offset for before, after in zip(side.runs, side.runs[1:], strict=False))
    assert sum(len(run.first) for run in side.runs) <= 2_000


def test_byte_by_byte_equals_all_at_once():
    once, slowly = a_side(), a_side()

    once.add(SEQ, TEXT)
    fresh = [slowly.add((SEQ + at) % 2**32, TEXT[at : at + 1]) for at in range(len(TEXT))]

    assert whole(slowly) == whole(once)
    assert b"".join(growth.fresh or b"\1" for growth in fresh) == TEXT


def test_two_copies_that_differ_are_both_readings():
    side = a_side()
    side.add(100, b"GET /in")

    side.add(105, b"EVIL")

    assert list(side.runs[0].readings()) == [b"GET /inIL", b"GET /EVIL"]
    assert side.counts.conflicts == 1


def test_a_retransmission_brings_nothing():
    side = a_side()
    side.add(100, b"abcdef")

    assert side.add(100, b"abcdef") is None
    assert side.add(102, b"cd") is None


def test_a_gap_that_is_never_filled_parts_two_runs():
    side = a_side()

    side.add(100, b"abc")
    side.add(200, b"xyz")

    assert whole(side) == [b"abc", b"xyz"]


def test_bytes_before_the_syn_and_beyond_the_limit_are_left_out():
    side = a_side(side_bytes=10)
    side.start(99)

    side.add(95, b"-----hello")
    side.add(105, b"world, and more")

    assert whole(side) == [b"helloworld"]
    assert side.counts.beyond_side == 10


def test_the_longest_silent_flow_leaves_first_and_is_told():
    ended = []
    flows = Flows(Limits(flows=2), make=lambda key: key.upper(), ended=lambda key, what: ended.append((key, what)))
    flows.at("a", 1.0)
    flows.at("b", 2.0)
    flows.at("a", 3.0)

    flows.at("c", 4.0)

    assert ended == [("b", "B")]
    assert flows.counts.evicted_flows == 1


def test_all_flows_together_stay_below_their_limit():
    flows = Flows(Limits(total_bytes=10_000), make=lambda key: key, ended=lambda key, what: None)

    for number in range(100):
        flows.at(number, float(number))
        flows.add(number, 0, 1, b"x" * 1_000)

    assert flows.bytes <= 10_000
    assert len(flows) == 10


def test_flows_that_fell_silent_end():
    ended = []
    flows = Flows(Limits(idle_s=60.0), make=lambda key: key, ended=lambda key, what: ended.append(key))
    flows.at("old", 0.0)
    flows.at("young", 50.0)

    assert flows.expire(100.0) == 1
    assert ended == ["old"]
