"""Everything is killed while a banned source keeps sending: the acceptance scenario, judged by its own criteria."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_nothing_passes_and_everything_returns_in_its_time_whoever_is_killed():
    command = [sys.executable, "run.py", "lab", "kill-cells", "--json"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)

    told = json.loads(done.stdout)
    failed = [row["text"] for row in told["timeline"] if row["event"] == "criterion" and not row["ok"]]
    assert failed == [], [row["text"] for row in told["timeline"] if row["event"] == "death"]
    assert told["leaked"] == 0 < told["sent"]
    assert told["innocent"]["lost"] == 0
    assert done.returncode == 0
