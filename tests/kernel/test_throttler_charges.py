"""What a throttler wishes, in the real kernel program: charged sources and budgets that are tightened for a while."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.core.messages import Posture, PostureChanged, SetBudgets, Spent, SpentElsewhere
from actors.epidermis.reflex_arc import ReflexArc
from actors.epidermis.reflex_events import policy_of
from bpf import abi
from bpf.dataplane import BadSubject, Budget, Charge, DataPlaneError, Policy
from bpf.fake import FakePlane
from bpf.loader import KernelPlane
from bpf.pcap import Frame
from bpf.replay import EPOCH_NS, Replayer, replay_plane
from config.settings import ReflexSettings, Settings
from tests.support.core import Dish
from tests.support.netns import pins
from tests.support.packets import ACK, PEER4, PEER6, ethernet, ip4, tcp, udp4, udp6

pytestmark = pytest.mark.kernel

OFF = Budget(0, 0)
TEN = Policy(syn=OFF, udp=Budget(1, 10), icmp=OFF, fragment=OFF, total=Budget(1, 100), syn_dest=OFF, ban_s=60)


class Skin:
    def __init__(self, policy: Policy) -> None:
        self.plane: KernelPlane = replay_plane(policy, flow_sets=64)
        self._replayer = Replayer(self.plane)

    def send(self, data: bytes, times: int) -> list[str]:
        """Reasons of frames that all come at the same instant."""
        verdicts = self._replayer.feed(Frame(EPOCH_NS, len(data), data) for _ in range(times))
        return [abi.reason_name(int(number)) for number in verdicts.reason]


@pytest.fixture
def skin() -> Iterator[Skin]:
    made = Skin(TEN)
    yield made
    made.plane.close()


@pytest.mark.parametrize(
    ("source", "make"),
    [(PEER4, lambda: udp4(source=PEER4)), (PEER6, lambda: udp6(source=PEER6))],
    ids=["ip4", "ip6"],
)
def test_what_a_source_sent_elsewhere_is_missing_here(skin: Skin, source: str, make: Callable[[], bytes]) -> None:
    before = skin.send(make(), 2)

    known = skin.plane.charge([Charge(source, "udp", 5), Charge("198.51.100.99", "udp", 5)])
    after = skin.send(make(), 4)

    assert before == ["clean"] * 2
    assert known == 1
    assert after == ["clean"] * 3 + ["budget_udp"]


def test_no_charge_goes_below_an_empty_bucket(skin: Skin) -> None:
    skin.send(udp4(source=PEER4), 1)

    skin.plane.charge([Charge(PEER4, "total", 10**9)])

    assert skin.send(udp4(source=PEER4), 1) == ["budget_total"]


def test_a_source_is_charged_for_a_kind_that_it_has_not_sent_here(skin: Skin) -> None:
    skin.send(ethernet(ip4(tcp(ACK), source=PEER4)), 2)

    known = skin.plane.charge([Charge(PEER4, "udp", 7)])

    assert known == 1
    assert skin.send(udp4(source=PEER4), 4) == ["clean"] * 3 + ["budget_udp"]


def test_an_uncharged_neighbour_keeps_its_budget(skin: Skin) -> None:
    neighbour = udp4(source="203.0.113.8")
    skin.send(udp4(source=PEER4), 1)
    skin.send(neighbour, 1)

    skin.plane.charge([Charge(PEER4, "udp", 1_000)])

    assert skin.send(neighbour, 9) == ["clean"] * 9


@pytest.mark.parametrize("make", [lambda: replay_plane(TEN, flow_sets=64), FakePlane], ids=["real", "fake"])
def test_a_charge_without_sense_is_refused(make: Callable[[], KernelPlane | FakePlane]) -> None:
    plane = make()

    assert plane.charge([]) == 0
    assert plane.charge([Charge("203.0.113.77", "udp", 1)]) == 0
    with pytest.raises(BadSubject):
        plane.charge([Charge("nobody", "udp", 1)])
    for budget in ("prefix", "samples", "all"):
        with pytest.raises(DataPlaneError):
            plane.charge([Charge(PEER4, budget, 1)])
    plane.close()


@pytest.fixture
def home() -> Iterator[Path]:
    with pins() as directory:
        yield directory


def test_budgets_are_tightened_in_the_kernel_and_return_when_the_throttler_is_silent(home: Path) -> None:
    dish = Dish(ReflexArc, Settings(interfaces=("absent0",), bpf_dir=home), name="reflex_arc")
    dish.peer("throttler")
    usual = refills(dish)

    dish.give(SetBudgets(scale=0.5, valid_s=0.4), "throttler")
    tight = refills(dish)
    dish.peer("permeability")
    dish.give(
        PostureChanged(posture=Posture.BALANCED, previous=Posture.EXPLORE, since_unix_s=time.time()), "permeability"
    )
    after_posture = refills(dish)
    scale = dish.ask("reflex.status")["budget_scale"]
    dish.run_until(lambda: refills(dish) == usual, 5)

    assert tight["syn"] == pytest.approx(usual["syn"] / 2, rel=0.01)
    assert tight["total"] == pytest.approx(usual["total"] / 2, rel=0.01)
    assert after_posture == tight
    assert scale == 0.5
    assert refills(dish) == usual
    dish.stop()


def test_nobody_but_the_throttler_may_tighten_or_charge(home: Path) -> None:
    dish = Dish(ReflexArc, Settings(interfaces=("absent0",), bpf_dir=home), name="reflex_arc")
    dish.peer("gateway")
    usual = refills(dish)

    dish.give(SetBudgets(scale=0.05), "gateway")
    dish.give(SpentElsewhere(sources=[Spent(subject=PEER4, budget="udp", packets=9)]), "gateway")

    assert refills(dish) == usual
    assert dish.cell.counters["wrong_speaker"] == 2
    dish.stop()


def test_the_cell_hands_charges_to_the_kernel_and_survives_bad_ones(home: Path) -> None:
    dish = Dish(ReflexArc, Settings(interfaces=("absent0",), bpf_dir=home), name="reflex_arc")
    dish.peer("throttler")

    dish.give(SpentElsewhere(sources=[Spent(subject="no address", budget="udp", packets=9)]), "throttler")
    dish.give(SpentElsewhere(sources=[Spent(subject=PEER4, budget="udp", packets=9)]), "throttler")

    assert dish.cell.counters["bad_input"] == 1
    assert dish.crashed is None
    dish.stop()


def test_however_strained_a_node_is_a_source_may_send_a_little() -> None:
    policy = policy_of(ReflexSettings(syn_rate=30, icmp_rate=10), Posture.BALANCED, 0.05)

    assert policy.syn.rate == 20
    assert policy.icmp.rate == 10
    assert policy.total.rate == 12_500


def refills(dish: Dish) -> dict[str, int]:
    page = dish.cell.plane.knobs.page["budget"][0]  # type: ignore[attr-defined]
    return {name: int(page["refill"][number]) for number, name in enumerate(abi.BUDGETS)}
