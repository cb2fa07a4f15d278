"""Patient attacks in the lab with the real service: caught with a reason, the innocent untouched."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]
ROOT = Path(__file__).resolve().parents[2]
REASONS = {
    "slow-scan": "slow port scan: touched 12 ports of",
    # The rule speaks from five sources on; eight attack, so a ninth would be somebody innocent.
    "distributed-scan": "distributed port scan: one of [5-8] sources that together touched",
    "brute-force": "brute force against ssh:",
}
FAMILY = {"slow-scan": "6", "distributed-scan": "both", "brute-force": "4"}


@pytest.fixture(scope="module")
def played() -> dict[str, dict]:
    """The three at once; how fast the innocent is answered then says nothing, that he is says all."""
    command = [sys.executable, "run.py", "lab", "--json"]
    running = {
        name: subprocess.Popen(
            [*command, name, "--family", FAMILY[name]],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in REASONS
    }
    try:
        return {name: json.loads(one.communicate(timeout=120)[0]) for name, one in running.items()}
    finally:
        for one in running.values():
            one.kill()
            one.wait()


@pytest.mark.parametrize("name", REASONS)
def test_a_patient_attack_is_caught_with_a_reason_and_the_innocent_untouched(name, played):
    told = played[name]

    failed = [row for row in told["timeline"] if row["event"] == "criterion" and not row["ok"]]
    # three labs share the processors: how fast the innocent was answered says nothing here, that he was, says all
    assert [row["text"] for row in failed if not row.get("timed")] == []
    bans = [row["text"] for row in told["timeline"] if row["event"] == "ban"]
    assert bans
    others = [text for text in bans if not re.search(REASONS[name], text)]
    assert others == []
    assert told["innocent"]["lost"] == 0 < told["innocent"]["sent"]
    assert told["leaked"] == 0
