"""The restart policy: pure, so every rule is shown with the times that it depends on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.core.restart import CRITICAL_RETRIES, SLOW_RETRY_S, Decision, History, Policy, after_failure

POLICY = Policy()


def die(
    history: History, now: float, *, lived_s: float = 1.0, critical: bool = False, chance: float = 0.999
) -> tuple[History, Decision]:
    return after_failure(history, POLICY, now, lived_s=lived_s, critical=critical, chance=chance)


def test_the_first_restart_after_a_healthy_life_is_immediate() -> None:
    _, decision = die(History(), 100.0, lived_s=5.0)

    assert decision == Decision(0.0)


def test_delays_double_up_to_the_limit_of_failures() -> None:
    history, delays = History(), []
    for second in range(5):
        history, decision = die(history, 100.0 + second)
        delays.append(round(decision.delay_s, 2))

    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_a_cell_that_never_came_up_is_not_restarted_at_once() -> None:
    _, decision = die(History(), 100.0, lived_s=0.0)

    assert 0.05 <= decision.delay_s <= 0.1


def test_the_sixth_failure_within_a_minute_turns_it_degraded() -> None:
    history = History()
    for second in range(5):
        history, decision = die(history, 100.0 + second)
        assert not decision.degraded

    history, decision = die(history, 106.0)

    assert decision.degraded
    assert 0.75 * SLOW_RETRY_S <= decision.delay_s <= 1.25 * SLOW_RETRY_S


def test_five_failures_spread_over_more_than_a_minute_are_not_too_many() -> None:
    history = History()
    for index in range(20):
        history, decision = die(history, 100.0 + 13.0 * index)

        assert not decision.degraded
        assert decision.delay_s <= POLICY.backoff_cap_s


def test_a_degraded_cell_is_tried_slowly_for_ever() -> None:
    history, now = History(), 100.0
    for _ in range(200):
        history, decision = die(history, now, lived_s=0.0)
        now += decision.delay_s

    assert decision.degraded
    assert not decision.escalate
    assert len(history.failures) <= POLICY.failures_max


def test_a_stable_minute_forgets_the_past() -> None:
    history = History()
    for second in range(10):
        history, _ = die(history, 100.0 + second)

    history, decision = die(history, 300.0, lived_s=60.0)

    assert decision == Decision(0.0)
    assert history == History(failures=(300.0,), attempts=1)


def test_a_critical_cell_escalates_after_its_slow_retries() -> None:
    history, now, slow = History(), 100.0, 0
    while True:
        history, decision = die(history, now, lived_s=0.0, critical=True)
        now += decision.delay_s
        slow += decision.degraded
        if decision.escalate:
            break

    assert slow == CRITICAL_RETRIES + 1


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 200), st.floats(0, 0.999)), max_size=60))
def test_delays_are_always_bounded(deaths: list[tuple[float, float, float]]) -> None:
    history, now = History(), 0.0
    for pause, lived, chance in deaths:
        now += pause + lived
        history, decision = die(history, now, lived_s=lived, chance=chance)

        assert 0.0 <= decision.delay_s <= 1.25 * SLOW_RETRY_S
        assert len(history.failures) <= POLICY.failures_max + 1
