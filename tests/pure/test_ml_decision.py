"""Calibration, evidence per source, drift: arithmetic that decides who is blamed."""

import numpy as np
import pytest

from ml.calibration import Curve, per_unit
from ml.decision import SIEGE_SOURCES, Blame, Evidence, Judge, log_binomial_tail
from ml.drift import WATCHED_COLUMNS, Drift, DriftMeter, Reference, psi
from ml.metrics import auc


def batch(
    log_p: list[float], at_s: float, *, first_id: int = 0, sources: list[int] | None = None, own: bool = False
) -> Evidence:
    count = len(log_p)
    key, of_source = np.unique(np.array(sources or [7] * count, "u8"), return_inverse=True)
    return Evidence(
        int(at_s * 1e9), np.array(log_p, "f4"), np.arange(first_id, first_id + count), key, of_source,
        np.full(count, 6 << 16 | 80, "u4"), np.full(count, own),
    )  # fmt: skip


def test_three_strange_flows_of_three_blame_their_source() -> None:
    (blame,) = Judge().weigh(batch([-2.5, -2.2, -3.0], 10))

    assert blame == Blame(row=2, at_ns=10_000_000_000, strange=3, seen=3, renewed=False)


def test_three_strange_flows_of_forty_blame_nobody() -> None:
    assert Judge().weigh(batch([-2.5, -2.2, -3.0] + [-0.3] * 37, 10)) == []


def test_one_flow_beyond_all_doubt_is_enough() -> None:
    assert len(Judge().weigh(batch([-5.5], 10))) == 1


def test_the_same_flow_seen_three_times_is_one_flow() -> None:
    judge = Judge()

    blames = [judge.weigh(batch([-3.0], at)) for at in (10, 11, 12)]

    assert blames == [[], [], []]


def test_strange_flows_add_up_over_ten_seconds_and_no_longer() -> None:
    quick, slow = Judge(), Judge()

    within = [quick.weigh(batch([-3.0], 10 + i, first_id=i)) for i in range(3)]
    beyond = [slow.weigh(batch([-3.0], 10 + 8 * i, first_id=i)) for i in range(3)]

    assert [len(found) for found in within] == [0, 0, 1]
    assert beyond == [[], [], []]


def test_a_source_is_blamed_once_a_minute_and_renewed_in_between() -> None:
    judge = Judge()

    renewed = [judge.weigh(batch([-6.0], at, first_id=at))[0].renewed for at in (10, 20, 71)]

    assert renewed == [False, True, False]


def test_the_nodes_own_flows_blame_nobody() -> None:
    assert Judge().weigh(batch([-9.0] * 10, 10, own=True)) == []


def test_forged_sources_are_a_siege_of_the_service_and_not_of_one_client() -> None:
    flood = batch([-3.0] * SIEGE_SOURCES, 10, sources=list(range(1, SIEGE_SOURCES + 1)))

    (siege,) = Judge().weigh(flood)

    assert siege.siege
    assert siege.strange == SIEGE_SOURCES


def test_a_busy_service_with_a_few_strange_clients_is_not_under_siege() -> None:
    clients = list(range(1, 201))

    assert Judge().weigh(batch([-3.0] * SIEGE_SOURCES + [-0.2] * 150, 10, sources=clients)) == []


def test_the_judge_forgets_and_stays_small_under_a_million_suspects() -> None:
    judge = Judge(sources=100)
    for i in range(50):
        judge.weigh(batch([-3.0] * 200, 10 + i, first_id=i * 200, sources=list(range(i * 200, i * 200 + 200))))

    assert len(judge._records) <= 100


def test_the_binomial_bound_is_never_below_the_truth() -> None:
    from math import comb, log10

    for trials in (3, 10, 40):
        for hits in (1, 3, trials):
            exact = sum(comb(trials, k) * 0.01**k * 0.99 ** (trials - k) for k in range(hits, trials + 1))
            assert log_binomial_tail(hits, trials) >= log10(exact) - 1e-9


def test_a_curve_gives_the_rank_inside_and_an_exponential_tail_beyond() -> None:
    scores = np.random.default_rng(1).exponential(1.0, 20_000).astype("f4")

    curve = Curve.fit(scores)
    at = curve.log_p(np.array([0.0, np.log(2), np.log(100), np.log(100_000)], "f4"))

    assert at == pytest.approx([0, np.log10(0.5), -2, -5], abs=0.15)


def test_a_curve_never_says_zero_and_never_rises_with_the_score() -> None:
    curve = Curve.fit(np.linspace(0, 1, 500, dtype="f4"))

    values = curve.log_p(np.linspace(-5, 50, 1000, dtype="f4"))

    assert (np.diff(values) <= 1e-6).all()
    assert np.isfinite(values).all()
    assert values.max() <= 0


def test_too_few_clean_units_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="too few to calibrate"):
        Curve.fit(np.zeros(50, "f4"))


def test_a_unit_counts_at_its_strangest() -> None:
    assert per_unit(np.array([1, 5, 2, 3], "f4"), np.array([0, 0, 1, 1])).tolist() == [5, 3]


def test_auc_of_a_perfect_and_of_a_blind_detector() -> None:
    assert auc(np.array([2, 3], "f4"), np.array([0, 1], "f4")) == 1.0
    assert auc(np.ones(4, "f4"), np.ones(4, "f4")) == 0.5


def drift_of(shift: float, rows: int = 2000) -> Drift:
    rng = np.random.default_rng(4)
    width = len(WATCHED_COLUMNS)
    meter = DriftMeter(Reference.of(rng.normal(size=5000).astype("f4"), rng.normal(size=(5000, width)).astype("f4")))
    meter.add(rng.normal(shift, size=rows).astype("f4"), rng.normal(size=(rows, width)).astype("f4"))
    return meter.take()[0]


def test_drift_is_steady_then_frozen_then_stale_as_the_network_moves() -> None:
    assert [drift_of(0.0), drift_of(0.7), drift_of(3.0)] == [Drift.STEADY, Drift.FROZEN, Drift.STALE]
    assert drift_of(3.0, rows=10) is Drift.UNKNOWN


def test_an_empty_bin_is_no_infinity() -> None:
    assert np.isfinite(psi(np.array([1.0, 0.0], "f4"), np.array([0.0, 1.0], "f4")))
