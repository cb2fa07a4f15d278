"""The words of the command line: durations, times, addresses, exit codes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.admin import render_bans, words
from actors.admin.bans import canonical
from actors.admin.render import screen
from actors.admin.session import Exit, absent

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("9s", 9), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400), (" 5 ", 5), ("1h1s", 3601)],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert words.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "-5", "soon", "5 minutes", "1e3", "366d", "٣", "1.5h", "5mm", "99999999999"]
)
def test_what_is_no_duration_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|between"):
        words.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0, "0s"),
        (0.25, "0.2s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (59.6, "1m"),
        (250, "4m 10s"),
        (3600, "1h"),
        (3605, "1h"),
        (273_600, "3d 4h"),
    ],
)
def test_durations_are_shown_in_at_most_two_parts(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@given(st.floats(min_value=10, max_value=3e7))
def test_a_shown_duration_reads_back_as_nearly_the_same(seconds: float) -> None:
    again = words.parse_duration(words.duration(seconds))

    assert abs(again - seconds) <= max(1.0, seconds / 24)


def test_time_left_counts_from_now_and_has_words_for_its_ends() -> None:
    assert words.remaining(1250.0, 1000.0) == "4m 10s"
    assert words.remaining(999.0, 1000.0) == "expired"
    assert words.remaining(0.0) == "until released"


def test_time_past_counts_from_now_and_has_words_for_its_ends() -> None:
    assert words.ago(750.0, 1000.0) == "4m 10s ago"
    assert words.ago(999.9, 1000.0) == "just now"
    assert words.ago(0.0) == "never"


def test_numbers_are_counted_in_groups() -> None:
    assert words.plural(1, "address", "addresses") == "1 address"
    assert words.plural(1_234_567, "address", "addresses") == "1,234,567 addresses"


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7/32", "198.51.100.7"),
        ("198.51.100.9/24", "198.51.100.0/24"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("2001:db8::/64", "2001:db8::/64"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
    ],
)
def test_addresses_are_written_as_the_cells_write_them(text: str, subject: str) -> None:
    assert canonical(text) == subject


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    try:
        subject = canonical(text)
    except ValueError as error:
        assert "is no IPv4 or IPv6 address" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert canonical(subject) == subject


def test_a_missing_part_is_told_from_one_that_is_there() -> None:
    assert absent(None)
    assert absent({"problem": "merkel is down", "remedy": ""})
    assert not absent({"problem": "", "loaded": True})
    assert not absent([])


def test_exit_codes_are_those_of_the_manual() -> None:
    assert {code.name: int(code) for code in Exit} == {
        "OK": 0,
        "ERROR": 1,
        "USAGE": 2,
        "NOT_FOUND": 3,
        "PRIVILEGE": 4,
        "UNREACHABLE": 5,
        "DEGRADED": 6,
        "CONFIG": 78,
    }


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ({"proofs": {"xdp": {"state": "proven"}, "nft": {"state": "proven"}}}, "● nft ● xdp"),
        ({"proofs": {"xdp": {"state": "missing"}}}, "✕ xdp missing"),
        ({"proofs": {"nft": {"state": "pending"}}}, "◌ nft pending"),
        ({"proofs": {}}, "✕ no layer"),
        ({"enforced": False, "proofs": {}}, "not enforced"),
    ],
)
def test_a_block_says_which_layer_of_the_kernel_has_proved_it(block: dict[str, object], shown: str) -> None:
    assert render_bans.proven(block).plain == shown


def test_colour_is_off_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen().print("[bold red]x[/]")

    assert capsys.readouterr().out == "x\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('fastapi', 'numpy', 'pyroute2', 'thespian', 'uvicorn', 'pydantic', 'httpx2', 'structlog')"
        " if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert ast.literal_eval(done.stdout.splitlines()[-1]) == []
    for verb in ("status", "cells", "posture", "block", "why", "doctor", "lab", "config"):
        assert verb in done.stdout
