"""Lists that come in parts: whole or not at all, and never more than there is room for."""

import pytest

from actors.core.errors import Refused
from actors.hypodermis.long_lists import KEPT_S, LISTS, LongLists, name_of
from actors.hypodermis.subjects import Prefix


def hosts(first, count):
    return [Prefix(4, first + number, 32) for number in range(count)]


def test_parts_become_one_list_with_each_subject_once():
    lists = LongLists(100)

    lists.add("a", hosts(1, 10), 0.0)
    kept = lists.add("a", hosts(6, 10), 1.0)

    assert kept == 15
    assert "a" in lists
    assert lists.take("a") == hosts(1, 15)
    assert "a" not in lists


def test_a_list_longer_than_there_can_be_bans_is_refused():
    lists = LongLists(12)
    lists.add("a", hosts(1, 10), 0.0)

    with pytest.raises(Refused, match="nothing was changed"):
        lists.add("a", hosts(11, 3), 0.0)


def test_few_lists_arrive_at_a_time_and_one_that_is_not_finished_is_forgotten():
    lists = LongLists(100)
    for number in range(LISTS):
        lists.add(f"list {number}", hosts(1, 1), float(number))

    with pytest.raises(Refused, match="other long lists"):
        lists.add("one more", hosts(1, 1), float(LISTS))

    lists.add("one more", hosts(1, 1), KEPT_S + 0.5)
    assert "list 0" not in lists
    assert "list 1" in lists


@pytest.mark.parametrize("name", ["", 7, b"x", "x" * 65, ["x"]])
def test_a_list_is_named_by_a_short_text(name):
    with pytest.raises(Refused):
        name_of(name)


def test_a_wish_in_one_piece_names_no_list():
    assert name_of(None) == ""
