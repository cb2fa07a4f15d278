"""What the meter makes of long silences: another flow, of the same parties where it is a connection; sums that stay."""

from pathlib import Path

import numpy as np
import pytest

from ml import meter
from ml.meter import CaptureMeter
from ml.records import ESTABLISHED, HALF_OPEN, NEW
from tests.support.packets import ACK, NODE4, PEER4, PSH, SYN, UDP, ethernet, ip4, tcp, udp

S = 1_000_000_000


def out(flags: int, payload: bytes = b"") -> bytes:
    return ethernet(ip4(tcp(flags, payload, sport=40_000, dport=443)))


def back(flags: int, payload: bytes = b"") -> bytes:
    return ethernet(ip4(tcp(flags, payload, sport=443, dport=40_000), source=NODE4, dest=PEER4))


def last(*timed: tuple[float, bytes]) -> np.void:
    """The record after the last frame; the first number of each pair is seconds of silence before it."""
    at_ns, frames = 1 << 41, []
    for silence_s, frame in timed:
        at_ns += int(silence_s * S)
        frames.append((at_ns, len(frame), frame))
    (tick,) = [tick for tick in CaptureMeter(Path("frames"), frames).ticks(10**17) if len(tick.slots)][:1]
    (slot,) = tick.slots
    return tick.table[slot].copy()


def test_a_short_silence_changes_nothing() -> None:
    flow = last((0, out(SYN)), (0.01, back(SYN | ACK)), (0.01, out(ACK)), (29, back(PSH | ACK, b"x")))

    assert flow["side"]["packets"].tolist() == [2, 2]
    assert flow["incarnation"] == 1


def test_after_a_long_silence_a_connection_is_another_flow_of_the_same_parties() -> None:
    flow = last((0, out(SYN)), (0.01, back(SYN | ACK)), (0.01, out(ACK)), (31, back(PSH | ACK, b"still here")))

    assert flow["key"]["port"].tolist() == [40_000, 443]
    assert flow["side"]["packets"].tolist() == [0, 1]
    assert (int(flow["incarnation"]), int(flow["state"])) == (2, ESTABLISHED)


def test_what_never_stood_does_not_stand_after_a_silence() -> None:
    flow = last((0, out(SYN)), (31, back(ACK)))

    assert flow["key"]["port"].tolist() == [40_000, 443]
    assert int(flow["state"]) == NEW


def test_a_syn_after_a_long_silence_names_the_parties_anew() -> None:
    flow = last((0, out(SYN)), (0.01, back(SYN | ACK)), (0.01, out(ACK)), (31, back(SYN)))

    assert flow["key"]["port"].tolist() == [443, 40_000]
    assert int(flow["state"]) == HALF_OPEN


def test_datagrams_after_a_long_silence_belong_to_whoever_speaks_then() -> None:
    question, answer = udp(sport=5_000, dport=53), udp(sport=53, dport=5_000)

    flow = last((0, ethernet(ip4(question, UDP))), (31, ethernet(ip4(answer, UDP, NODE4, PEER4))))

    assert flow["key"]["port"].tolist() == [53, 5_000]


def test_a_sum_stays_at_the_largest_number_of_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "ANOTHER_NS", 10**18)
    monkeypatch.setattr(meter, "FORGET_NS", 10**18)

    flow = last(*[(4_000.0, out(ACK))] * 7)

    assert int(flow["side"]["iat_sumsq_us"][0]) == (1 << 64) - 1
    assert int(flow["side"]["iat_max_us"][0]) == 1 << 31
