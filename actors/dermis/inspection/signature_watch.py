"""Tries the YAML signatures on what the detector reassembles: streams as they grow, datagrams, decoded HTTP. Pure.

A signature is told once per flow and side. Streams are scanned piece by piece; what had to be rebuilt (late or
overlapping segments) is scanned again as a whole, in each reading. HTTP is also scanned as receivers decode it:
paths with their percent signs undone, forms too, bodies out of their chunks and compression.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.dermis.inspection.conversation import CLIENT
from actors.dermis.inspection.detector import EXCERPT_BYTES, Talk
from actors.dermis.inspection.http_view import Message, unescaped
from actors.dermis.inspection.packets import Packet
from actors.dermis.inspection.signature_engine import Engine, Found, Scan
from actors.dermis.inspection.signatures import Signature
from actors.dermis.inspection.streams import Growth, Run
from actors.dermis.inspection.vaccination import head_of, innocent_heads, refusal


@dataclass(frozen=True, slots=True)
class Hit:
    """A signature was found in what ``source`` said. excerpt: bytes near the place, for people. head: the first bytes
    of the packet, where they may become a vaccine (vaccination.py), else empty."""

    signature: Signature
    source: bytes
    source_port: int
    dest: bytes
    dest_port: int
    proto: int
    where: str
    excerpt: bytes
    at_s: float
    head: bytes = b""


@dataclass(slots=True)
class _Watched:
    """One side of a flow: the run that is followed as a stream, and what was told already."""

    run: Run | None = None
    scan: Scan | None = None
    told: set[int] = field(default_factory=set)


class SignatureWatch:
    """Listens to a ``Detector``; hits wait in ``hits`` until taken. One thread."""

    def __init__(self, signatures: Sequence[Signature], engine: Engine) -> None:
        self._signatures, self._engine = list(signatures), engine
        self._innocent = innocent_heads(self._signatures)
        self._watched: dict[tuple[object, int], _Watched] = {}
        self._hits: list[Hit] = []
        self.scanned_bytes = 0

    def take(self) -> list[Hit]:
        hits, self._hits = self._hits, []
        return hits

    def grew(self, talk: Talk, side: int, packet: Packet, growth: Growth) -> None:
        watched = self._watched.setdefault((talk.conversation.key, side), _Watched())
        if growth.fresh is not None and growth.run is watched.run and watched.scan is not None:
            self._tell(watched.scan.feed(growth.fresh), talk, side, packet, "stream", growth.run.first, watched)
            self.scanned_bytes += len(growth.fresh)
        else:
            self._follow(talk, side, packet, growth.run, watched)
        if growth.run.last is not None:
            newest = bytes(growth.run.last)
            self._tell(self._block(newest), talk, side, packet, "stream", newest, watched)

    def _follow(self, talk: Talk, side: int, packet: Packet, run: Run, watched: _Watched) -> None:
        """Begin with this run anew."""
        if watched.scan is not None:
            watched.scan.close()
        watched.run, watched.scan = run, self._engine.stream()
        data = bytes(run.first)
        self.scanned_bytes += len(data)
        self._tell(watched.scan.feed(data), talk, side, packet, "stream", data, watched)

    def datagram(self, talk: Talk, side: int, packet: Packet) -> None:
        watched = self._watched.setdefault((talk.conversation.key, side), _Watched())
        found = self._block(packet.payload)
        self._tell(found, talk, side, packet, "datagram", packet.payload, watched)

    def message(self, talk: Talk, side: int, packet: Packet, message: Message) -> None:
        watched = self._watched.setdefault((talk.conversation.key, side), _Watched())
        for name in ("http.uri", "http.request_body", "http.response_body"):
            for data in message.buffers.get(name, ()):
                self._tell(self._block(data), talk, side, packet, name, data, watched)
                if side == CLIENT and b"%" in data:  # forms in bodies; paths that are encoded twice
                    plain = unescaped(data)
                    self._tell(self._block(plain), talk, side, packet, name, plain, watched)

    def ended(self, talk: Talk) -> None:
        for side in (0, 1):
            watched = self._watched.pop((talk.conversation.key, side), None)
            if watched is not None and watched.scan is not None:
                watched.scan.close()

    def _block(self, data: bytes) -> list[Found]:
        self.scanned_bytes += len(data)
        return self._engine.block(data) if data else []

    def _tell(
        self,
        found: list[Found],
        talk: Talk,
        side: int,
        packet: Packet,
        where: str,
        data: bytes | bytearray,
        watched: _Watched,
    ) -> None:
        if not found:
            return
        (source, source_port), (dest, dest_port) = talk.conversation.ends_of(side)
        server_port = dest_port if side == 0 else source_port
        for number, end in found:
            signature = self._signatures[number]
            if number in watched.told or not signature.applies(packet.proto, server_port):
                continue
            watched.told.add(number)
            near = bytes(data[max(0, end - EXCERPT_BYTES) : end + 16])
            head = self._head(number, side, packet)
            self._hits.append(
                Hit(signature, source, source_port, dest, dest_port, packet.proto, where, near, packet.at_s, head)
            )

    def _head(self, number: int, side: int, packet: Packet) -> bytes:
        """What may become a vaccine: only what a client says, and only of the packet that completed the pattern."""
        if not self._signatures[number].vaccinate or side != CLIENT:
            return b""
        head = head_of(number, packet.payload, self._engine.block)
        return head if not refusal(packet.proto, packet.dest_port, head, self._innocent) else b""
