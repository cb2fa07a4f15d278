"""The nftables table as text, and what a transaction says."""

import pytest

from actors.epidermis.ruleset import (
    SETS,
    AddElements,
    Element,
    Layout,
    PutElements,
    RefillSet,
    RemoveElements,
    ReplaceRules,
    ReplaceTable,
    declaration,
    render,
    shape,
)

LAYOUT = Layout("teg", "balanced", (22,), (443, 80), ("eth0",))


def test_every_set_has_a_twin_of_the_other_family() -> None:
    families = {name.replace("6_64", "").replace("4_24", "").rstrip("46") for name in SETS}

    counts = {stem: sum(name.startswith(stem) for name in SETS) for stem in families}

    assert all(count % 2 == 0 for count in counts.values())


def test_a_whole_table_is_deleted_and_made_in_the_same_transaction() -> None:
    text = render([ReplaceTable(LAYOUT, {"bans4": [Element("192.0.2.1", 1.5)]})])

    lines = text.splitlines()
    assert lines[:2] == ["add table inet teg", "delete table inet teg"]
    assert lines[-1] == "add element inet teg bans4 { 192.0.2.1 timeout 1500ms }"


def test_a_posture_changes_rules_and_no_set() -> None:
    text = render([ReplaceRules(LAYOUT)])

    assert text.startswith("flush table inet teg\n")
    assert "set " not in text


def test_explore_has_no_rule_that_drops() -> None:
    text = declaration(Layout("teg", "explore", (22,), (80,), ("eth0",)))

    assert " drop" not in text
    assert 'counter name "would_ban" return' in text


@pytest.mark.parametrize("posture", ["balanced", "hardened", "lockdown"])
def test_established_connections_and_management_pass_before_any_posture_rule(posture: str) -> None:
    lines = shape(declaration(Layout("teg", posture, (22, 2222), (80,), ("eth0",))))  # type: ignore[arg-type]

    entry = lines.index("chain input {")
    rules = lines[entry : lines.index("}", entry)]
    assert rules.index("ct state established,related accept") < rules.index("jump posture")
    assert rules.index("tcp dport { 22, 2222 } accept") < rules.index("jump posture")


def test_a_refreshed_ban_is_removed_and_put_again_so_that_its_time_is_new_on_every_kernel() -> None:
    text = render([PutElements("teg", "bans6", [Element("2001:db8::1", 60)])])

    assert [line.split()[0] for line in text.splitlines()] == ["add", "delete", "add"]
    assert text.endswith("timeout 60000ms }\n")


def test_removing_adds_first_so_that_an_absent_element_is_no_error() -> None:
    text = render([RemoveElements("teg", "bans4", ["192.0.2.1"])])

    assert [line.split()[0] for line in text.splitlines()] == ["add", "delete"]


def test_many_elements_are_cut_into_lines_and_none_is_lost() -> None:
    keys = [f"10.{i >> 8}.{i & 255}.1" for i in range(2_500)]

    text = render([AddElements("teg", "bans4", [Element(key) for key in keys])])

    assert len(text.splitlines()) == 3
    assert [key for line in text.splitlines() for key in line.split("{ ")[1].rstrip(" }").split(", ")] == keys


def test_an_emptied_set_is_only_flushed() -> None:
    assert render([RefillSet("teg", "tolerated4", [])]) == "flush set inet teg tolerated4\n"


@pytest.mark.parametrize("name", ['eth0" accept', "a b", "x/y", "", "a234567890123456", "eth0\nflush"])
def test_a_name_that_no_interface_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        Layout("teg", interfaces=(name,))


def test_a_ban_of_less_than_a_millisecond_is_still_a_ban() -> None:
    assert "timeout 1ms" in render([AddElements("teg", "bans4", [Element("192.0.2.1", 0.0001)])])
