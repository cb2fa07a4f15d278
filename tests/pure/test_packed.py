"""Rows of subjects: the same names in and out, and one kind of error for everything else."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core import packed
from actors.core.errors import Refused
from actors.hypodermis.fences import Fences
from actors.hypodermis.subjects import Prefix, parse_prefix, unpack

prefixes = st.one_of(
    st.builds(
        lambda value, length: Prefix(4, value, 32).widened(length), st.integers(0, 2**32 - 1), st.integers(0, 32)
    ),
    st.builds(
        lambda value, length: parse_prefix(Prefix(6, value, 128).widened(length).text),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@given(st.lists(prefixes, max_size=20))
def test_rows_hold_what_was_put_into_them(wanted):
    rows = b"".join(prefix.row for prefix in wanted)

    assert packed.unpack(rows) == [prefix.text for prefix in wanted]
    assert packed.pack(prefix.text for prefix in wanted) == rows
    assert unpack(rows) == wanted
    assert packed.count(rows) == len(wanted)


@given(st.binary(max_size=80))
def test_whatever_the_bytes_are_they_are_rows_or_refused(data):
    try:
        texts = packed.unpack(data)
    except ValueError:
        with pytest.raises(Refused):
            unpack(data)
        return

    assert [parse_prefix(text) for text in texts] == unpack(data)


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4/8", "1.2.3.4/33", "::1/0", "fe80::1%eth0", "x" * 400, "1.2.3.4\0"]
)
def test_what_is_no_canonical_subject_is_no_row(text):
    with pytest.raises(ValueError):
        packed.row(text)


@given(st.lists(prefixes, max_size=12), st.lists(prefixes, max_size=12))
def test_a_fence_doubts_whatever_touches_it(ranges, subjects):
    doubted = set(Fences(ranges).doubtful(subjects))

    for subject in subjects:
        touches = any(
            ipaddress.ip_network(subject.text).overlaps(ipaddress.ip_network(r.text))
            for r in ranges
            if r.version == subject.version
        )
        assert subject in doubted or not touches
