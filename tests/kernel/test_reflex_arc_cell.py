"""The reflex arc over the real kernel program, in a namespace of its own, with packets on a veth pair."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.core.messages import (
    Action,
    CellState,
    Enforce,
    EnforceAll,
    EnforceMany,
    HookAnswered,
    HookWanted,
    KernelCounters,
    Order,
    Posture,
    PostureChanged,
    Proved,
    ReflexEvents,
    Release,
    SetTolerance,
)
from actors.core.packed import pack
from actors.epidermis.reflex_arc import ReflexArc
from bpf.dataplane import Ban, DataPlane, DataPlaneError
from bpf.egress import EgressHooks
from bpf.libbpf import KernelRefused, get_pinned, link_detach
from config.settings import ReflexSettings, Settings
from tests.support.core import Dish
from tests.support.netns import pins
from tests.support.nft import Wire, inside, wire

pytestmark = pytest.mark.kernel

LISTENS = (Proved, ReflexEvents, HookAnswered, KernelCounters)


@pytest.fixture
def net() -> Iterator[Wire]:
    with wire() as made, inside(made.node):
        yield made


@pytest.fixture
def home() -> Iterator[Path]:
    with pins() as directory:
        yield directory


@pytest.fixture
def dish(net: Wire, home: Path) -> Iterator[Dish]:
    made = start(home)
    yield made
    made.stop()


def start(home: Path, factory: type[ReflexArc] = ReflexArc, **reflex: Any) -> Dish:
    settings = Settings(interfaces=("node0",), bpf_dir=home, reflex=ReflexSettings(**reflex))
    dish = Dish(factory, settings, name="reflex_arc")
    dish.peer("permeability", *LISTENS)
    dish.peer("keratinocyte", HookWanted)
    return dish


def arc(dish: Dish) -> ReflexArc:
    cell = dish.cell
    assert isinstance(cell, ReflexArc)
    return cell


def plane(dish: Dish) -> DataPlane:
    found = arc(dish).plane
    assert found is not None
    return found


def order(subject: str, ttl_s: float = 0.0) -> Order:
    until = time.time() + ttl_s if ttl_s else 0.0
    return Order(subject=subject, action=Action.BAN, until_unix_s=until, reason="test")


def everything(dish: Dish, orders: list[Order], path: Path, generation: int = 1) -> None:
    path.write_bytes(msgspec.msgpack.encode(orders))
    dish.give(EnforceAll(path=str(path), count=len(orders), generation=generation), "permeability")


def proven(dish: Dish, subject: str) -> bool:
    proofs = [p for m in dish.sent(Proved, "permeability") for p in m.proofs if p.subject == subject]
    return bool(proofs) and proofs[-1].holds


def held(dish: Dish) -> set[str]:
    dish.run_until(lambda: not arc(dish).desk.lent)
    return {ban.subject for ban in plane(dish).bans()}


def test_the_program_hangs_at_the_first_rung_and_says_so(net: Wire, dish: Dish) -> None:
    assert dish.cell.state is CellState.HEALTHY

    status = dish.ask("reflex.status")

    assert status["interfaces"]["node0"] == {"rung": "native", "refused": {}, "present": True}
    assert net.reaches_node(net.peer4)


def test_a_ban_drops_the_source_of_either_family_and_a_release_lets_it_pass_again(net: Wire, dish: Dish) -> None:
    sources = [net.peer4, net.peer6]
    assert all(net.reaches_node(source) for source in sources)

    dish.give(Enforce(orders=[order(source, 60) for source in sources], generation=1), "permeability")
    assert dish.run_until(lambda: all(proven(dish, source) for source in sources))

    assert not any(net.reaches_node(source) for source in sources)

    dish.give(Release(subjects=sources, generation=2), "permeability")
    assert all(net.reaches_node(source) for source in sources)


def many(subjects: list[str], generation: int, ttl_s: float = 600.0) -> EnforceMany:
    until = time.time() + ttl_s
    return EnforceMany(subjects=pack(subjects), until_unix_s=until, reason="test", generation=generation)


def test_many_bans_in_one_message_drop_and_are_proved_in_their_turn(net: Wire, dish: Dish) -> None:
    subjects = [f"100.64.{n >> 8}.{n & 255}" for n in range(1_000)] + [net.peer4, net.peer6, "198.51.100.0/24"]
    assert net.reaches_node(net.peer4)

    dish.give(many(subjects, 1), "permeability")

    assert not net.reaches_node(net.peer4)
    assert not net.reaches_node(net.peer6)
    assert dish.run_until(lambda: all(proven(dish, s) for s in (net.peer4, subjects[0], subjects[-1])), 10)
    assert held(dish) == set(subjects)

    dish.give(Release(subjects=[net.peer4], generation=2), "permeability")
    dish.give(many([net.peer4], 1), "permeability")

    assert net.reaches_node(net.peer4), "an older word never undoes a newer one"


@pytest.mark.parametrize("rows", [b"x", pack(["203.0.113.7"]) + b"\0"])
def test_rows_that_are_none_are_counted_and_change_nothing(net: Wire, dish: Dish, rows: bytes) -> None:
    dish.give(EnforceMany(subjects=rows, until_unix_s=0.0, reason="", generation=1), "permeability")

    assert dish.cell.counters["bad_input"] == 1
    assert held(dish) == set()


def test_one_bad_subject_among_many_is_told_and_keeps_no_other_ban_out(net: Wire, dish: Dish) -> None:
    dish.give(many(["224.0.0.1", net.peer4], 1), "permeability")

    assert dish.run_until(lambda: proven(dish, net.peer4), 5)
    assert held(dish) == {net.peer4}
    assert not net.reaches_node(net.peer4)


def test_tolerance_passes_a_banned_source_and_explore_only_observes(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
    dish.give(SetTolerance(prefixes=["10.77.0.0/30"], generation=1), "permeability")
    assert net.reaches_node(net.peer4)

    dish.give(SetTolerance(prefixes=[], generation=2), "permeability")
    assert not net.reaches_node(net.peer4)

    observed = PostureChanged(posture=Posture.EXPLORE, previous=Posture.BALANCED, since_unix_s=time.time())
    dish.give(observed, "permeability")
    assert net.reaches_node(net.peer4)


@pytest.mark.timed
def test_a_ban_deleted_from_outside_is_restored_and_shown_within_five_seconds(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
    everything(dish, [order(net.peer4)], net.scratch / "orders")
    dish.run(0.2)
    assert not net.reaches_node(net.peer4)

    plane(dish).release([net.peer4])
    assert net.reaches_node(net.peer4)
    began = time.monotonic()

    assert dish.run_until(lambda: dish.cell.counters["repairs"] > 0, 5.0)
    assert dish.run_until(lambda: proven(dish, net.peer4), 5.0)
    assert time.monotonic() - began < 5
    assert not net.reaches_node(net.peer4)


@pytest.mark.timed
def test_a_new_life_adopts_the_program_and_no_packet_of_a_banned_source_passes(net: Wire, home: Path) -> None:
    first = start(home)
    first.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
    assert not net.reaches_node(net.peer4)

    with net.flood(net.peer4) as ear:
        began = time.monotonic()
        second = start(home)
        took = time.monotonic() - began
        assert second.cell.state is CellState.HEALTHY
        everything(second, [order(net.peer4)], net.scratch / "orders")
        assert second.run_until(lambda: proven(second, net.peer4), 5.0)

        assert ear.heard() == 0
        assert ear.sent > 100
    assert took < 0.4
    assert plane(second).attachments()[0].adopted
    first.stop()
    second.stop()


def test_what_a_former_life_left_is_released_and_what_the_program_banned_is_told_to_the_gate(
    net: Wire, dish: Dish
) -> None:
    plane(dish).ban([Ban("198.51.100.1"), Ban("198.51.100.2", by_kernel=True, reason="budget_syn", packets=7)])

    everything(dish, [order("198.51.100.3")], net.scratch / "orders")
    assert dish.run_until(lambda: bool(dish.sent(ReflexEvents, "permeability")), 4.0)
    dish.run(0.2)

    assert held(dish) == {"198.51.100.2", "198.51.100.3"}
    [event] = [e for m in dish.sent(ReflexEvents, "permeability") for e in m.events]
    assert (event.subject, event.reflex, event.banned, event.packets) == ("198.51.100.2", "budget_syn", True, 7)


def test_a_flood_is_banned_by_the_program_and_told_once_with_its_reflex(net: Wire, home: Path) -> None:
    dish = start(home, udp_rate=50, udp_burst=50)
    try:
        with net.flood(net.peer4):
            assert dish.run_until(lambda: bool(dish.sent(ReflexEvents, "permeability")), 3.0)
        assert not net.reaches_node(net.peer4)

        events = [e for m in dish.sent(ReflexEvents, "permeability") for e in m.events if e.banned]
        assert [e.subject for e in events] == [net.peer4]
        assert events[0].reflex == "budget_udp"
        assert 0 < events[0].until_unix_s - time.time() <= 60
        assert dish.run_until(lambda: bool(dish.sent(KernelCounters, "permeability")), 2.0)
        assert dish.sent(KernelCounters, "permeability")[-1].packets["ban"] > 0
    finally:
        dish.stop()


def test_an_interface_that_goes_and_returns_is_protected_again(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")

    subprocess.run(["ip", "link", "del", "node0"], check=True)
    assert dish.run_until(lambda: dish.cell.state is CellState.DEGRADED)
    assert "node0" in dish.last_report().reason

    net.lay()
    assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY, 5.0)
    assert not net.reaches_node(net.peer4)


def test_a_program_taken_off_from_outside_is_hung_in_again(net: Wire, dish: Dish, home: Path) -> None:
    dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")

    [link] = (home / "links").iterdir()
    link.unlink()
    assert dish.run_until(lambda: dish.cell.counters["repairs"] > 0, 5.0)
    assert dish.run_until(lambda: dish.cell.state is CellState.HEALTHY, 2.0)

    assert not net.reaches_node(net.peer4)


def test_pins_removed_from_outside_are_made_again_and_shown(net: Wire, dish: Dish, home: Path) -> None:
    pins = set(home.glob("v*/*"))
    for pin in pins:
        pin.unlink()

    assert dish.run_until(lambda: dish.cell.counters["repairs"] > 0, 5.0)
    assert set(home.glob("v*/*")) == pins


@pytest.mark.parametrize("rung", ["native", "tcx", "generic"])
def test_every_rung_of_the_program_drops_when_it_is_chosen(net: Wire, home: Path, rung: str) -> None:
    dish = start(home, rungs=(rung, "observe"))
    try:
        assert net.reaches_node(net.peer4)

        dish.give(Enforce(orders=[order(net.peer4), order(net.peer6)], generation=1), "permeability")

        assert dish.ask("reflex.status")["interfaces"]["node0"]["rung"] == rung
        assert not net.reaches_node(net.peer4)
        assert not net.reaches_node(net.peer6)
    finally:
        dish.stop()


def test_frames_too_large_for_native_xdp_make_it_stand_one_rung_lower_and_it_climbs_back(net: Wire, home: Path) -> None:
    net.set_mtu(9000)
    dish = start(home)
    try:
        below = dish.ask("reflex.status")["interfaces"]["node0"]
        assert below["rung"] == "tcx"
        assert "native" in below["refused"]
        assert dish.cell.state is CellState.HEALTHY

        dish.give(Enforce(orders=[order(net.peer4)], generation=1), "permeability")
        net.set_mtu(1500)
        assert dish.run_until(lambda: arc(dish).ladders["node0"].standing == "native", 9.0)
        assert not net.reaches_node(net.peer4)
    finally:
        dish.stop()


def test_where_xdp_is_refused_the_ladder_asks_for_the_nft_hook_and_names_the_reason(net: Wire, home: Path) -> None:
    dish = start(home, rungs=("nft_ingress", "nft_prerouting", "observe"))
    try:
        dish.run(1.2)
        assert dish.sent(HookWanted, "keratinocyte")[-1].interfaces == ["node0"]
        dish.give(HookAnswered(interfaces=[], refused={"node0": "no hook here"}, prerouting=True), "keratinocyte")

        status = dish.ask("reflex.status")["interfaces"]["node0"]
        assert status["rung"] == "nft_prerouting"
        assert status["refused"]["nft_ingress"] == "no hook here"
        assert plane(dish).attachments() == []
    finally:
        dish.stop()


def test_without_a_program_the_cell_is_degraded_with_reason_and_remedy(net: Wire, home: Path) -> None:
    class Broken(ReflexArc):
        @staticmethod
        def make_plane(settings: Any, policy: Any) -> DataPlane:
            raise DataPlaneError("the object is missing", remedy="make bpf")

    dish = start(home, Broken)
    try:
        assert dish.cell.state is CellState.DEGRADED
        report = dish.last_report()
        assert "the object is missing" in report.reason
        assert report.remedy == "make bpf"
        assert dish.sent(HookWanted, "keratinocyte")[-1].interfaces == ["node0"]
    finally:
        dish.stop()


def test_a_bad_subject_is_told_and_keeps_no_other_ban_out(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order("127.0.0.1"), order(net.peer4)], generation=1), "permeability")

    assert dish.run_until(lambda: proven(dish, net.peer4))
    told = {p.subject: p.holds for m in dish.sent(Proved, "permeability") for p in m.proofs}
    assert told["127.0.0.1"] is False
    assert not net.reaches_node(net.peer4)


def test_explain_says_what_the_program_does_with_an_address(net: Wire, dish: Dish) -> None:
    dish.give(Enforce(orders=[order("198.51.100.0/24")], generation=1), "permeability")

    assert dish.ask("reflex.explain", {"address": "198.51.100.9"})["drop"] is True
    assert dish.ask("reflex.explain", {"address": "203.0.113.9"})["drop"] is False


def test_where_what_leaves_cannot_be_accounted_the_rung_stays_and_the_reason_is_told(
    net: Wire, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(hooks: EgressHooks, interface: str, ifindex: int) -> None:
        raise KernelRefused("egress attach", interface, errno.ENOENT)

    monkeypatch.setattr(EgressHooks, "_as_link", refuse)
    monkeypatch.setattr(EgressHooks, "_as_filter", refuse)
    dish = start(home)
    try:
        status = dish.ask("reflex.status")

        assert (status["rung"], status["flows"]["node0"]["sides"]) == ("native", "one")
        assert dish.cell.state is CellState.DEGRADED
        assert "one-sided because" in dish.last_report().reason
        assert "sch_ingress" in dish.last_report().remedy
        assert dish.cell.counters["falls"] == 0
    finally:
        dish.stop()


def test_the_operator_may_do_without_what_leaves(net: Wire, home: Path) -> None:
    first = start(home)
    assert first.ask("reflex.status")["flows"]["node0"] == {"sides": "both", "way": "tcx", "reason": "", "remedy": ""}
    first.stop()

    dish = start(home, egress_flows=False)
    try:
        assert plane(dish).egress() == {}
        assert not (home / "egress" / "node0").exists()
        assert dish.cell.state is CellState.HEALTHY
        assert "egress_flows is off" in dish.ask("reflex.status")["flows"]["node0"]["reason"]

        dish.cell.settings = Settings(interfaces=("node0",), bpf_dir=home)  # as a reload leaves it
        assert dish.run_until(lambda: plane(dish).egress() == {"node0": "tcx"}, 4.0)
    finally:
        dish.stop()


def test_what_leaves_is_accounted_again_after_somebody_took_it_off(net: Wire, dish: Dish, home: Path) -> None:
    link = get_pinned(home / "egress" / "node0")
    link_detach(link)
    os.close(link)

    assert dish.run_until(lambda: dish.cell.counters["repairs"] > 0, 5.0)
    assert dish.run_until(lambda: plane(dish).egress() == {"node0": "tcx"}, 2.0)
    assert dish.cell.state is CellState.HEALTHY


def test_on_rungs_without_the_program_nothing_is_accounted(net: Wire, home: Path) -> None:
    dish = start(home, rungs=("nft_ingress", "observe"))
    try:
        assert plane(dish).egress() == {}
        assert dish.ask("reflex.status")["flows"]["node0"]["sides"] == "none"
    finally:
        dish.stop()
