"""Packets and rulebooks for tests of inspection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from actors.dermis.inspection.detector import Alert
from actors.dermis.inspection.packets import ACK, SYN, TCP, UDP, Packet, from_frame
from actors.dermis.inspection.rulebook import Rulebook, compiled
from actors.dermis.inspection.signature_watch import Hit
from actors.dermis.inspection.signatures import Shelf, read_text
from actors.dermis.inspection.streams import Limits
from actors.dermis.inspection.suricata_rules import read_rules
from bpf.pcap import CaptureError, read_capture

CLIENT, SERVER = bytes([203, 0, 113, 7]), bytes([192, 168, 0, 10])


def book_of(yaml: str = "[]", rules: str = "", limits: Limits = Limits()) -> Rulebook:
    shelf = Shelf()
    read_text(yaml, "test.yaml", shelf)
    book = read_rules(rules.splitlines())
    assert not book.refusals, book.refusals
    return compiled(shelf, book.rules, limits)


def segment(
    data: bytes, seq: int, *, answer: bool = False, flags: int = ACK, port: int = 80, at_s: float = 0.0
) -> Packet:
    ends = (SERVER, CLIENT, port, 40_000) if answer else (CLIENT, SERVER, 40_000, port)
    return Packet(at_s, ends[0], ends[1], TCP, ends[2], ends[3], data, flags, seq)


def datagram(data: bytes, port: int = 53, *, at_s: float = 0.0) -> Packet:
    return Packet(at_s, CLIENT, SERVER, UDP, 40_000, port, data)


def handshake(port: int = 80) -> list[Packet]:
    """Client starts at 1001, server at 5001."""
    return [
        segment(b"", 1_000, flags=SYN, port=port),
        segment(b"", 5_000, answer=True, flags=SYN | ACK, port=port),
        segment(b"", 1_001, port=port),
    ]


def spoken(request: bytes, response: bytes = b"", *, port: int = 80, size: int = 1_460) -> Iterator[Packet]:
    """A whole connection in segments of this size."""
    yield from handshake(port)
    for at in range(0, len(request), size):
        yield segment(request[at : at + size], 1_001 + at, port=port)
    for at in range(0, len(response), size):
        yield segment(response[at : at + size], 5_001 + at, answer=True, port=port)


def watch(book: Rulebook, packets: Iterable[Packet]) -> tuple[list[Alert], list[Hit]]:
    """What is found in these packets, the ends of all flows included."""
    alerts = [alert for packet in packets for alert in book.detector.see(packet)]
    alerts += book.detector.finish()
    return alerts, book.watch.take()


def sids(rules: str, packets: Iterable[Packet]) -> list[int]:
    return sorted({alert.rule.sid for alert in watch(book_of(rules=rules), packets)[0]})


def packets_of(capture: Path) -> Iterator[Packet]:
    """Every packet that can be read, until the capture ends or breaks."""
    try:
        for frame in read_capture(capture):
            packet = from_frame(frame.at_ns / 1e9, frame.data)
            if packet is not None:
                yield packet
    except CaptureError:
        return


__all__ = ["book_of", "datagram", "handshake", "packets_of", "segment", "sids", "spoken", "watch"]
