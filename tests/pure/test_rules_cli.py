"""``rules check FILE``: a person learns what is wrong with a file, with no service running."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rules(*argv):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "rules", *argv], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


def test_good_and_bad_rules_are_told_apart_with_line_and_reason(tmp_path):
    book = tmp_path / "local.rules"
    good = 'alert tcp any any -> any any (content:"[x]"; sid:1;)'
    bad = "alert tcp any any -> any any ([y]:1; sid:2;)"
    book.write_text(f"{good}\n{bad}\n")

    done = rules("check", str(book), str(ROOT / "config" / "signatures" / "web.yaml"))

    assert done.returncode == 1
    assert "skipped: local.rules line 2, sid 2: the option '[y]' is not supported" in done.stdout
    assert ", 1 rules" in done.stdout


def test_a_clean_file_ends_with_zero_and_json_is_one_document():
    done = rules("check", str(ROOT / "config" / "signatures" / "services.yaml"), "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []


def test_wrong_usage_is_a_sentence():
    done = rules("burn")

    assert done.returncode == 2
    assert "rules can be listed, checked and reloaded" in done.stderr
