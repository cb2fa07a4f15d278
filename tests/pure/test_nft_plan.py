"""What nft is told next, tried on a filter in memory that refuses what nft refuses."""

import ipaddress
import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.core.errors import ToolFailed
from actors.core.messages import Action, Order
from actors.epidermis.filter_plan import PORTION, FilterPlan, Step
from actors.epidermis.nft_fake import FakeFilter
from actors.epidermis.reconcile import Ledger
from actors.epidermis.ruleset import Layout, declaration, shape

T = "teg"
LAYOUT = Layout(T, "balanced", (22,), (80,), ("eth0",), (), 1024)
SUBJECTS = [
    *(f"192.0.2.{n}" for n in range(6)),
    *("192.0.2.0/24", "10.0.0.0/8", "10.1.0.0/16", "2001:db8::1", "2001:db8::/64", "2001:db8::/32"),
]
PROBES = [
    *("192.0.2.3", "192.0.2.77", "10.1.2.3", "10.9.9.9", "11.0.0.1"),
    *("2001:db8::1", "2001:db8::2", "2001:db8:9::1"),
]


class Bench:
    """A plan, the filter it acts on, and a clock."""

    def __init__(self, layout: Layout = LAYOUT) -> None:
        self.now = 1000.0
        self.filter = FakeFilter(lambda: self.now)
        self.ledger = Ledger()
        self.plan = FilterPlan(layout, self.ledger)
        self.plan.want_whole()

    def ban(self, *subjects: str, until: float = 0.0) -> None:
        orders = [Order(subject=s, action=Action.BAN, until_unix_s=until, reason="") for s in subjects]
        self.plan.touch(self.ledger.enforce(orders, 1))

    def release(self, *subjects: str) -> None:
        self.plan.touch(self.ledger.release(subjects, 1))

    def run(self) -> list[Step]:
        steps = []
        while (step := self.plan.next(self.now)) is not None:
            try:
                self.filter.apply(step.commands)
            except ToolFailed:
                self.plan.failed(step)
            else:
                self.plan.done(step)
            steps.append(step)
            assert len(steps) < 100, "the plan never comes to rest"
        return steps

    def blocked(self, address: str) -> bool:
        net = ipaddress.ip_network(f"{address}/64" if ":" in address else f"{address}/24", strict=False)
        family = "6" if ":" in address else "4"
        hashed = "bans6_64" if family == "6" else "bans4_24"
        return bool(
            self.filter.held(T, f"bans{family}", address)
            or self.filter.held(T, hashed, str(net.network_address))
            or self.filter.held(T, f"banned_nets{family}", address)
        )


def test_a_new_table_holds_all_bans_from_its_first_moment() -> None:
    bench = Bench()
    bench.ban("192.0.2.1", "10.0.0.0/8", "2001:db8::/64", until=1060)

    steps = bench.run()

    assert len(steps) == 1
    assert bench.blocked("192.0.2.1")
    assert bench.blocked("10.9.9.9")
    assert bench.blocked("2001:db8::77")
    assert not bench.blocked("2001:db8:0:1::77")


def test_everything_small_that_waits_goes_into_one_transaction() -> None:
    bench = Bench()
    bench.run()

    bench.ban("192.0.2.1", "10.0.0.0/8")
    bench.plan.want_tolerance(["198.51.100.0/24"])
    bench.plan.want_layout(Layout(T, "lockdown", (22,), (80,), ("eth0",), (), 1024))
    steps = bench.run()

    assert len(steps) == 1
    assert bench.filter.held(T, "tolerated4", "198.51.100.9")
    assert bench.filter.shape(T) == shape(declaration(bench.plan.layout))


def test_a_fresh_ban_goes_before_a_backlog() -> None:
    bench = Bench(Layout(T, max_elements=100_000))
    bench.run()
    many = [
        Order(subject=f"10.{i >> 8}.{i & 255}.1", action=Action.BAN, until_unix_s=0, reason="") for i in range(9_000)
    ]
    bench.plan.touch(bench.ledger.replace(many, 1), fresh=False)
    bench.ban("192.0.2.1")

    first = bench.plan.next(bench.now)

    assert first is not None
    assert first.subjects[0] == "192.0.2.1"
    assert len(first.subjects) == PORTION


def test_the_same_ban_again_is_proved_and_not_written() -> None:
    bench = Bench()
    bench.ban("192.0.2.1", until=1060)
    bench.run()

    bench.plan.touch(["192.0.2.1"])
    [step] = bench.run()

    assert step.commands == []
    assert step.subjects == ["192.0.2.1"]


