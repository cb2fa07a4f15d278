"""Leases: what is decided from memory, when Redis is asked, and what holds when it is away."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from actors.hypodermis import leases as module
from actors.hypodermis.leases import BLOCK_MAX, LEASE_NS, Leases, Limiter, LoopLimiter
from actors.hypodermis.token_bucket import SECOND_NS, limit
from tests.support.redis import FakeBuckets

WIDE = limit(1_000_000, 1.0)
TEN = limit(10, 3600.0)


class Clock:
    def __init__(self):
        self.now_ns = 10**9

    def __call__(self):
        return self.now_ns


def limiter(members=1):
    clock = Clock()
    buckets = FakeBuckets(clock, members)
    return Limiter(buckets, clock), buckets, clock


def allowed(made, key, rule, times):
    return sum(made.take(key, rule).allowed for _ in range(times))


def test_a_busy_key_asks_once_in_a_hundred_decisions():
    made, buckets, _ = limiter()

    assert allowed(made, "a", WIDE, 10_000) == 10_000

    assert len(buckets.asked) <= 10_000 / BLOCK_MAX + 4
    assert [ask.want for ask in buckets.asked[:5]] == [10, 20, 40, 80, 100]


def test_a_refusal_is_remembered_until_tokens_come_in():
    made, buckets, clock = limiter()

    assert allowed(made, "a", TEN, 1_000) == 10
    asked = len(buckets.asked)
    refused = made.take("a", TEN)
    clock.now_ns += 361 * SECOND_NS

    assert asked < 10
    assert 0 < refused.wait_ns <= 360 * SECOND_NS
    assert allowed(made, "a", TEN, 5) == 1


def test_what_is_left_of_a_block_goes_back_when_the_lease_ends():
    made, buckets, clock = limiter()
    hundred = limit(100, 3600.0)
    made.take("a", hundred)
    clock.now_ns += LEASE_NS

    passed = allowed(made, "a", hundred, 200)

    assert buckets.asked[1].unused == 9
    assert passed == 99


def test_a_slow_key_takes_smaller_blocks_again():
    made, buckets, clock = limiter()
    allowed(made, "a", WIDE, 1_000)

    for _ in range(6):
        clock.now_ns += LEASE_NS
        made.take("a", WIDE)

    assert buckets.asked[-1].want == 10


def test_without_redis_configured_the_whole_limit_holds_here():
    clock = Clock()
    made = Limiter(None, clock)

    first = allowed(made, "a", TEN, 100)
    decision = made.take("a", TEN)
    clock.now_ns += 360 * SECOND_NS

    assert first == 10
    assert decision.alone
    assert not decision.allowed
    assert allowed(made, "a", TEN, 100) == 1


def test_when_redis_goes_each_member_gives_its_share_and_when_it_is_back_the_bucket_counts_again():
    made, buckets, clock = limiter(members=4)
    rule = limit(400, 3600.0)
    made.take("a", rule)
    buckets.away = True
    clock.now_ns += LEASE_NS

    alone = allowed(made, "a", rule, 1_000)
    buckets.away = False
    clock.now_ns += LEASE_NS
    back = made.take("a", rule)

    assert alone == 100
    assert back.allowed
    assert not back.alone


def test_an_outage_asks_redis_once_in_each_pause():
    made, buckets, clock = limiter()
    made.take("a", WIDE)
    buckets.away = True
    clock.now_ns += LEASE_NS
    calls = []
    buckets.lease = lambda ask, lease=buckets.lease: (calls.append(ask), lease(ask))[1]

    allowed(made, "a", WIDE, 10_000)

    assert len(calls) == 1


def test_a_cost_is_paid_whole():
    made, _, _ = limiter()

    assert made.take("a", TEN, 8).allowed
    assert not made.take("a", TEN, 3).allowed
    assert made.take("a", TEN, 2).allowed


def test_memory_is_bounded_however_many_keys_come(monkeypatch):
    monkeypatch.setattr(module, "KEYS_MAX", 1_000)
    made = Limiter(None, Clock())

    for number in range(5_000):
        made.take(f"key {number}", TEN)

    assert len(made.leases) <= 1_000


def test_keys_at_rest_are_forgotten_before_those_in_use(monkeypatch):
    monkeypatch.setattr(module, "KEYS_MAX", 100)
    clock = Clock()
    made = Limiter(None, clock)
    assert allowed(made, "spent", limit(1, 80_000.0), 2) == 1

    for number in range(1_000):
        clock.now_ns += SECOND_NS
        made.take(f"key {number}", limit(1, 1.0))

    assert not made.take("spent", limit(1, 80_000.0)).allowed


@given(
    rule=st.builds(limit, st.integers(1, 200), st.floats(0.5, 60.0), st.integers(1, 300)),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2 * 10**9), st.integers(1, 5)), max_size=150),
)
def test_with_redis_three_processes_never_pass_more_than_one_bucket_holds(rule, steps):
    clock = Clock()
    buckets = FakeBuckets(clock, members=3)
    processes = [Limiter(buckets, clock) for _ in range(3)]
    began = clock.now_ns

    passed = 0
    for who, pause_ns, cost in steps:
        clock.now_ns += pause_ns
        passed += cost * processes[who].take("a", rule, cost).allowed

    assert passed * rule.period_ns <= rule.burst * rule.period_ns + (clock.now_ns - began) * rule.tokens


@given(
    rule=st.builds(limit, st.integers(1, 200), st.floats(0.5, 60.0), st.integers(3, 300)),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**9), st.booleans()), max_size=150),
)
def test_over_outages_three_processes_pass_at_most_what_is_stated(rule, steps):
    clock = Clock()
    buckets = FakeBuckets(clock, members=3)
    processes = [Limiter(buckets, clock) for _ in range(3)]
    for process in processes:
        process.take("acquainted", WIDE)
    began = clock.now_ns

    passed = outages = 0
    for who, pause_ns, away in steps:
        clock.now_ns += pause_ns
        outages += away and not buckets.away
        buckets.away = away
        passed += processes[who].take("a", rule).allowed

    whole = rule.burst * rule.period_ns + (clock.now_ns - began) * rule.tokens
    per_outage = (rule.burst + 3 * BLOCK_MAX) * rule.period_ns + (clock.now_ns - began) * rule.tokens
    assert passed * rule.period_ns <= whole + outages * per_outage


def test_in_a_loop_many_at_once_ask_once_and_none_is_lost():
    clock = Clock()
    buckets = FakeBuckets(clock)
    made = LoopLimiter(buckets, clock)

    async def crowd():
        return await asyncio.gather(*(made.take("a", TEN) for _ in range(50)))

    decisions = asyncio.run(crowd())
    made.close()

    assert sum(decision.allowed for decision in decisions) == 10
    assert len(buckets.asked) < 10


def test_in_a_loop_a_dead_redis_stops_nobody():
    clock = Clock()
    buckets = FakeBuckets(clock)
    buckets.away = True
    made = LoopLimiter(buckets, clock)

    async def crowd():
        return await asyncio.gather(*(made.take(f"k{number % 5}", TEN) for number in range(100)))

    decisions = asyncio.run(crowd())
    made.close()

    assert sum(decision.allowed for decision in decisions) == 50
    assert all(decision.alone for decision in decisions)


def test_decisions_that_need_no_redis_ask_none():
    leases = Leases(shared=False)

    assert leases.decide("a", TEN, 1) is not None
