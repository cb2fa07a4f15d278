"""The control loop: when budgets are tightened, how they come back, and what the host's files say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.hypodermis import control_gauges as gauges
from actors.hypodermis.control import QUIET_PPS, ControlLoop, Reading
from actors.hypodermis.control_gauges import Gauges

FLOOR = 0.25


def run(loop, seconds, pps, *, start_s=0.0, packets=0, **levels):
    """Readings once a second; returns the moment and the total for the next run."""
    for second in range(seconds + 1):
        loop.step(Reading(at_s=start_s + second, packets=packets + pps * second, **levels))
    return {"start_s": start_s + seconds, "packets": packets + pps * seconds}


def test_a_quiet_node_keeps_its_budgets():
    loop = ControlLoop(FLOOR)

    run(loop, 60, 500, softirq=0.01)

    assert loop.scale == 1.0


def test_a_surge_with_strain_tightens_by_a_third_each_second_down_to_the_floor():
    loop = ControlLoop(FLOOR)
    after = run(loop, 60, 500, softirq=0.01)

    scales = []
    for second in range(1, 8):
        after = run(loop, 1, 40_000, **after, softirq=0.8)
        scales.append(round(loop.scale, 2))
        assert loop.scale == pytest.approx(max(FLOOR, 0.67**second), abs=0.01)

    assert scales[-1] == FLOOR
    assert "softirq" in loop.why()


@pytest.mark.parametrize(
    "strain", [{"softirq": 0.9}, {"cpu_stall": 0.99}, {"memory_stall": 0.9}, {"conntrack": 0.99}], ids=str
)
def test_strain_without_a_surge_costs_nobody_anything(strain):
    loop = ControlLoop(FLOOR)

    run(loop, 60, 800, **strain)

    assert loop.scale == 1.0


def test_a_surge_that_the_host_carries_easily_costs_nobody_anything():
    loop = ControlLoop(FLOOR)
    after = run(loop, 60, 500)

    run(loop, 30, 100_000, **after, softirq=0.2)

    assert loop.surging
    assert loop.scale == 1.0


def test_refused_connections_count_as_strain():
    loop = ControlLoop(FLOOR)
    after = run(loop, 30, 500, listen_drops=7)

    for second in range(5):
        after = run(loop, 1, 40_000, **after, listen_drops=7 + 1_000 * second)

    assert loop.scale < 1.0


def test_between_calm_and_strain_the_scale_stays():
    loop = ControlLoop(FLOOR)
    after = run(loop, 30, 500)
    after = run(loop, 3, 40_000, **after, softirq=0.9)
    tightened = loop.scale

    run(loop, 20, 40_000, **after, softirq=0.4)

    assert loop.scale == tightened < 1.0


def test_after_the_surge_budgets_come_back_within_a_quarter_of_a_minute():
    loop = ControlLoop(FLOOR)
    after = run(loop, 30, 500)
    after = run(loop, 20, 40_000, **after, softirq=0.9)
    assert loop.scale == FLOOR

    after = run(loop, 5, 500, **after, softirq=0.9)
    soon = loop.scale
    run(loop, 15, 500, **after)

    assert FLOOR <= soon < 0.8
    assert loop.scale == 1.0


def test_an_attack_does_not_soon_become_normal():
    loop = ControlLoop(FLOOR)
    after = run(loop, 600, 500)

    run(loop, 300, 100_000, **after, softirq=0.9)

    assert loop.surging
    assert loop.baseline_pps < 3 * QUIET_PPS


def test_counters_made_anew_and_gaps_are_no_surge():
    loop = ControlLoop(FLOOR)
    after = run(loop, 30, 500)

    loop.step(Reading(at_s=after["start_s"] + 1, packets=0, softirq=0.9))
    loop.step(Reading(at_s=after["start_s"] + 1000, packets=10**12, softirq=0.9))

    assert loop.scale == 1.0
    assert not loop.surging


levels = st.one_of(st.none(), st.floats(0, 1))


@given(st.lists(st.builds(
    Reading, at_s=st.floats(0, 1e6), packets=st.one_of(st.none(), st.integers(0, 2**63)),
    listen_drops=st.one_of(st.none(), st.integers(0, 2**63)), softirq=levels, conntrack=levels, cpu_stall=levels,
    memory_stall=levels,
), max_size=40))  # fmt: skip
def test_whatever_is_read_the_scale_stays_in_its_range(readings):
    loop = ControlLoop(FLOOR)

    for reading in readings:
        assert FLOOR <= loop.step(reading) <= 1.0
        assert loop.why()


def test_the_files_of_this_very_host_are_understood():
    made = Gauges()
    made.read(0.0)

    reading = made.read(1.0)

    assert reading.packets is not None
    assert reading.listen_drops is not None
    assert reading.softirq is None or 0 <= reading.softirq <= 1


def test_figures_are_found_where_the_kernel_writes_them(tmp_path):
    files = {
        "self/net/dev": "a\nb\n  eth0: 1000 70 0 0 0 0 0 0 10 5 0 0 0 0 0 0\n    lo: 1 2 3 4\n",
        "self/net/netstat": "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 2 33\nIpExt: A\nIpExt: 1\n",
        "sys/net/netfilter/nf_conntrack_count": "250\n",
        "sys/net/netfilter/nf_conntrack_max": "1000\n",
        "pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=99.00 avg60=0 avg300=0 total=1\n",
        "stat": "cpu  100 0 100 700 0 0 100 0 0 0\ncpu0 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    made = Gauges(tmp_path)
    made.read(0.0)
    (tmp_path / "stat").write_text("cpu  150 0 100 700 0 0 150 0 0 0\n")

    reading = made.read(1.0)

    assert reading == Reading(
        at_s=1.0, packets=70, listen_drops=33, softirq=0.5, conntrack=0.25, cpu_stall=0.125, memory_stall=None
    )


def test_a_host_that_tells_nothing_is_read_as_nothing(tmp_path):
    assert Gauges(tmp_path).read(1.0) == Reading(at_s=1.0, packets=0)


@given(st.text(max_size=300))
def test_any_text_in_the_kernels_place_is_no_error(text):
    gauges.processor_times(text)
    gauges.processor_times("cpu " + text)
    gauges.listen_drops("TcpExt: " + text + "\nTcpExt: " + text)
    gauges.stall("some avg10=" + text)
    gauges.interface_packets("\n\n" + text)
