"""The lab judges what it sees: it fails a node that nobody protects and passes one that plain nft protects."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from actors.admin.lab.net import BPFFS, NETNS_DIR
from actors.admin.lab.runner import play
from actors.admin.lab.stage import Options
from tests.support.lab_stubs import Guard, Nobody

pytestmark = [pytest.mark.system, pytest.mark.kernel, pytest.mark.timed]


def traces() -> list[str]:
    """What labs of this process left on the machine."""
    mine = f"tglab-{os.getpid()}-*"
    return [str(path) for place in (NETNS_DIR, BPFFS, Path("/tmp")) for path in place.glob(mine)]


def test_an_unprotected_node_fails_and_every_packet_is_called_a_leak():
    options = Options(families=(4,), seconds=1.0, rate=5_000)

    report, _ = play("syn-flood", options, Console(file=io.StringIO()), quiet=True, protect=Nobody)

    assert not report.ok
    assert report.reaction_ms is None
    assert report.leaked == report.sent > 4_000
    assert report.dropped == {}
    assert traces() == []


def test_a_node_that_plain_nft_protects_passes_and_the_figures_add_up():
    options = Options(families=(4, 6), seconds=1.0)

    report, timeline = play("syn-flood", options, Console(file=io.StringIO()), quiet=True, protect=Guard)

    assert [criterion.sentence for criterion in report.criteria if not criterion.held and not criterion.timed] == []
    passed = report.sent - sum(report.dropped.values())
    assert 2 * 400 <= passed <= 2 * 500, "the budget of the hand-made table: a burst of 400, refilled by 200 a second"
    assert report.innocent is not None
    assert report.innocent.sent > 100
    assert {row["event"] for row in timeline.rows()} >= {"ready", "attack", "ban", "reaction", "sample", "criterion"}
    assert traces() == []


def test_an_error_in_the_middle_clears_the_stage_and_is_told_in_words():
    class Broken(Guard):
        def ask(self, verb, **args):
            if verb == "posture.set":
                return super().ask("no such verb")
            return super().ask(verb, **args)

    report, _ = play("posture", Options(families=(4,)), Console(file=io.StringIO()), quiet=True, protect=Broken)

    assert not report.ok
    assert "does not know no such verb" in report.criteria[-1][0]
    assert traces() == []
