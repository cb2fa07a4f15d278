"""Merkel in this process: which counters it feels, whom it tells, and what it says without the kernel program."""

import time

import pytest

from actors.core.messages import CellReport, CellState, KernelCounters, Qualia
from actors.dermis.merkel import Merkel
from config.settings import Settings
from tests.support.core import Dish

NET_DEV = "head\nhead\n  eth0: 1000 {} 0 0 0 0 0 0 10 5 0 0 0 0 0 0\n"


@pytest.fixture
def dish(tmp_path, monkeypatch):
    table = tmp_path / "dev"
    table.write_text(NET_DEV.format(0))
    monkeypatch.setattr(Merkel, "net_dev", table)
    dish = Dish(Merkel, Settings(), name="merkel")
    dish.peer("gateway", Qualia)
    yield dish
    dish.stop()


def counters(at_s, **packets):
    return KernelCounters(packets=packets, bytes={}, rung="native", at_ns=int(at_s * 1e9))


def feel_kernel(dish, seconds, **pps):
    start = time.monotonic()
    for second in range(seconds + 1):
        dish.give(counters(start + second, **{name: rate * second for name, rate in pps.items()}), "reflex_arc")


def test_pressure_and_pain_come_from_the_kernel_program(dish):
    dish.peer("reflex_arc")

    feel_kernel(dish, 60, clean=9_000, budget_syn=1_000)
    felt = dish.ask("qualia")

    assert felt["from"] == "kernel program"
    assert felt["pain"]["value"] == pytest.approx(0.1, abs=0.01)
    assert felt["pressure"]["raw"] == pytest.approx(10_000, rel=0.02)
    assert felt["temperature"]["value"] == 0.0


def test_the_counters_of_the_kernel_program_are_told(dish):
    assert dish.ask("counters")["packets"] == {}
    dish.peer("reflex_arc")

    dish.give(counters(1.0, clean=7), "reflex_arc")

    assert dish.ask("counters")["packets"] == {"clean": 7}


def test_without_the_kernel_program_the_interfaces_are_felt_and_pain_is_unknown(dish):
    dish.cell.net_dev.write_text(NET_DEV.format(500))
    dish.run(1.2)

    felt = dish.ask("qualia")

    assert felt["from"] == "interfaces"
    assert felt["pressure"]["raw"] > 0
    assert "unknown" in felt["pain"]["unit"]


def test_counters_from_another_cell_are_not_believed(dish):
    dish.peer("macrophage")

    dish.give(counters(1.0, clean=7), "macrophage")

    assert dish.ask("counters")["packets"] == {}
    assert dish.cell.counters["bad_input"] == 1


def test_integrity_follows_the_reports_and_the_deaths_of_cells(dish):
    dish.peer("reflex_arc")
    dish.peer("keratinocyte")
    whole = dish.ask("qualia")["integrity"]

    dish.give(CellReport(cell="keratinocyte", state=CellState.DEGRADED, reason="x", remedy="y"), "keratinocyte")
    assert whole["value"] == 1.0
    assert dish.ask("qualia")["integrity"]["raw"] == whole["raw"] - 1

    dish.peer("reflex_arc", up=False)

    assert dish.ask("qualia")["integrity"]["raw"] == whole["raw"] - 2
    assert dish.ask("qualia")["integrity"]["unit"] == whole["unit"]


def test_a_cell_cannot_speak_for_another(dish):
    dish.peer("reflex_arc")

    dish.give(CellReport(cell="gateway", state=CellState.DOWN), "reflex_arc")

    assert dish.ask("qualia")["integrity"]["value"] == 1.0


def test_nothing_is_told_while_nothing_moves(dish):
    dish.run(0.05)
    before = len(dish.sent(Qualia, "gateway"))

    dish.run(2.2)

    assert len(dish.sent(Qualia, "gateway")) <= before + 1
