"""The lab's own truthfulness: forged frames are correct, and reaction and leak are what they are called."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether

from actors.admin.lab.ears import answer_of
from actors.admin.lab.observer import payloads
from actors.admin.lab.passage import Passage, slowest
from actors.admin.lab.report import InnocentFigures, Report
from actors.admin.lab.traffic import Forge, Spec, number_of


def spec(**changes: object) -> Spec:
    given_values: dict[str, object] = {
        "kind": "syn", "source": "10.66.0.66", "target": "10.77.0.1", "source_mac": "02:77:00:00:00:42",
        "target_mac": "02:77:00:00:00:01", "interface": "wire0", "rate": 1000, "seconds": 1.0,
    }  # fmt: skip
    return Spec(**(given_values | changes))  # type: ignore[arg-type]


V6 = {"source": "fd66:0:0:66::66", "target": "fd77:7:0:1::1"}


@pytest.mark.parametrize("kind", ["syn", "udp"])
@pytest.mark.parametrize("addresses", [{}, V6], ids=["ipv4", "ipv6"])
@given(number=st.integers(0, 2**32 - 1), sources=st.sampled_from([1, 3, 200]))
def test_every_forged_frame_has_correct_checksums_and_tells_its_number(kind, addresses, number, sources):
    forge = Forge(spec(kind=kind, sources=sources, **addresses))

    frame = bytes(forge.stamp(number))

    told = Ether(frame)
    layer = UDP if kind == "udp" else TCP
    sent_sum = told[layer].chksum
    del told[layer].chksum
    if not addresses:
        del told["IP"].chksum
    again = Ether(bytes(told))
    assert bytes(again[layer].chksum.to_bytes(2, "big")) == sent_sum.to_bytes(2, "big") or sent_sum == 0xFFFF
    assert addresses or again["IP"].chksum == Ether(frame)["IP"].chksum
    assert number_of(frame[14:]) == (forge.spec.source_list()[number % sources], number)


def test_sources_count_upwards_by_address_in_ipv4_and_by_64_in_ipv6():
    four, six = spec(sources=3).source_list(), spec(sources=3, **V6).source_list()

    assert four == ["10.66.0.66", "10.66.0.67", "10.66.0.68"]
    assert six == ["fd66:0:0:66::66", "fd66:0:0:67::66", "fd66:0:0:68::66"]


def test_the_reaction_is_the_departure_of_the_first_packet_that_did_not_arrive():
    passage = Passage([1_000_000 * n for n in range(1, 11)], frozenset({0, 1, 2}))

    assert passage.reaction_ms() == 3.0
    assert passage.leaked() == 0
    assert passage.counts() == (10, 3)


def test_a_packet_that_arrives_after_the_first_lost_one_is_a_leak():
    passage = Passage([1_000_000 * n for n in range(1, 11)], frozenset({0, 1, 2, 7}))

    assert passage.leaked() == 1


def test_without_any_reaction_everything_is_a_leak():
    passage = Passage([10, 20, 30], frozenset({0, 1, 2}))

    assert passage.reaction_ms() is None
    assert passage.leaked() == 3


def test_a_ban_by_hand_is_judged_from_the_moment_of_the_wish_to_its_release():
    # five before the wish, two until it bites, four dropped, one through, then released
    left = [1_000_000 * n for n in range(1, 15)]
    passage = Passage(left, frozenset({0, 1, 2, 3, 4, 5, 6, 10, 12, 13}))

    assert passage.reaction_ms(since_ns=5_500_000) == 2.5
    assert passage.leaked(since_ns=5_500_000, until_ns=12_500_000) == 1


def test_the_slowest_reaction_counts_and_a_missing_one_means_none():
    assert slowest([1.0, 3.0, 2.0]) == 3.0
    assert slowest([1.0, None]) is None
    assert slowest([]) is None


def test_a_report_without_criteria_is_not_ok_and_one_failed_criterion_is_enough():
    empty, failed, held = (Report(scenario="x", seed=1) for _ in range(3))
    failed.must("a", True)
    failed.must("b", False)
    held.must("a", True)

    assert [empty.ok, failed.ok, held.ok] == [False, False, True]


@pytest.mark.parametrize(("reaction_ms", "held"), [(None, [False, False]), (31.0, [True, False]), (30.0, [True, True])])
def test_that_a_reaction_came_and_how_fast_it_came_are_two_criteria(reaction_ms, held):
    report = Report(scenario="x", seed=1, reaction_ms=reaction_ms)

    report.must_react("the flood was dropped", 30.0)

    assert [criterion.held for criterion in report.criteria] == held
    assert [criterion.timed for criterion in report.criteria] == [False, True]


@pytest.mark.parametrize(
    ("lost", "before", "during", "undisturbed"),
    [(0, 3.0, 5.9, True), (0, 3.0, 6.1, False), (0, 0.2, 1.1, True), (0, 0.2, 1.3, False), (1, 3.0, 3.0, False),
     (0, None, 1.0, False), (0, 1.0, None, False)],
)  # fmt: skip
def test_the_innocent_is_undisturbed_within_twice_its_latency_and_without_loss(lost, before, during, undisturbed):
    figures = InnocentFigures(sent=10, lost=lost, median_ms_before=before, median_ms_during=during, median_ms_after=1.0)

    assert figures.undisturbed is undisturbed


@given(st.binary(max_size=200))
def test_random_bytes_never_break_a_reader_of_packets(data):
    number_of(data)
    answer_of(data)
    list(payloads(data))


def test_an_answer_names_who_is_told_what_about_which_port():
    frame = bytearray(Forge(spec()).stamp(7))
    frame[26:30], frame[30:34] = frame[30:34], frame[26:30]
    struct.pack_into("!HH", frame, 34, 80, 1024)

    frame[47] = 0x12
    assert answer_of(bytes(frame)) == ("10.66.0.66", 80, "open")
    frame[47] = 0x14
    assert answer_of(bytes(frame)) == ("10.66.0.66", 80, "closed")
    frame[47] = 0x10
    assert answer_of(bytes(frame)) is None
