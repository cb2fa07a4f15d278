"""The reflex arc with BCC as its loader: compiled in a thread while the filter cell protects, and told as it is."""

import ipaddress
from pathlib import Path

import numpy as np
import pytest

from actors.core.messages import CellState, Enforce, FeedCompiled, HookWanted, Posture, PostureChanged
from actors.epidermis import prefixes
from actors.epidermis.blocklist import compile4
from bpf import bcc_loader
from bpf.bcc_loader import BccUnusable
from bpf.blocklist_image import Image, write_image
from tests.kernel.test_reflex_arc_cell import arc, home, net, order, proven, start
from tests.support.bcc import forget_types, needs_bcc
from tests.support.nft import Wire

__all__ = ["forget_types", "home", "net"]
pytestmark = [pytest.mark.kernel, needs_bcc]


def test_while_bcc_compiles_the_filter_protects_and_then_the_program_does(
    net: Wire, home: Path, tmp_path: Path
) -> None:
    listed = prefixes.from_networks(4, [ipaddress.ip_network("198.51.100.0/24")])
    write_image(tmp_path / "four", compile4(listed, np.zeros(1, np.uint8)))
    write_image(tmp_path / "six", Image(6, 0, np.zeros((0, 4096), np.uint8)))
    feeds = FeedCompiled(
        generation=1, snapshot=str(tmp_path / "four"), snapshot6=str(tmp_path / "six"), prefixes="", entries_v4=1,
        entries_v6=0, classes=["test"],
    )  # fmt: skip
    dish = start(home, loader="bcc")
    try:
        dish.peer("melanocyte")
        dish.give(feeds, "melanocyte")
        dish.give(PostureChanged(posture=Posture.HARDENED, previous=Posture.BALANCED, since_unix_s=0.0), "permeability")
        at_first = dish.last_report()
        hooks_at_first = dish.sent(HookWanted, "keratinocyte")[-1].interfaces
        assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY, 60)
        dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
        assert dish.run_until(lambda: proven(dish, net.peer4))
        status = dish.ask("reflex.status")
        blocked = dish.run_until(lambda: dish.ask("reflex.explain", {"address": "198.51.100.9"})["drop"], 10)

        assert at_first.state is CellState.DEGRADED
        assert "BCC compiles the kernel program" in at_first.reason
        assert hooks_at_first == ["node0"]
        assert dish.sent(HookWanted, "keratinocyte")[-1].interfaces == []
        assert status["interfaces"]["node0"]["rung"] == "native"
        assert (status["loader"], status["loader_reason"]) == ("bcc", "the setting reflex.loader wants it")
        assert status["left_out"] == {}
        assert not net.reaches_node(net.peer4)
        assert blocked
        assert arc(dish).plane.knobs["posture"] == 2  # type: ignore[union-attr]
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
