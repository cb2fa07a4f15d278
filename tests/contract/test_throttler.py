"""The throttler in this process: what it tells the kernel's cell, what it answers; a real Redis that comes and goes."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.core.errors import Refused
from actors.core.messages import Ask, CellState, KernelCounters, SetBudgets, SpentElsewhere
from actors.hypodermis import throttler
from actors.hypodermis.control import Reading
from actors.hypodermis.throttler import Throttler
from config.settings import RedisSettings, Settings, ThrottlerSettings
from tests.support.core import Dish
from tests.support.redis import redis_server


@pytest.fixture(autouse=True)
def no_wait_for_a_kernel_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttler, "PATIENCE_S", 0.0)


def start(home: Path, **sections: Any) -> Dish:
    dish = Dish(Throttler, Settings(state_dir=home, bpf_dir=home / "bpf", **sections), name="throttler", start=False)
    dish.cell.before_drop()
    dish.cell.begin()
    dish.peer("reflex_arc", SetBudgets, SpentElsewhere)
    return dish


@pytest.fixture
def dish(tmp_path: Path) -> Iterator[Dish]:
    made = start(tmp_path)
    yield made
    made.stop()


def play(dish: Dish, seconds: int, pps: int, **levels: float) -> None:
    """As if so many seconds passed with readings like these."""
    cell: Any = dish.cell
    cell._test_at = getattr(cell, "_test_at", time.monotonic())
    cell._test_packets = getattr(cell, "_test_packets", 0)
    for _ in range(seconds):
        cell._test_at += 1
        cell._test_packets += pps
        reading = Reading(at_s=cell._test_at, packets=cell._test_packets, **levels)
        cell._gauges.read = lambda now, packets, reading=reading: reading
        cell._tick()


def test_under_strain_tighter_budgets_are_wished_and_in_calm_the_configured_ones(dish: Dish) -> None:
    play(dish, 20, 500)
    quiet = dish.sent(SetBudgets)
    play(dish, 8, 50_000, softirq=0.9)
    tight = [message.scale for message in dish.sent(SetBudgets)]
    play(dish, 25, 500)
    after = [message.scale for message in dish.sent(SetBudgets)]

    assert quiet == []
    assert tight == sorted(tight, reverse=True)
    assert tight[-1] == 0.25
    assert after[-1] == 1.0
    assert dish.ask("throttle.status")["scale"] == 1.0


def test_a_kernel_cell_that_comes_back_hears_the_wish_again(dish: Dish) -> None:
    play(dish, 20, 500)
    play(dish, 8, 50_000, softirq=0.9)
    dish.peer("reflex_arc", up=False)
    before = len(dish.sent(SetBudgets))

    dish.peer("reflex_arc", SetBudgets, SpentElsewhere, incarnation=2)

    assert [message.scale for message in dish.sent(SetBudgets)[before:]] == [0.25]


def test_tight_budgets_are_repeated_before_they_lapse(dish: Dish, monkeypatch: pytest.MonkeyPatch) -> None:
    play(dish, 20, 500)
    play(dish, 10, 50_000, softirq=0.9)
    told = len(dish.sent(SetBudgets))
    monkeypatch.setattr(throttler, "REPEAT_S", 0.0)

    play(dish, 2, 50_000, softirq=0.9)

    assert [message.scale for message in dish.sent(SetBudgets)[told:]] == [0.25, 0.25]
    assert throttler.VALID_S >= 3 * 10.0


def test_switched_off_it_never_tightens(tmp_path: Path) -> None:
    dish = start(tmp_path, throttler=ThrottlerSettings(adapt=False))

    play(dish, 20, 500)
    play(dish, 8, 50_000, softirq=0.9)

    assert dish.sent(SetBudgets) == []
    assert "never adapted" in dish.ask("throttle.status")["why"]
    dish.stop()


def test_the_kernel_programs_counters_are_believed_from_its_cell_only(dish: Dish) -> None:
    counters = KernelCounters(packets={"clean": 7, "budget_syn": 5}, bytes={}, rung="native", at_ns=1)
    dish.peer("gateway")

    dish.give(counters, "gateway")
    lied = dish.cell._kernel_packets  # type: ignore[attr-defined]
    dish.give(counters, "reflex_arc")

    assert lied is None
    assert dish.cell._kernel_packets == 12  # type: ignore[attr-defined]
    assert dish.cell.counters["bad_input"] == 1


def test_questions_of_other_cells_are_answered(dish: Dish) -> None:
    answers = [dish.ask("ratelimit.take", {"key": "a", "limit": 2, "per_s": 3600}) for _ in range(3)]

    assert [answer["allowed"] for answer in answers] == [True, True, False]
    assert answers[2]["retry_after_s"] > 1000
    assert answers[0]["shared"] is False


@pytest.mark.parametrize(
    "args",
    [{}, {"key": ""}, {"key": 5}, {"key": "k" * 257}, {"key": "a", "limit": 0}, {"key": "a", "limit": "9"},
     {"key": "a", "per_s": 1e9}, {"key": "a", "cost": 0}, {"key": "a", "cost": True},
     {"key": "a", "limit": 2, "cost": 3}, {"key": "a", "burst": -1}, {"key": "a", "limit": 2.5}],
    ids=str,
)  # fmt: skip
def test_questions_without_sense_are_refused_in_words(dish: Dish, args: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        dish.ask("ratelimit.take", args)


def test_without_redis_it_is_well_and_says_that_limits_hold_here_alone(dish: Dish) -> None:
    report = dish.last_report()

    assert report.state is CellState.HEALTHY
    assert "no Redis is configured" in report.reason
    assert dish.ask("throttle.status")["redis"] == "not configured"


def test_a_redis_that_goes_degrades_it_in_words_and_its_return_heals_it(tmp_path: Path) -> None:
    with redis_server() as server:
        dish = start(tmp_path, redis=RedisSettings(url=server.url))
        cell: Any = dish.cell
        cell._usage = Heavy({"total 203.0.113.7": 900})
        assert dish.run_until(lambda: cell.state is CellState.HEALTHY, 5)
        shared = dish.ask("ratelimit.take", {"key": "a", "limit": 10, "per_s": 3600})
        server.kill()

        assert dish.run_until(lambda: cell.state is CellState.DEGRADED, 5)
        report = dish.last_report()
        alone = dish.ask("ratelimit.take", {"key": "b", "limit": 10, "per_s": 3600})
        server.start()

        assert dish.run_until(lambda: cell.state is CellState.HEALTHY, 10)
        dish.stop()

    assert shared["shared"]
    assert "on this node alone" in report.reason
    assert report.remedy
    assert alone["allowed"]
    assert not alone["shared"]


class Heavy:
    """A flow table in which the same sources send the same again and again."""

    def __init__(self, told: dict[str, int]) -> None:
        self.told = told

    def look(self, now_ns: int, least: Any) -> dict[str, int]:
        return dict(self.told)


def test_what_a_source_sends_to_one_node_is_charged_on_the_other(tmp_path: Path) -> None:
    with redis_server() as server:
        dishes = [start(tmp_path, redis=RedisSettings(url=server.url)) for _ in range(2)]
        for dish, packets in zip(dishes, (900, 300), strict=True):
            dish.cell._usage = Heavy({"total 203.0.113.7": packets})  # type: ignore[attr-defined]

        for _ in range(3):
            for dish in dishes:
                dish.cell._tick()  # type: ignore[attr-defined]
                assert dish.run_until(lambda dish=dish: not dish.cell._exchanging, 5)

        left, right = ([spent for m in dish.sent(SpentElsewhere) for spent in m.sources] for dish in dishes)
        for dish in dishes:
            dish.stop()

    assert {(spent.subject, spent.budget) for spent in left + right} == {("203.0.113.7", "total")}
    assert {spent.packets for spent in left} == {300}
    assert {spent.packets for spent in right} == {900}


def test_without_the_flow_table_it_is_degraded_and_looks_again_when_the_kernels_cell_comes(tmp_path: Path) -> None:
    with redis_server() as server:
        dish = start(tmp_path, redis=RedisSettings(url=server.url))
        dish.peer("basal_layer", answers=("cell.restart",))
        dish.run_until(lambda: not dish.cell._exchanging, 5)  # type: ignore[attr-defined]
        report = dish.last_report()
        dish.peer("reflex_arc", up=False)
        dish.peer("reflex_arc", SetBudgets, SpentElsewhere, incarnation=2)
        dish.stop()

    assert report.state is CellState.DEGRADED
    assert "flow table" in report.reason
    assert [ask.verb for ask in dish.sent(Ask)] == ["cell.restart"]


def test_a_mistake_in_its_settings_shows(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, problems={"throttler": "throttler.floor: 7 is too much"})
    dish = Dish(Throttler, settings, name="throttler")

    assert dish.last_report().state is CellState.DEGRADED
    assert "floor" in dish.last_report().reason
    dish.stop()
