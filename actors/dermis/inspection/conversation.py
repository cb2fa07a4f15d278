"""What inspection remembers of one flow: who speaks which protocol, the messages taken apart so far. Pure."""

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from actors.dermis.inspection import app_views, http_view
from actors.dermis.inspection.http_body import Work
from actors.dermis.inspection.http_view import Message
from actors.dermis.inspection.packets import ICMP, SYN, TCP, UDP, Packet

CLIENT, SERVER = 0, 1
_DNS_PORTS = (53, 5353)


class FlowKey(NamedTuple):
    """Both ends in a fixed order, so that either direction finds the flow. life tells lives of one tuple apart."""

    proto: int
    low: tuple[bytes, int]
    high: tuple[bytes, int]
    life: int


def flow_key(packet: Packet) -> FlowKey:
    ends = ((packet.source, packet.source_port), (packet.dest, packet.dest_port))
    return FlowKey(packet.proto, min(ends), max(ends), packet.incarnation)


@dataclass(slots=True, eq=False)
class Conversation:
    """client: the end that opened the flow, once known. passed: a pass rule has let the rest of it through."""

    key: FlowKey
    client: tuple[bytes, int] | None = None
    app: str = ""
    seen: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    bits: set[str] = field(default_factory=set)
    done: set[tuple[int, ...]] = field(default_factory=set)
    passed: bool = False
    ages: int = 0  #: how many packets
    work: Work = field(default_factory=Work)

    def side_of(self, packet: Packet) -> int:
        """0 when the client sent it. The first packet decides who the client is; a SYN decides better."""
        sender = (packet.source, packet.source_port)
        if self.client is None:
            begins = packet.initiator
            if begins is None:
                begins = not _is_answer(packet)
            self.client = sender if begins else (packet.dest, packet.dest_port)
        side = CLIENT if sender == self.client else SERVER
        self.seen.add(side)
        self.ages += 1
        return side

    def established(self, packet: Packet) -> bool:
        """Both ends have spoken, and this is no part of the handshake. A kernel sample carries payload: that is
        enough."""
        if packet.proto == TCP and packet.flags & SYN:
            return False
        return packet.initiator is not None or len(self.seen) == 2

    def ends_of(self, side: int) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
        """Sender and receiver of what this side says."""
        client = self.client or self.key.low
        server = self.key.high if client == self.key.low else self.key.low
        return (client, server) if side == CLIENT else (server, client)

    def learn_app(self, side: int, data: bytes, proto: int) -> None:
        """Find out what is spoken, from the first bytes of a side."""
        if self.app:
            return
        if proto == UDP:
            ports = (self.key.low[1], self.key.high[1])
            if any(port in _DNS_PORTS for port in ports) and app_views.is_dns(data):
                self.app = "dns"
        elif app_views.is_tls(data):
            self.app = "tls"
        elif app_views.is_ssh(data):
            self.app = "ssh"
        elif http_view.looks_like_request(data) if side == CLIENT else http_view.looks_like_response(data):
            self.app = "http"
        elif any(port in _DNS_PORTS for port in (self.key.low[1], self.key.high[1])) and app_views.is_dns(data[2:]):
            self.app = "dns"

    def messages(self, side: int, data: bytes) -> list[Message]:
        """The side's bytes as messages of what is spoken."""
        closed = side in self.closed
        if self.app == "http":
            read = http_view.requests if side == CLIENT else http_view.responses
            return read(data, closed, self.work)
        if self.app == "tls" and side == CLIENT:
            name = app_views.tls_sni(data)
            return [Message({"tls.sni": name}, ended=True, is_request=True)] if name else []
        if self.app == "ssh":
            banner = app_views.ssh_banner(data)
            return [Message(banner, ended=True, is_request=side == CLIENT)] if banner else []
        if self.app == "dns":
            return [_dns_message(one) for one in app_views.dns_over_tcp(data)]
        return []


def dns_datagram(data: bytes) -> list[Message]:
    return [_dns_message(data)]


def _dns_message(data: bytes) -> Message:
    return Message({"dns.query": app_views.dns_queries(data)}, ended=True, is_request=True)


def _is_answer(packet: Packet) -> bool:
    """Whether the first packet we see of a flow comes from the server."""
    if packet.proto == TCP:
        return packet.flags & 0x12 == 0x12 or (bool(packet.payload) and http_view.looks_like_response(packet.payload))
    if packet.proto == UDP and packet.source_port in _DNS_PORTS and len(packet.payload) >= 12:
        return bool(struct.unpack_from("!2xH", packet.payload)[0] & 0x8000)
    return packet.proto == ICMP and packet.icmp_type == 0
