"""The reflex arc over a data plane in memory whose calls fail one after another: degraded, never wedged."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

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
    ReflexEvents,
    Release,
    SetTolerance,
)
from actors.epidermis import ban_keeper, reflex_arc
from actors.epidermis.reflex_arc import ReflexArc
from bpf.dataplane import DataPlaneError, Rung
from bpf.fake import FakePlane
from config.settings import Settings
from tests.support.core import Dish

SETTINGS = Settings(interfaces=("lo",))


class Plane(FakePlane):
    """``fails`` names a method and how many of its next calls fail."""

    def __init__(self) -> None:
        super().__init__({"lo": tuple(Rung)})
        self.fails: dict[str, int] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("fails", "events", "samples", "flows") or not callable(found) or name.startswith("_"):
            return found
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            return _failing
        return found

    def detached_by_others(self, interface: str) -> None:
        self._attached.pop(interface)

    def taken_off_by_others(self, interface: str) -> None:
        self._egress.pop(interface)


def _failing(*args: Any, **named: Any) -> Any:
    raise DataPlaneError("the kernel said no", errno=12, remedy="free some memory")


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Plane:
    monkeypatch.setattr(ban_keeper, "COMPARE_EVERY_S", 0.6)
    monkeypatch.setattr(reflex_arc, "REOPEN_EVERY_S", 0.1)
    return Plane()


@pytest.fixture
def dish(plane: Plane) -> Iterator[Dish]:
    made = over(lambda settings, policy: plane)
    yield made
    made.stop()


def over(make: Callable[[Any, Any], Any]) -> Dish:
    class OverFake(ReflexArc):
        make_plane = staticmethod(make)

    dish = Dish(OverFake, SETTINGS, name="reflex_arc")
    dish.peer("permeability", Proved, ReflexEvents)
    dish.peer("keratinocyte", HookWanted)
    dish.peer("melanocyte")
    return dish


def order(subject: str) -> Order:
    return Order(subject=subject, action=Action.BAN, until_unix_s=0.0, reason="test")


def banned(plane: Plane) -> set[str]:
    return {ban.subject for ban in plane.bans()}


def test_where_the_program_hangs_no_more_what_leaves_is_left_alone(dish: Dish, plane: Plane) -> None:
    assert plane.egress() == {"lo": "tcx"}
    plane.interfaces["lo"] = ()
    plane.detached_by_others("lo")

    assert dish.run_until(lambda: dish.ask("reflex.status")["flows"]["lo"]["sides"] == "none", 5.0)
    assert dish.run_until(lambda: plane.egress() == {}, 5.0)


@pytest.mark.parametrize("method", ["account_egress", "egress"])
def test_a_failure_to_account_what_leaves_costs_no_rung(dish: Dish, plane: Plane, method: str) -> None:
    plane.taken_off_by_others("lo")
    plane.fails = {method: 1}

    assert dish.run_until(lambda: plane.fails[method] == 0, 5.0)

    assert dish.ask("reflex.status")["interfaces"]["lo"]["rung"] == "native"
    assert dish.cell.counters["falls"] == 0


@pytest.mark.parametrize("method", ["ban", "release", "prove", "bans", "counters", "attachments", "tolerate"])
def test_whichever_call_fails_the_table_ends_as_desired(dish: Dish, plane: Plane, tmp_path: Path, method: str) -> None:
    path = tmp_path / "orders"
    path.write_bytes(msgspec.msgpack.encode([order("192.0.2.1")]))
    plane.fails = {method: 2}

    dish.give(EnforceAll(path=str(path), count=1, generation=1), "permeability")
    dish.give(Enforce(orders=[order("192.0.2.2"), order("10.0.0.0/8")], generation=2), "permeability")
    dish.give(Release(subjects=["192.0.2.2"], generation=3), "permeability")
    dish.give(SetTolerance(prefixes=["198.51.100.0/24"], generation=3), "permeability")

    def as_desired() -> bool:
        bans = {ban.subject for ban in FakePlane.bans(plane)}
        return bans == {"192.0.2.1", "10.0.0.0/8"} and FakePlane.tolerated(plane) == ["198.51.100.0/24"]

    assert dish.run_until(lambda: as_desired() and not any(plane.fails.values()), 8.0)
    assert dish.crashed is None


def test_a_deleted_ban_is_restored_and_the_loss_is_told(dish: Dish, plane: Plane) -> None:
    dish.give(Enforce(orders=[order("192.0.2.1")], generation=1), "permeability")
    dish.run(0.1)

    plane.forget("192.0.2.1")

    assert dish.run_until(lambda: dish.cell.counters["repairs"] == 1, 4.0)
    assert dish.run_until(lambda: banned(plane) == {"192.0.2.1"})
    dish.run(0.2)
    words = [p.holds for m in dish.sent(Proved, "permeability") for p in m.proofs if p.subject == "192.0.2.1"]
    assert words[0] is True
    assert words[-1] is True


def test_a_plane_that_cannot_be_made_is_tried_again_until_it_can() -> None:
    made, calls = Plane(), 0

    def late(settings: Any, policy: Any) -> Plane:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise DataPlaneError("not allowed: CAP_BPF is needed", remedy="run as root")
        return made

    reflex_arc.REOPEN_EVERY_S, before = 0.05, reflex_arc.REOPEN_EVERY_S
    dish = over(late)
    try:
        assert dish.cell.state is CellState.DEGRADED
        assert "CAP_BPF" in dish.last_report().reason
        dish.give(Enforce(orders=[order("192.0.2.1")], generation=1), "permeability")
        dish.give(HookAnswered(interfaces=["lo"], prerouting=True), "keratinocyte")
        assert dish.ask("reflex.status")["interfaces"]["lo"]["rung"] == "nft_ingress"

        assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY, 8.0)
        assert dish.run_until(lambda: banned(made) == {"192.0.2.1"}, 4.0)
        assert dish.sent(HookWanted, "keratinocyte")[-1].interfaces == []
    finally:
        reflex_arc.REOPEN_EVERY_S = before
        dish.stop()


def test_a_blocklist_that_cannot_be_published_degrades_the_cell_with_the_reason(dish: Dish, plane: Plane) -> None:
    plane.fails = {"publish": 1}
    told = FeedCompiled(generation=1, snapshot="/absent", snapshot6="", prefixes="", entries_v4=1, entries_v6=0)

    dish.give(told, "melanocyte")

    assert dish.run_until(lambda: dish.cell.state is CellState.DEGRADED)
    assert "the kernel said no" in dish.last_report().reason


def test_explore_reaches_the_program_at_once(dish: Dish, plane: Plane) -> None:
    changed = PostureChanged(posture=Posture.EXPLORE, previous=Posture.BALANCED, since_unix_s=time.time())

    dish.give(changed, "permeability")

    assert plane.policy.stance == "observe"
