"""The reflex arc with BCC as its loader: compiled in a thread while the filter cell protects, and told as it is."""

from pathlib import Path

import pytest

from actors.core.messages import CellState, Enforce, HookWanted
from bpf import bcc_loader
from bpf.bcc_loader import BccUnusable
from tests.kernel.test_reflex_arc_cell import home, net, order, proven, start
from tests.support.bcc import needs_bcc
from tests.support.nft import Wire

__all__ = ["home", "net"]
pytestmark = [pytest.mark.kernel, needs_bcc]


def test_while_bcc_compiles_the_filter_protects_and_then_the_program_does(net: Wire, home: Path) -> None:
    dish = start(home, loader="bcc")
    try:
        at_first = dish.last_report()
        hooks_at_first = dish.sent(HookWanted, "keratinocyte")[-1].interfaces
        assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY, 60)
        dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
        assert dish.run_until(lambda: proven(dish, net.peer4))
        status = dish.ask("reflex.status")

        assert at_first.state is CellState.DEGRADED
        assert "BCC compiles the kernel program" in at_first.reason
        assert hooks_at_first == ["node0"]
        assert dish.sent(HookWanted, "keratinocyte")[-1].interfaces == []
        assert status["interfaces"]["node0"]["rung"] == "native"
        assert (status["loader"], status["loader_reason"]) == ("bcc", "the setting reflex.loader wants it")
        assert list(status["left_out"]) == ["syn_cookies"]
        assert not net.reaches_node(net.peer4)
    finally:
        dish.stop()


def test_what_bcc_cannot_do_is_told_and_not_tried_again_at_once(
    net: Wire, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken(*_arguments: object) -> None:
        tried.append(1)
        raise BccUnusable("BCC did not bring the program into the kernel: error: no such thing")

    monkeypatch.setattr(bcc_loader, "compile_apart", broken)
    monkeypatch.setenv("TEGUMENTAR_BPF_OBJECT", "/nonexistent/object")
    dish = start(home)
    try:
        assert dish.run_until(lambda: "no such thing" in dish.last_report().reason, 20)
        report = dish.last_report()
        dish.cell._open()  # type: ignore[attr-defined]
        dish.run(0.3)

        assert report.state is CellState.DEGRADED
        assert "it was tried because the compiled kernel program is not at /nonexistent/object" in report.reason
        assert report.remedy == bcc_loader.REMEDY
        assert dish.last_report().reason == report.reason
        assert tried == [1]
    finally:
        dish.stop()
