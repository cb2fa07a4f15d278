"""The desired bans against the rows of the kernel's table: what is found, and that a hundred thousand stay exact."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.core.messages import Action, Order
from actors.epidermis.ban_compare import BanDifference, DesiredBans
from bpf.ban_rows import BanRows, rows_of_bans
from bpf.dataplane import Ban
from bpf.subjects import parse

NOW, NOW_NS, SECOND = 1_000_000.0, 5_000_000_000_000, 1_000_000_000


def order(subject: str, left_s: float = 0) -> Order:
    return Order(subject=subject, action=Action.BAN, until_unix_s=NOW + left_s if left_s else 0.0, reason="test")


def desired(*orders: Order) -> DesiredBans:
    made = DesiredBans()
    made.update({each.subject: each for each in orders})
    return made


def rows(*bans: Ban) -> BanRows:
    return rows_of_bans((parse(ban.subject), ban) for ban in bans)


def ban(subject: str, left_s: float = 0, **more: object) -> Ban:
    return Ban(subject, NOW_NS + int(left_s * SECOND) if left_s else 0, **more)  # type: ignore[arg-type]


def test_what_stands_as_desired_is_no_difference() -> None:
    wanted = desired(order("203.0.113.7", 60), order("2001:db8::/64"), order("198.51.100.0/24", 60))

    found = wanted.compare(rows(ban("198.51.100.0/24", 61), ban("203.0.113.7", 60), ban("2001:db8::/64")), NOW, NOW_NS)

    assert found == BanDifference(held=3)


def test_each_kind_of_difference_is_found_by_its_subject() -> None:
    wanted = desired(order("203.0.113.1", 60), order("203.0.113.2", 60), order("203.0.113.3"), order("203.0.113.4", 1))

    held = rows(ban("203.0.113.2", 90), ban("192.0.2.1", 9), ban("192.0.2.2", 9, by_kernel=True, reason="budget_syn",
                packets=7), ban("203.0.113.3", -5), ban("192.0.2.3", -5))  # fmt: skip
    found = wanted.compare(held, NOW, NOW_NS)

    assert sorted(found.missing) == ["203.0.113.1", "203.0.113.3"]  # .4 is over before it could be written
    assert found.wrong_time == ["203.0.113.2"]
    assert found.strangers == ["192.0.2.1"]
    assert found.made_by_kernel == [("192.0.2.2", "budget_syn", NOW + 9, 7)]
    assert (found.held, found.expired) == (5, 2)


def test_a_ban_without_end_and_one_with_an_end_differ() -> None:
    wanted = desired(order("203.0.113.1", 60), order("203.0.113.2"))

    found = wanted.compare(rows(ban("203.0.113.1"), ban("203.0.113.2", 60)), NOW, NOW_NS)

    assert sorted(found.wrong_time) == ["203.0.113.1", "203.0.113.2"]


def test_the_same_rows_again_after_a_change_are_judged_anew() -> None:
    wanted = desired(order("203.0.113.1"), order("203.0.113.2"))
    held = rows(ban("203.0.113.1"), ban("203.0.113.2"))
    wanted.compare(held, NOW, NOW_NS)

    wanted.update({"203.0.113.1": None, "203.0.113.2": order("203.0.113.2", 60), "203.0.113.3": order("203.0.113.3")})
    found = wanted.compare(held, NOW, NOW_NS)

    assert (found.strangers, found.wrong_time, found.missing) == (["203.0.113.1"], ["203.0.113.2"], ["203.0.113.3"])


def test_what_is_no_address_is_left_out_and_an_unknown_one_dropped_in_peace() -> None:
    wanted = desired(order("nobody"), order("203.0.113.1"))

    wanted.update({"192.0.2.77": None, "nobody": None})

    assert wanted.compare(rows(), NOW, NOW_NS).missing == ["203.0.113.1"]


SUBJECTS = [f"10.0.{i >> 8}.{i & 255}" for i in range(300)] + [f"2001:db8:{i:x}::/64" for i in range(1, 300)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_arrays_agree_with_sets_whatever_comes_and_goes(seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    made = DesiredBans()
    truth: set[str] = set()
    for _ in range(rounds):
        changes = {s: order(s) if chance.random() < 0.6 else None for s in chance.sample(SUBJECTS, 200)}
        made.update(changes)
        truth = (truth - changes.keys()) | {s for s, each in changes.items() if each is not None}
        held = chance.sample(SUBJECTS, chance.choice([0, 1, 300]))
        found = made.compare(rows(*map(ban, held)), NOW, NOW_NS)

        assert sorted(found.missing) == sorted(truth - set(held))
        assert sorted(found.strangers) == sorted(set(held) - truth)
        assert (len(made), found.wrong_time) == (len(truth), [])
