"""The bearer token: made once, readable by root alone, refused when it is not what it should be."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.core.errors import Unavailable
from actors.hypodermis.gateway.token import FILE_NAME, matches, read_or_make


def test_the_first_start_makes_a_token_only_its_owner_reads(tmp_path: Path) -> None:
    token = read_or_make(tmp_path / "state")

    path = tmp_path / "state" / FILE_NAME
    assert len(token) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "state") == [FILE_NAME]


def test_a_later_start_keeps_the_token(tmp_path: Path) -> None:
    assert read_or_make(tmp_path) == read_or_make(tmp_path)


def test_makers_at_the_same_time_agree_on_one_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda _: read_or_make(tmp_path), range(32)))

    assert len(set(tokens)) == 1
    assert os.listdir(tmp_path) == [FILE_NAME]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o660])
def test_a_token_that_others_may_read_is_not_used(tmp_path: Path, mode: int) -> None:
    read_or_make(tmp_path)
    (tmp_path / FILE_NAME).chmod(mode)

    with pytest.raises(Unavailable, match="read by others") as caught:
        read_or_make(tmp_path)

    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "\n", "short", "x" * 600, "ü" * 40, "a" * 40 + "\x07" + "a" * 40])
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    (tmp_path / FILE_NAME).chmod(0o600)

    with pytest.raises(Unavailable, match="holds no token"):
        read_or_make(tmp_path)


def test_a_link_in_place_of_the_token_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("x" * 40)
    elsewhere.chmod(0o600)
    (tmp_path / FILE_NAME).symlink_to(elsewhere)

    with pytest.raises(Unavailable):
        read_or_make(tmp_path)


def test_a_directory_that_cannot_be_made_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(Unavailable) as caught:
        read_or_make(tmp_path / "file" / "state")

    assert caught.value.remedy


@pytest.mark.parametrize("presented", ["", "a", "ü", "\udcff", "x" * 100_000])
def test_what_is_not_the_token_does_not_match(presented: str) -> None:
    assert not matches(presented, "the-token")
    assert matches("the-token", "the-token")


def test_nothing_matches_a_token_that_is_not_there() -> None:
    assert not matches("", "")
    assert not matches("x", "")
