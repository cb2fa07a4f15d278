"""The token bucket: exact at any rate and any step, never more than promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.hypodermis.token_bucket import SECOND_NS, Bucket, Limit, full, left, limit, refill, take, wait_ns

limits = st.builds(
    Limit, st.integers(1, 10**6), st.integers(10**6, 86_400 * SECOND_NS), st.integers(1, 10**6)
)  # fmt: skip


def test_a_full_bucket_gives_its_burst_and_then_one_token_per_interval():
    rule = limit(10, 1.0, burst=3)
    bucket = full(rule, 0)

    answers = []
    for now_ns in (0, 0, 0, 0, 99_000_000, 100_000_000, 100_000_001, 200_000_000):
        bucket, passed = take(bucket, rule, now_ns)
        answers.append(passed)

    assert answers == [True, True, True, False, False, True, False, True]


def test_more_tokens_than_the_burst_are_never_there():
    rule = limit(100, 1.0, burst=5)

    _, passed = take(full(rule, 0), rule, 10**15, tokens=6)

    assert not passed


def test_a_clock_that_steps_back_refills_nothing_and_loses_nothing():
    rule = limit(1, 1.0)
    empty = Bucket(0, 5 * SECOND_NS)

    assert refill(empty, rule, 0) == empty
    assert take(empty, rule, 6 * SECOND_NS)[1]


@given(rule=limits, steps=st.lists(st.integers(0, 10**10), min_size=1, max_size=40))
def test_many_small_steps_refill_exactly_what_one_large_step_refills(rule, steps):
    stepwise = Bucket(0, 0)
    now_ns = 0

    for step in steps:
        now_ns += step
        stepwise = refill(stepwise, rule, now_ns)

    assert stepwise.level == refill(Bucket(0, 0), rule, now_ns).level


@given(rule=limits, calls=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 50)), max_size=60))
def test_never_more_passes_than_the_burst_and_the_rate_allow(rule, calls):
    bucket, now_ns, passed = full(rule, 0), 0, 0

    for step, tokens in calls:
        now_ns += step
        bucket, spent = take(bucket, rule, now_ns, tokens)
        passed += tokens * spent

    assert passed * rule.period_ns <= rule.burst * rule.period_ns + now_ns * rule.tokens


@given(rule=limits, tokens=st.integers(1, 1000))
def test_who_waits_as_long_as_told_gets_the_tokens(rule, tokens):
    tokens = min(tokens, rule.burst)
    wait = wait_ns(Bucket(0, 0), rule, tokens)

    _, passed = take(Bucket(0, 0), rule, wait, tokens)
    _, too_early = take(Bucket(0, 0), rule, wait - 1, tokens)

    assert passed
    assert not too_early


@given(rule=limits, members=st.integers(1, 100))
def test_the_shares_together_are_no_faster_than_the_whole(rule, members):
    share = rule.share(members)

    assert share.per_second * members <= rule.per_second * (1 + 1e-9)
    assert share.burst * members <= max(rule.burst, members)


def test_a_bucket_at_rest_for_its_fill_time_is_full():
    rule = limit(7, 60.0, burst=20)

    assert left(refill(Bucket(0, 0), rule, rule.fill_ns), rule) == 20
    assert left(refill(Bucket(0, 0), rule, rule.fill_ns - SECOND_NS), rule) < 20


@pytest.mark.parametrize("bad", [(0, 1.0, 1), (1, 0.0, 1), (1, float("nan"), 1), (1, 1.0, -1), (10**10, 1.0, 1)])
def test_a_senseless_limit_is_refused_in_words(bad):
    with pytest.raises(ValueError, match=r"limit|period|burst"):
        limit(*bad)


def test_taking_nothing_is_an_error():
    with pytest.raises(ValueError, match="1 token"):
        take(Bucket(0, 0), limit(1), 0, 0)
