"""The kernel's totals on /metrics: read from pinned counters, without any cell that would have to be alive."""

from pathlib import Path

import pytest

from actors.hypodermis.gateway.counters import KernelTotals
from tests.support.netns import pins

pytestmark = pytest.mark.kernel


def test_the_totals_are_those_of_the_kernel_program() -> None:
    from bpf.program import Build, open_program

    with pins() as directory:
        program = open_program(Build(), directory)
        try:
            totals = KernelTotals(directory)
            assert totals.open(patience_s=0.0)

            families = {family.name: family for family in totals.families()}
        finally:
            program.close()

    packets = families["packets"]
    assert packets.labels == ("reason", "outcome")
    assert {outcome for _, outcome in packets.samples} == {"passed", "dropped", "observed"}
    assert set(packets.samples) == set(families["bytes"].samples)
    assert sum(packets.samples.values()) == 0
    assert families["kernel_events"].samples


def test_without_a_kernel_program_there_are_no_totals_and_no_error(tmp_path: Path) -> None:
    totals = KernelTotals(tmp_path)

    assert not totals.open(patience_s=0.0)
    assert totals.families() == []


def test_a_file_that_is_no_map_is_no_error_either(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "stats").write_text("no map")
    totals = KernelTotals(tmp_path)

    assert not totals.open(patience_s=0.0)
    assert totals.families() == []
