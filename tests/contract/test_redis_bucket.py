"""Shared buckets: the real ones in a real Redis and the fake keep the same promises."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.hypodermis.redis_bucket import TIMEOUT_S, Ask, Buckets, RedisAway, RedisBuckets
from actors.hypodermis.token_bucket import Bucket, Limit, limit, take, wait_ns
from tests.support.redis import FakeBuckets, RedisServer, redis_server

SLOW = limit(1, 3600.0, burst=100)


@dataclass
class Case:
    buckets: Buckets
    stop: Callable[[], None]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=["real", "fake"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    if request.param == "fake":
        fake = FakeBuckets()
        yield Case(fake, lambda: setattr(fake, "away", True))
        return
    with redis_server() as running:
        buckets = RedisBuckets(running.url, "tester")
        yield Case(buckets, running.kill)
        buckets.close()


def test_a_block_is_granted_and_leaves_the_bucket(case: Case) -> None:
    first = case.buckets.lease(Ask("a", SLOW, cost=1, want=10))
    second = case.buckets.lease(Ask("a", SLOW, cost=1, want=10))
    other = case.buckets.lease(Ask("b", SLOW, cost=1, want=10))

    assert (first.granted, first.remaining) == (10, 90)
    assert (second.granted, second.remaining) == (10, 80)
    assert (other.granted, other.remaining) == (10, 90)


def test_near_the_limit_blocks_get_shorter_and_nothing_is_granted_twice(case: Case) -> None:
    grants = []
    while (grant := case.buckets.lease(Ask("a", SLOW, cost=1, want=60))).granted:
        grants.append(grant.granted)

    assert sum(grants) == 100
    assert grants == sorted(grants, reverse=True)
    assert grants[0] == 50
    assert grants[-1] == 1
    assert grant.wait_ns == pytest.approx(3600e9, rel=0.01)


def test_the_cost_is_granted_whole_or_not_at_all(case: Case) -> None:
    most = case.buckets.lease(Ask("a", SLOW, cost=95, want=95))
    too_much = case.buckets.lease(Ask("a", SLOW, cost=6, want=6))
    fits = case.buckets.lease(Ask("a", SLOW, cost=5, want=5))

    assert (most.granted, too_much.granted, fits.granted) == (95, 0, 5)
    assert too_much.wait_ns > 0


def test_unused_tokens_go_back_but_never_above_the_burst(case: Case) -> None:
    case.buckets.lease(Ask("a", SLOW, cost=1, want=50))

    back = case.buckets.lease(Ask("a", SLOW, cost=1, want=1, unused=50))
    more = case.buckets.lease(Ask("a", SLOW, cost=1, want=1, unused=500))

    assert back.remaining == 99
    assert more.remaining == 99


def test_the_same_key_under_another_limit_is_another_bucket(case: Case) -> None:
    case.buckets.lease(Ask("a", SLOW, cost=100, want=100))

    assert case.buckets.lease(Ask("a", limit(2, 1.0, burst=4), cost=4, want=4)).granted == 4


def test_totals_of_heavy_sources_add_up_over_members(case: Case) -> None:
    assert case.buckets.spend({"total 203.0.113.7": 500}) == {"total 203.0.113.7": 500}
    assert case.buckets.spend({"total 203.0.113.7": 700, "udp 2001:db8::": 0}) == {
        "total 203.0.113.7": 1200,
        "udp 2001:db8::": 0,
    }
    assert case.buckets.spend({}) == {}


def test_a_dead_server_is_one_kind_of_error_for_every_call(case: Case) -> None:
    case.buckets.lease(Ask("a", SLOW))

    case.stop()

    with pytest.raises(RedisAway, match="does not answer") as refused:
        case.buckets.lease(Ask("a", SLOW))
    assert refused.value.retry_s > 0
    assert refused.value.remedy
    with pytest.raises(RedisAway):
        case.buckets.spend({"x": 1})


def test_the_breaker_answers_at_once_and_recovery_needs_no_restart() -> None:
    now = [0.0]
    with redis_server() as server:
        buckets = RedisBuckets(server.url, "tester", clock=lambda: now[0])
        buckets.lease(Ask("a", SLOW))
        server.kill()
        with pytest.raises(RedisAway):
            buckets.lease(Ask("a", SLOW))
        server.start()

        with pytest.raises(RedisAway) as still_open:
            buckets.lease(Ask("a", SLOW))
        now[0] += still_open.value.retry_s
        grant = buckets.lease(Ask("a", SLOW))

        assert grant.granted == 1
        buckets.close()


def test_pauses_double_up_to_five_seconds() -> None:
    now = [0.0]
    buckets = RedisBuckets("unix:///nonexistent/redis.sock", "tester", clock=lambda: now[0])

    pauses = []
    for _ in range(6):
        with pytest.raises(RedisAway) as away:
            buckets.lease(Ask("a", SLOW))
        pauses.append(away.value.retry_s)
        now[0] += away.value.retry_s

    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_server_that_hangs_costs_the_time_limit_once() -> None:
    with redis_server() as server:
        buckets = RedisBuckets(server.url, "tester")
        buckets.lease(Ask("h", SLOW))
        server.freeze()

        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(RedisAway):
                buckets.lease(Ask("h", SLOW))

        assert time.monotonic() - began < 100 * TIMEOUT_S / 2


def test_a_password_never_shows_in_an_error() -> None:
    with redis_server(password="s3cret-word") as server:
        wrong = RedisBuckets(server.url.replace("s3cret-word", "other-w0rd"), "tester")
        right = RedisBuckets(server.url, "tester")

        with pytest.raises(RedisAway) as refused:
            wrong.lease(Ask("a", SLOW))

        assert "w0rd" not in str(refused.value)
        assert right.lease(Ask("a", SLOW)).granted == 1


def test_without_the_client_library_it_is_redis_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    buckets = RedisBuckets("redis://127.0.0.1/0", "tester")

    with pytest.raises(RedisAway, match="not installed"):
        buckets.lease(Ask("a", SLOW))


def test_foreign_text_in_the_place_of_a_bucket_is_taken_as_a_full_one(server: RedisServer) -> None:
    buckets = RedisBuckets(server.url, "tester")
    buckets.lease(Ask("f", SLOW, cost=7, want=7))
    [key] = [key for key in buckets._client.keys("tegumentar:limit:*") if key.endswith(":f")]
    buckets._client.set(key, "something else")

    assert buckets.lease(Ask("f", SLOW, cost=100, want=100)).granted == 100


def test_members_are_counted(server: RedisServer) -> None:
    first, second = RedisBuckets(server.url, "first"), RedisBuckets(server.url, "second")

    first.lease(Ask("m", SLOW))
    grant = second.lease(Ask("m", SLOW))

    assert grant.members >= 2
    assert second.members == grant.members


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=st.builds(limit, st.integers(1, 100_000), st.floats(0.001, 3600.0), st.integers(1, 100_000)),
    level=st.integers(0, 10**12),
    elapsed_us=st.integers(0, 10**9),
    cost=st.integers(1, 50),
)
def test_redis_counts_as_the_pure_bucket_does(
    server: RedisServer, rule: Limit, level: int, elapsed_us: int, cost: int
) -> None:
    rule = Limit(rule.tokens, max(1000, rule.period_ns // 1000 * 1000), rule.burst)
    buckets = RedisBuckets(server.url, "twin")
    buckets.lease(Ask("twin of nobody", SLOW))
    period_us = rule.period_ns // 1000
    level = min(level, rule.burst * period_us)
    seconds, micros = buckets._client.time()
    now_us = seconds * 10**6 + micros
    key = f"tegumentar:limit:{rule.tokens}/{period_us}/{rule.burst}:twin"
    buckets._client.set(key, f"{level} {now_us - elapsed_us}")

    grant = buckets.lease(Ask("twin", rule, cost, cost))
    at_us = int(buckets._client.get(key).split()[1])
    buckets._client.delete(key)
    buckets.close()

    start = Bucket(level * 1000, (now_us - elapsed_us) * 1000)
    after, spent = take(start, rule, at_us * 1000, cost)
    assert (grant.granted == cost) == spent
    assert grant.remaining == after.level // rule.period_ns
    if not spent:
        assert grant.wait_ns == pytest.approx(wait_ns(after, rule, cost), abs=2000)
