"""The bench suite: its arithmetic, and a smoke run of measurements through the real programs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as suite
from bench.claims import Claim, as_markdown, as_text, median_net
from bench.promises import claims_of

ROOT = Path(__file__).resolve().parents[2]


def claim(**fields: object) -> Claim:
    usual = {"what": "it", "entries": 10, "ours": 2.0, "unit": "ns/packet"}
    return Claim(**{**usual, **fields})  # type: ignore[arg-type]


def test_a_ratio_is_ours_divided_by_the_peers() -> None:
    assert claim(peer="them", theirs=8.0).ratio == 0.25


def test_a_promise_is_about_the_ratio_where_there_is_a_peer_and_about_the_value_where_there_is_none() -> None:
    assert claim(theirs=8.0, limit=0.3).kept is True
    assert claim(theirs=4.0, limit=0.3).kept is False
    assert claim(limit=2.0).kept is True
    assert claim(limit=3.0, more_is_better=True).kept is False
    assert claim().kept is None


def test_the_median_is_net_of_the_harness_and_never_nothing() -> None:
    assert median_net([50.0, 40.0, 900.0], [30.0, 31.0, 10.0]) == 20.0
    assert median_net([10.0], [30.0]) == 0.5


def test_a_promise_that_is_not_kept_is_shouted_in_both_tables() -> None:
    broken = claim(theirs=4.0, peer="them", limit=0.3)

    assert "NOT KEPT" in as_text([broken])
    assert "NOT KEPT" in as_markdown([broken])


def test_figures_of_a_script_without_claims_are_held_against_what_was_promised() -> None:
    fast, slow = (
        claims_of("signatures_speed", '{"engine": "x", "mb_per_s": 900.0, "ratio": 3}'),
        claims_of("signatures_speed", '{"mb_per_s": 20}'),
    )

    assert [(one.what, one.kept) for one in fast] == [("mb per s", True), ("ratio", None)]
    assert [one.kept for one in slow] == [False]
    assert claims_of("signatures_speed", "no figures today") == []


def test_a_script_that_fails_is_quoted_without_places_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "bench"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "broken.py").write_text('"""It breaks."""\nraise OSError(__file__ + " is on fire")\n')
    (package / "sound.py").write_text('"""It works."""\nprint(\'{"speed": 5}\')  # "--json"\n')
    monkeypatch.setattr(suite, "HERE", package)

    outcomes = [suite.run_script(name, quick=True) for name in ("broken", "sound")]
    suite.write(outcomes, tmp_path / "results", quick=False)

    assert [outcome.failed for outcome in outcomes] == [True, False]
    assert [claim.ours for claim in outcomes[1].claims] == [5.0]
    table = (tmp_path / "results" / "results.md").read_text()
    assert "Failed: broken." in table
    assert "is on fire" in table
    assert str(tmp_path) not in table


@pytest.mark.kernel
def test_a_smoke_run_measures_and_leaves_a_table_and_a_plot(tmp_path: Path) -> None:
    only = ["--only", "syn_cookie", "--only", "bans", "--only", "pipeline", "--only", "wire"]
    argv = [sys.executable, "-m", "bench", "--quick", *only, "--results", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)

    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "results.md").read_text()
    assert "A smoke run" in table
    assert "a SYN answered with a cookie" in table
    assert "nft synproxy" in table
    assert "established flows left" in table
    assert "veth, blocked, native, with the wire" in table
    assert (tmp_path / "syn_cookie.png").stat().st_size > 1000


@pytest.mark.kernel
def test_a_script_writes_its_claims_for_machines(tmp_path: Path) -> None:
    target = tmp_path / "claims.json"
    argv = [sys.executable, "-m", "bench.events", "--quick", "--json", str(target)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stderr
    claims = [Claim(**row) for row in json.loads(target.read_text())]
    assert all(math.isfinite(each.ours) for each in claims)
    lost = {each.what: each for each in claims}["events neither read nor counted as lost"]
    assert lost.ours == 0


@pytest.mark.kernel
def test_a_script_that_fails_is_told_and_fails_the_whole(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "--quick", "--only", "nonsense", "--results", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "nonsense" in done.stderr
