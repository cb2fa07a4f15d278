"""The measurements with a live node or a live flood, in a smoke run: they work, and an absolute promise holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]


def claims_of(name: str, target: Path, **env: str) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", f"bench.{name}", "--quick", "--json", str(target)]
    subprocess.run(
        argv, cwd=ROOT, check=True, capture_output=True, timeout=120, env={"PATH": "/usr/sbin:/usr/bin", **env}
    )
    found: list[dict[str, Any]] = json.loads(target.read_text())
    return found


def test_a_replaced_program_lets_nothing_through_and_one_that_is_hung_anew_does(tmp_path: Path) -> None:
    claims = [claim for claim in claims_of("replacement", tmp_path / "claims.json") if "through" in claim["what"]]

    assert len(claims) == 2
    assert [claim["ours"] for claim in claims] == [0, 0]
    assert all(claim["theirs"] > 0 for claim in claims)


def test_without_crowdsecs_bouncer_the_others_are_measured_and_its_absence_is_said(tmp_path: Path) -> None:
    claims = claims_of("crowdsec_bouncer", tmp_path / "claims.json", TEGUMENTAR_BENCH_BOUNCER="/nonexistent/bouncer")

    assert ["nft" in claims[0]["peer"], "ipset" in claims[1]["peer"]] == [True, True]
    assert all(0 < claim["ours"] < 60 for claim in claims)
    assert claims[2]["theirs"] is None
    assert "is not here" in claims[2]["peer"]