def test_a_longer_ban_gets_its_new_time() -> None:
    bench = Bench()
    bench.ban("192.0.2.1", until=1060)
    bench.run()

    bench.ban("192.0.2.1", until=1600)
    bench.run()

    held = bench.filter.held(T, "bans4", "192.0.2.1")
    assert held is not None
    assert held.expires_s == 600


def test_a_narrow_prefix_comes_out_when_the_wide_one_around_it_ends() -> None:
    bench = Bench()
    bench.ban("10.0.0.0/8", until=1060)
    bench.ban("10.1.0.0/16", until=2000)
    bench.run()

    bench.now = 1100
    bench.plan.forget(bench.ledger.expire(bench.now))
    bench.run()

    assert bench.blocked("10.1.2.3")
    assert not bench.blocked("10.2.2.3")


def test_a_full_set_refuses_the_rest_in_words_and_takes_them_when_there_is_room() -> None:
    bench = Bench(Layout(T, max_elements=1024))
    bench.run()
    bench.ban(*[f"10.0.{i >> 8}.{i & 255}" for i in range(1025)])

    [step] = bench.run()

    assert len(bench.filter.contents(T, "bans4")) == 1024
    [(subject, why)] = step.refused.items()
    assert "max_elements" in why
    bench.release("10.0.0.1")
    bench.run()
    bench.plan.touch([subject])
    bench.run()
    assert bench.blocked(subject)


def test_after_a_refusal_the_whole_table_is_written() -> None:
    bench = Bench()
    bench.run()
    bench.filter.fail_next = [ToolFailed("nft did not finish")]
    bench.ban("192.0.2.1")

    steps = bench.run()

    assert [step.whole for step in steps] == [False, True]
    assert bench.blocked("192.0.2.1")


def test_a_bad_feed_never_brings_the_table_down() -> None:
    bench = Bench()
    bench.run()
    bench.plan.want_feed(Path("somewhere"))
    step = bench.plan.next(bench.now)
    assert step is not None

    bench.plan.failed(step)

    assert bench.plan.idle


def test_what_the_kernel_held_and_nobody_wants_is_removed_after_adoption() -> None:
    bench = Bench()
    bench.ban("192.0.2.1", "192.0.2.2")
    bench.run()
    second = FilterPlan(LAYOUT, Ledger())
    found = bench.filter.shape(T)
    assert found is not None
    assert second.adopt(found)
    second.believe({"bans4": bench.filter.contents(T, "bans4")}, bench.now)

    wanted = [Order(subject="192.0.2.2", action=Action.BAN, until_unix_s=0, reason="")]
    second.touch(second.ledger.replace(wanted, 1))
    second.remove_strangers()
    step = second.next(bench.now)
    assert step is not None
    bench.filter.apply(step.commands)

    assert [held.key for held in bench.filter.contents(T, "bans4")] == ["192.0.2.2"]


def test_elements_that_somebody_deleted_are_missing_and_those_still_waiting_are_not() -> None:
    bench = Bench()
    bench.ban("192.0.2.1", "192.0.2.2")
    bench.run()
    bench.ban("192.0.2.3")

    missing = bench.plan.compare({"bans4": bench.filter.contents(T, "bans4")[:1]}, bench.now)

    assert missing == ["192.0.2.2"]
    bench.filter.tables[T].sets["bans4"].clear()
    bench.plan.compare({"bans4": []}, bench.now)
    bench.run()
    assert all(bench.blocked(f"192.0.2.{n}") for n in (1, 2, 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_is_ordered_released_deleted_and_refused_the_kernel_ends_as_desired(seed: int) -> None:
    dice, bench = random.Random(seed), Bench()
    for _ in range(40):
        subject = dice.choice(SUBJECTS)
        match dice.randrange(7):
            case 0 | 1:
                bench.ban(subject, until=dice.choice([0.0, bench.now + dice.randrange(3, 90)]))
            case 2:
                bench.release(subject)
            case 3:
                bench.now += dice.randrange(30)
                bench.plan.forget(bench.ledger.expire(bench.now))
            case 4:
                bench.filter.fail_next = [ToolFailed("no")]
            case 5:
                bench.filter.tamper(T)
                bench.plan.want_whole()
            case 6:
                bench.run()
    bench.filter.fail_next = []
    bench.run()

    orders = bench.ledger.orders.values()
    lasting = [o.subject for o in orders if not o.until_unix_s or o.until_unix_s > bench.now + 3]
    live = [ipaddress.ip_network(subject) for subject in lasting]
    for address in PROBES:
        ip = ipaddress.ip_address(address)
        if any(net.version == ip.version and ip in net for net in live):
            assert bench.blocked(address), address
        elif not any(order.until_unix_s for order in orders):
            assert not bench.blocked(address), address
