"""The blocklist as text comes from a cell without privileges: every line is checked."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.errors import Refused
from actors.epidermis.prefix_file import parse_prefixes, read_prefix_file


def test_lines_are_sorted_by_family_and_kind() -> None:
    lists = parse_prefixes("# feed\n192.0.2.1\n198.51.100.0/24\n2001:db8::1\n2001:db8::/32\n\n192.0.2.2/32\n", 100)

    assert lists.feeds4 == ["192.0.2.1", "192.0.2.2"]
    assert lists.feed_nets4 == ["198.51.100.0/24"]
    assert lists.feeds6 == ["2001:db8::1"]
    assert lists.feed_nets6 == ["2001:db8::/32"]


@pytest.mark.parametrize(
    "line",
    [
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/7",
        "1.2.3.4 }",
        "1.2.3.4, 5.6.7.8",
        "1.2.3.4/24",
        "1.2.3",
        "999.1.1.1",
        "::g",
        "a",
        "1.2.3.4;",
    ],
)
def test_a_line_that_is_no_entry_is_named_and_the_file_refused(line: str) -> None:
    with pytest.raises(Refused, match="line 2"):
        parse_prefixes(f"192.0.2.1\n{line}\n", 100)


def test_more_than_the_limit_is_refused_with_the_way_out() -> None:
    with pytest.raises(Refused, match="more than the 2 entries") as caught:
        parse_prefixes("192.0.2.1\n192.0.2.2\n192.0.2.3\n", 2)

    assert "max_elements" in caught.value.remedy


def test_a_missing_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_prefix_file(tmp_path / "absent", 10)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "feed").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(Refused):
        read_prefix_file(tmp_path / "feed", 10)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused_and_nothing_else_can_reach_nft(text: str) -> None:
    try:
        lists = parse_prefixes(text, 10)
    except Refused:
        return
    assert all(set(key) <= set("0123456789abcdef.:/") for _, keys in lists.items() for key in keys)
