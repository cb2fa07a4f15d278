"""The enforcing cells over filters and data planes in memory that fail when told to: degraded, never wedged."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.core.errors import ToolFailed, Unavailable
from actors.core.messages import (
    Action,
    CellState,
    Enforce,
    EnforceAll,
    FeedCompiled,
    HookAnswered,
    HookWanted,
    Order,
    Posture,
    PostureChanged,
    Proved,
    Release,
    SetTolerance,
)
from actors.epidermis import filter_watch, keratinocyte
from actors.epidermis.keratinocyte import Keratinocyte
from actors.epidermis.nft_fake import FakeFilter
from config.settings import KeratinocyteSettings, Settings
from tests.support.core import Dish

SETTINGS = Settings(interfaces=("lo",), keratinocyte=KeratinocyteSettings(max_elements=1024))
TABLE = SETTINGS.keratinocyte.table


@pytest.fixture
def filter_(monkeypatch: pytest.MonkeyPatch) -> FakeFilter:
    made = FakeFilter(time.monotonic)
    monkeypatch.setattr(keratinocyte, "RETRY_FIRST_S", 0.02)
    monkeypatch.setattr(keratinocyte, "WATCH_EVERY_S", 0.05)
    monkeypatch.setattr(filter_watch, "REST_S", (0.0, 0.1))
    return made


@pytest.fixture
def dish(filter_: FakeFilter) -> Iterator[Dish]:
    made = over(filter_)
    yield made
    made.stop()


def over(filter_: FakeFilter) -> Dish:
    class OverFake(Keratinocyte):
        make_filter = staticmethod(lambda: filter_)

    dish = Dish(OverFake, SETTINGS, name="keratinocyte")
    dish.peer("permeability", Proved)
    dish.peer("reflex_arc", HookAnswered)
    dish.peer("melanocyte")
    return dish


def cell(dish: Dish) -> Keratinocyte:
    assert isinstance(dish.cell, Keratinocyte)
    return dish.cell


def at_rest(dish: Dish) -> bool:
    return cell(dish).plan.idle and not cell(dish)._busy


def order(subject: str) -> Order:
    return Order(subject=subject, action=Action.BAN, until_unix_s=0.0, reason="test")


def enforced(dish: Dish, filter_: FakeFilter, address: str, limit_s: float = 3.0) -> bool:
    return dish.run_until(lambda: filter_.held(TABLE, "bans4", address) is not None, limit_s)


def drive(dish: Dish, path: Path) -> None:
    """One of everything that permeability says."""
    path.write_bytes(msgspec.msgpack.encode([order("192.0.2.1")]))
    dish.give(EnforceAll(path=str(path), count=1, generation=1), "permeability")
    dish.give(SetTolerance(prefixes=["198.51.100.0/24"], generation=1), "permeability")
    changed = PostureChanged(posture=Posture.HARDENED, previous=Posture.BALANCED, since_unix_s=0)
    dish.give(changed, "permeability")
    dish.give(Enforce(orders=[order("192.0.2.2")], generation=2), "permeability")
    dish.run(0.01)
    dish.give(Enforce(orders=[order("192.0.2.3"), order("10.0.0.0/8")], generation=3), "permeability")
    dish.give(Release(subjects=["192.0.2.2"], generation=4), "permeability")


@pytest.mark.parametrize("call", range(1, 6))
def test_whichever_transaction_fails_the_end_is_as_desired(
    dish: Dish, filter_: FakeFilter, tmp_path: Path, call: int
) -> None:
    real, calls = filter_.apply, 0

    def failing(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise ToolFailed("nft did not finish within 5 s and was ended")
        real(*args)

    filter_.apply = failing  # type: ignore[method-assign]
    drive(dish, tmp_path / "orders")

    assert enforced(dish, filter_, "192.0.2.3")
    assert dish.run_until(lambda: at_rest(dish) and dish.cell.state is CellState.HEALTHY, 3.0)
    assert filter_.held(TABLE, "bans4", "192.0.2.1")
    assert not filter_.held(TABLE, "bans4", "192.0.2.2")
    assert filter_.held(TABLE, "banned_nets4", "10.1.1.1")
    assert filter_.held(TABLE, "tolerated4", "198.51.100.1")


def test_while_nft_refuses_everything_the_cell_is_degraded_and_recovers_by_itself(
    dish: Dish, filter_: FakeFilter
) -> None:
    filter_.fail_next = [ToolFailed("no", remedy="look")] * 3
    dish.give(Enforce(orders=[order("192.0.2.1")], generation=1), "permeability")

    assert dish.run_until(lambda: dish.cell.state is CellState.DEGRADED)
    assert enforced(dish, filter_, "192.0.2.1")
    assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY)


def test_without_nft_the_cell_is_off_with_reason_and_remedy_and_takes_orders_all_the_same() -> None:
    class Absent(Keratinocyte):
        @staticmethod
        def make_filter() -> FakeFilter:
            raise Unavailable("there is no nft program on this host", remedy="install the Debian package nftables")

    dish = Dish(Absent, SETTINGS, name="keratinocyte")
    dish.peer("permeability", Proved)
    dish.peer("reflex_arc", HookAnswered)
    dish.give(Enforce(orders=[order("192.0.2.1")], generation=1), "permeability")
    dish.give(HookWanted(interfaces=["lo"]), "reflex_arc")

    assert dish.cell.state is CellState.OFF
    assert dish.last_report().remedy == "install the Debian package nftables"
    assert dish.sent(HookAnswered, "reflex_arc")[-1].prerouting is False
    assert dish.sent(Proved) == []
    assert dish.ask("nft.status")["bans"] == 0
    with pytest.raises(Unavailable):
        dish.ask("nft.explain", {"address": "192.0.2.1"})
    dish.stop()


def test_nft_that_goes_away_and_comes_back_is_taken_up_again(
    dish: Dish, filter_: FakeFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keratinocyte, "RETRY_CAP_S", 0.05)
    filter_.fail_next = [Unavailable("nft cannot be started", remedy="install the Debian package nftables")]
    dish.give(Enforce(orders=[order("192.0.2.1")], generation=1), "permeability")

    assert dish.run_until(lambda: dish.cell.state is CellState.OFF)
    assert enforced(dish, filter_, "192.0.2.1")
    assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY)


def test_a_deleted_table_is_made_again_with_everything_in_it(dish: Dish, filter_: FakeFilter, tmp_path: Path) -> None:
    drive(dish, tmp_path / "orders")
    assert enforced(dish, filter_, "192.0.2.3")
    assert dish.run_until(lambda: at_rest(dish))

    filter_.tamper(TABLE)

    assert enforced(dish, filter_, "192.0.2.3")
    assert filter_.held(TABLE, "tolerated4", "198.51.100.1")
    assert dish.cell.counters["repairs"] == 1


def test_an_ingress_hook_that_nft_refuses_is_given_up_and_told_with_the_reason(dish: Dish, filter_: FakeFilter) -> None:
    filter_.fail_next = [ToolFailed("no such device")]
    dish.give(HookWanted(interfaces=["lo"]), "reflex_arc")

    assert dish.run_until(lambda: bool(dish.sent(HookAnswered)) and dish.sent(HookAnswered)[-1].refused != {})
    assert dish.sent(HookAnswered)[-1].refused == {"lo": "no such device"}
    assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY)


def test_a_list_too_large_for_nftables_is_no_fault_while_the_kernel_program_carries_it(
    dish: Dish, tmp_path: Path
) -> None:
    path = tmp_path / "feed"
    path.write_text("".join(f"192.0.{n >> 8}.{n & 255}\n" for n in range(1025)))
    told = FeedCompiled(generation=1, snapshot="", snapshot6="", prefixes=str(path), entries_v4=1025, entries_v6=0)

    dish.give(told, "melanocyte")
    assert dish.run_until(lambda: "kernel program" in dish.last_report().reason)
    assert dish.cell.state is CellState.HEALTHY

    dish.give(HookWanted(interfaces=["lo"]), "reflex_arc")
    assert dish.run_until(lambda: dish.cell.state is CellState.DEGRADED)


@pytest.mark.parametrize("raw", [b"", b"\x91\x01", b"garbage", b"\xdd\xff\xff\xff\xff"])
def test_a_damaged_file_of_orders_is_refused_and_counted(dish: Dish, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "orders").write_bytes(raw)

    dish.give(EnforceAll(path=str(tmp_path / "orders"), count=3, generation=1), "permeability")

    assert dish.run_until(lambda: dish.cell.counters["desired_state_refused"] == 1)
    assert dish.crashed is None


def test_subjects_and_prefixes_that_are_none_are_counted_and_nothing_breaks(dish: Dish, filter_: FakeFilter) -> None:
    dish.give(Enforce(orders=[order("nonsense"), order("192.0.2.1")], generation=1), "permeability")
    dish.give(Release(subjects=["1.2.3.4/77"], generation=2), "permeability")
    dish.give(SetTolerance(prefixes=["::/300"], generation=3), "permeability")

    assert enforced(dish, filter_, "192.0.2.1")
    assert dish.cell.counters["bad_input"] == 3
