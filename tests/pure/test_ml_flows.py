"""When a flow is shown to the model, and what the offline meter counts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.capture import CaptureError, dissect, read_frames
from ml.flows import FlowReader, Why
from ml.meter import CaptureMeter
from ml.records import ACK, FIN, FLOW, PSH, RST, SYN, RecordsError, check, is_closed
from ml.synthetic import NODE, session, tcp, udp, write_pcap
from tests.support.ml import one_flow, tick


def test_a_flow_is_not_shown_before_its_handshake_had_time() -> None:
    reader, table = FlowReader(), one_flow()

    early, later = reader.tick(tick(table, 100.2)), reader.tick(tick(table, 100.7))

    assert len(early) == 0
    assert later.why.tolist() == [Why.FIRST_LOOK]
    assert later.fresh.all()


@pytest.mark.parametrize("packets", [4, 16, 64, 256, 1024])
def test_a_milestone_of_packets_is_shown_at_once(packets: int) -> None:
    reader, table = FlowReader(), one_flow(packets=packets)

    shown = reader.tick(tick(table, 100.1))

    assert shown.why.tolist() == [Why.MILESTONE]
    assert len(reader.tick(tick(table, 100.2))) == 0


def test_a_flow_that_never_ends_is_shown_every_five_seconds() -> None:
    reader, table = FlowReader(), one_flow()
    shown_at = []

    for half_seconds in range(201, 240):
        table["last_ns"] = half_seconds * 500_000_000
        if len(reader.tick(tick(table, half_seconds / 2))):
            shown_at.append(half_seconds / 2)

    assert shown_at == [100.5, 105.5, 110.5, 115.5]


def test_idle_is_told_once_and_a_flow_that_wakes_is_shown_again() -> None:
    reader, table = FlowReader(), one_flow()
    reader.tick(tick(table, 101))

    idle = reader.tick(tick(table, 116))
    silent = reader.tick(tick(table, 130))
    table["last_ns"], table["side"]["packets"] = 131_000_000_000, 4
    awake = reader.tick(tick(table, 131.5))

    assert idle.why.tolist() == [Why.IDLE]
    assert idle.final.all()
    assert len(silent) == 0
    assert awake.new_packets.tolist() == [[3, 4]]


def test_a_closed_flow_is_told_once_though_late_packets_come() -> None:
    reader, table = FlowReader(), one_flow()
    table["side"][0, 1]["flags"][RST] = table["side"][0, 1]["packets"] = 1

    closed = reader.tick(tick(table, 100.1))
    table["side"]["packets"] += 20
    table["last_ns"] += 1_000_000_000

    assert closed.why.tolist() == [Why.CLOSED]
    assert len(reader.tick(tick(table, 101.5))) == 0


def test_another_incarnation_in_the_same_slot_is_another_flow() -> None:
    reader, table = FlowReader(), one_flow(packets=5)
    first = reader.tick(tick(table, 100.1))
    table["incarnation"] += 1

    second = reader.tick(tick(table, 100.6))

    assert second.fresh.all()
    assert second.flow_id.tolist() != first.flow_id.tolist()
    assert second.new_packets[0, 0] == 5


def test_only_growth_is_counted_between_two_looks() -> None:
    reader, table = FlowReader(), one_flow(packets=4, wire_bytes=400)
    reader.tick(tick(table, 100.1))
    table["side"][0, 0]["packets"], table["side"][0, 0]["wire_bytes"] = 16, 1500

    shown = reader.tick(tick(table, 100.6))

    assert shown.new_packets[0, 0] == 12
    assert shown.new_bytes[0, 0] == 1100


def test_fin_from_every_side_that_was_seen_closes() -> None:
    table = one_flow()
    table["side"][0, 0]["flags"][FIN] = 1
    assert is_closed(table).all()

    table["side"][0, 1]["packets"] = 1

    assert not is_closed(table).any()


def test_records_of_another_layout_are_refused_in_words() -> None:
    with pytest.raises(RecordsError, match="different versions"):
        check(np.zeros(3, np.dtype([("x", "u4")])))


def last_records(path: Path) -> np.ndarray:
    """The last state of each flow of a capture."""
    found: dict[int, np.ndarray] = {}
    for seen in CaptureMeter(path).ticks():
        for slot in seen.slots.tolist():
            found[int(seen.table["incarnation"][slot])] = seen.table[slot].copy()
    return np.array(list(found.values()), FLOW)


def test_the_meter_counts_a_session_to_the_packet(tmp_path: Path) -> None:
    write_pcap(tmp_path / "one.pcap", session(0.0, "192.0.2.21", 20000, 80, [(0.1, 100, 3000)]))

    (flow,) = last_records(tmp_path / "one.pcap")

    caller, answerer = flow["side"]
    assert caller["packets"] == 5
    assert answerer["packets"] == 5
    assert caller["payload_bytes"] == 100
    assert answerer["payload_bytes"] == 3000
    assert answerer["sizes"].tolist() == [2, 0, 1, 0, 0, 0, 2]
    assert caller["flags"][[SYN, ACK, FIN, PSH]].tolist() == [1, 4, 1, 1]
    assert caller["payload_max"] == 100
    assert answerer["payload_sumsq"] == 2 * 1448**2 + 104**2


def test_a_syn_after_the_end_begins_another_flow_on_the_same_ports(tmp_path: Path) -> None:
    client = "192.0.2.21"
    again = [*session(0.0, client, 20000, 80, [(0.1, 10, 10)]), *session(1.0, client, 20000, 80, [(0.1, 10, 10)])]
    write_pcap(tmp_path / "two.pcap", again)

    assert len(last_records(tmp_path / "two.pcap")) == 2


def test_who_answers_first_in_a_capture_is_still_the_responder(tmp_path: Path) -> None:
    client = "192.0.2.21"
    late = [(0.0, tcp(NODE, 80, client, 20000, 18)), (0.1, tcp(client, 20000, NODE, 80, 16))]
    write_pcap(tmp_path / "late.pcap", late)

    (flow,) = last_records(tmp_path / "late.pcap")

    assert flow["key"]["port"].tolist() == [20000, 80]
    assert flow["side"]["packets"].tolist() == [1, 1]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00E", b"\x86\xdd`", b"\x81\x00\x00\x01\x08\x00E"]))
def test_no_frame_makes_the_parser_raise(junk: bytes, kind: bytes) -> None:
    packet = dissect(1, 60, bytes(12) + kind + junk)

    assert packet is None or packet.payload >= 0


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_a_frame_cut_anywhere_is_read_or_skipped(cut: int) -> None:
    whole = udp("192.0.2.1", 5, NODE, 53, 20)

    packet = dissect(1, len(whole), whole[:cut])

    assert packet is None or packet.dport == 53


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a pcap"),
        (b"\n\r\r\n" + bytes(40), "editcap"),
        (b"\xd4\xc3\xb2\xa1" + bytes(16) + b"\x71\0\0\0", "113"),
    ],
)
def test_a_file_that_is_no_ethernet_capture_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.pcap").write_bytes(content)

    with pytest.raises(CaptureError, match=words):
        list(read_frames(tmp_path / "x.pcap"))
