"""What the skin feels: pressure against its own baseline, pain, integrity, and the honesty of the units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.messages import CellState
from actors.dermis.qualia import (
    GAP_S,
    QUIET_PPS,
    Feeling,
    Totals,
    differs,
    integrity,
    interface_packets,
    pressure,
    temperature,
    totals_of,
)

NET_DEV = """Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo and so on|bytes    packets and so on
    lo: 999 77 0 0 0 0 0 0 999 77 0 0 0 0 0 0
  eth0: 1000 50 0 7 0 0 0 0 10 5 0 0 0 0 0 0
 veth1: 1000 20 0 1 0 0 0 0 10 5 0 0 0 0 0 0
   bad: x y
"""


class Traffic:
    """Totals that grow at a rate."""

    def __init__(self, feeling):
        self.feeling, self.at_s, self.packets, self.refused = feeling, 0.0, 0, 0
        feeling.feel(Totals(0, 0, 0.0))

    def run(self, seconds, pps, refused_pps=0):
        for _ in range(seconds):
            self.at_s += 1
            self.packets += pps
            self.refused += refused_pps
            self.feeling.feel(Totals(self.packets, self.refused, self.at_s))
        return self.feeling


def test_silence_is_no_pressure_and_no_pain():
    feeling = Traffic(Feeling(1800)).run(30, 0)

    assert feeling.pressure().value == 0.0
    assert feeling.pain().value == 0.0


def test_the_usual_rate_is_little_pressure_and_ten_times_it_much():
    traffic = Traffic(Feeling(1800))

    usual = traffic.run(600, 5_000).pressure().value
    surge = traffic.run(30, 50_000).pressure().value

    assert usual == pytest.approx(0.2, abs=0.03)
    assert surge > 0.65


def test_a_flood_right_after_the_start_is_felt_as_one():
    traffic = Traffic(Feeling(1800))
    traffic.run(3, 10)

    assert traffic.run(5, 50_000).pressure().value > 0.9


def test_a_node_that_is_always_busy_is_learned_within_minutes():
    assert Traffic(Feeling(1800)).run(600, 50_000).pressure().value < 0.3


def test_a_surge_does_not_soon_become_normal():
    traffic = Traffic(Feeling(1800))
    traffic.run(600, 5_000)

    before = traffic.feeling.baseline_pps
    traffic.run(60, 500_000)

    assert traffic.feeling.baseline_pps < before * 1.1
    assert traffic.feeling.pressure().value > 0.9


def test_a_lasting_change_becomes_normal():
    traffic = Traffic(Feeling(600))
    traffic.run(600, 5_000)

    assert traffic.run(6_000, 20_000).pressure().value == pytest.approx(0.2, abs=0.05)


def test_a_young_baseline_says_that_it_still_learns():
    traffic = Traffic(Feeling(1800))

    assert "learning" in traffic.run(10, 1_000).pressure().unit
    assert "learning" not in traffic.run(300, 1_000).pressure().unit


def test_pain_is_the_share_that_was_refused():
    pain = Traffic(Feeling(1800)).run(60, 1_000, refused_pps=250).pain()

    assert pain.value == pytest.approx(0.25, abs=0.01)
    assert pain.raw == pytest.approx(250, rel=0.02)


def test_counters_that_begin_anew_are_no_surge_and_no_negative_rate():
    traffic = Traffic(Feeling(1800))
    traffic.run(60, 1_000)
    rate = traffic.feeling.rate_pps

    traffic.feeling.feel(Totals(5, 0, traffic.at_s + 1))

    assert traffic.feeling.rate_pps == rate
    traffic.feeling.feel(Totals(1_005, 0, traffic.at_s + 2))
    assert traffic.feeling.rate_pps == pytest.approx(1_000, rel=0.05)


def test_a_long_gap_says_nothing():
    traffic = Traffic(Feeling(1800))
    traffic.run(60, 1_000)
    rate = traffic.feeling.rate_pps

    traffic.feeling.feel(Totals(10**9, 0, traffic.at_s + GAP_S + 1))

    assert traffic.feeling.rate_pps == rate


def test_the_same_moment_twice_is_harmless():
    traffic = Traffic(Feeling(1800))
    traffic.run(60, 1_000)

    traffic.feeling.feel(Totals(traffic.packets + 500, 0, traffic.at_s))

    assert traffic.run(1, 1_000).rate_pps == pytest.approx(1_000, rel=0.05)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e9))
def test_pressure_grows_with_the_rate_and_stays_a_share(low, more, baseline):
    assert 0.0 <= pressure(low, baseline) <= pressure(low + more, baseline) <= 1.0


@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63), st.floats(0, 1e12)), max_size=30))
def test_no_totals_however_wild_break_the_feeling(readings):
    feeling = Feeling(60)

    for packets, refused, at_s in readings:
        feeling.feel(Totals(packets, refused, at_s))

    assert 0.0 <= feeling.pressure().value <= 1.0
    assert 0.0 <= feeling.pain().value <= 1.0
    assert feeling.baseline_pps >= 0


def test_refusals_are_told_from_passes_by_their_names():
    totals = totals_of({"clean": 10, "tolerated": 2, "ban": 5, "budget_syn": 3, "unparsed_ip": 1, "would_ban": 4}, 1.0)

    assert totals == Totals(25, 8, 1.0)


def test_integrity_counts_the_cells_that_shall_run():
    quale = integrity(
        {
            "a": CellState.HEALTHY,
            "b": CellState.DEGRADED,
            "c": CellState.OFF,
            "d": CellState.DOWN,
            "e": CellState.HEALTHY,
        }
    )

    assert quale.value == 0.5
    assert quale.unit == "of 4 cells healthy"


def test_nobody_alive_but_nobody_wanted_is_whole():
    assert integrity({}).value == 1.0


def test_without_a_detector_temperature_says_that_nothing_measures_it():
    assert temperature(None).value == 0.0
    assert "no detector" in temperature(None).unit


def test_small_moves_are_not_worth_telling():
    feeling = Traffic(Feeling(1800)).run(10, 1_000).pressure()

    assert differs(None, feeling)
    assert not differs(feeling, feeling)


def test_interfaces_are_counted_without_the_loopback_and_with_drops():
    assert interface_packets(NET_DEV, frozenset()) == 78
    assert interface_packets(NET_DEV, frozenset({"eth0"})) == 57
    assert interface_packets("", frozenset()) == 0


@given(st.text())
def test_any_table_of_interfaces_is_read(text):
    assert interface_packets(text, frozenset()) >= 0


def test_the_baseline_never_falls_under_the_quiet_rate():
    assert "baseline, still learning 100" in Traffic(Feeling(1800)).run(50, 0).pressure().unit
    assert QUIET_PPS == 100.0
