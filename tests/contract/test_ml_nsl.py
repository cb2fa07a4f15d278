"""The flow head on NSL-KDD: the table is read or refused in words, and the head is better than chance on it."""

from itertools import islice
from pathlib import Path

import pytest

from ml.nsl_kdd import TEST, TRAIN, evaluate, main
from tests.support.shared import shared_data

ROW = ",".join(["0", "tcp", "http", "SF", *["1"] * 37, "normal", "21"])


def some_lines(source: Path, target: Path, step: int, count: int) -> None:
    with source.open() as lines:
        target.write_text("".join(islice(lines, 0, step * count, step)))


@pytest.mark.shared_data
def test_the_flow_head_finds_most_attacks_of_a_part_of_the_table(tmp_path):
    some_lines(shared_data("flows", TRAIN), tmp_path / TRAIN, 2, 12_000)
    some_lines(shared_data("flows", TEST), tmp_path / TEST, 10, 2_000)

    found = evaluate(tmp_path, epochs=20)

    assert found["flow head"]["auc"] > 0.9
    assert found["flow head"]["tpr_1e-2"] > 0.3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        ("1,2,3\n", "line 1 has 3 columns"),
        ("\xff\n", "cannot read"),
        (f"{ROW}\n{ROW.replace('0,tcp', 'many,tcp')}\n{ROW}\n", "hold numbers"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_in_words(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / TRAIN).write_text(content, encoding="latin-1")
        (tmp_path / TEST).write_text(f"{ROW}\n")

    code = main([str(tmp_path)])

    said = capsys.readouterr().err
    assert code == 1
    assert words in said
    assert "Traceback" not in said
