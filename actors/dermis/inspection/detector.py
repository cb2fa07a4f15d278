"""Runs Suricata rules over packets: per packet, per reassembled stream, per message of HTTP, TLS and DNS. Pure.

``see`` takes packets in the order of their arrival and returns alerts; ``finish`` ends all flows, which may complete
messages that were still open. Pass rules are looked at first, then drop, reject and alert; a pass match silences the
packet, and when it matched a stream or a message also the rest of the flow. ``drop`` and ``reject`` are alerts that
say so: what is blocked in truth is decided elsewhere. Same input, same alerts, however it was cut into packets
(tests hold it).

Blind spots: IP fragments and tunnels are not put together; HTTP/2 and content behind TLS are not read; a rule that uses
``itype``, ``icode`` or ``icmp_id`` never matches on kernel samples, which do not carry them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actors.dermis.inspection.conversation import CLIENT, Conversation, FlowKey, dns_datagram, flow_key
from actors.dermis.inspection.http_view import Message
from actors.dermis.inspection.packets import ACK, FIN, ICMP, ICMP6, IGMP, RST, SYN, TCP, UDP, Packet
from actors.dermis.inspection.streams import Counts, Flows, Growth, Limits, Side
from actors.dermis.inspection.suricata_match import found_at
from actors.dermis.inspection.suricata_nets import number_of
from actors.dermis.inspection.suricata_types import (
    ACTIONS,
    APPLICATIONS,
    BODIES,
    PAYLOAD,
    SEVERAL,
    Content,
    FlagsTest,
    Group,
    Rule,
    Size,
)
from actors.dermis.inspection.thresholds import Thresholds

EXCERPT_BYTES = 64
_TRANSPORTS = {
    "tcp": TCP,
    "tcp-pkt": TCP,
    "tcp-stream": TCP,
    "udp": UDP,
    "igmp": IGMP,
    "http": TCP,
    "tls": TCP,
    "ssh": TCP,
}

#: Given bytes, the numbers of the literals that occur in them (see ``Detector``); any superset will do.
Prefilter = Callable[[bytes], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule has matched. where: ``packet``, ``stream`` or the buffer; excerpt: bytes around the match."""

    rule: Rule
    source: bytes
    source_port: int
    dest: bytes
    dest_port: int
    proto: int
    where: str
    excerpt: bytes
    at_s: float


@dataclass(slots=True, eq=False)
class Talk:
    """A conversation with its two sides of bytes and the last packet, which speaks for it when it ends."""

    conversation: Conversation
    sides: list[Side] = field(default_factory=list)
    last: dict[int, Packet] = field(default_factory=dict)
    read: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)


class Listener(Protocol):
    """Who else wants what the detector has put together."""

    def grew(self, talk: Talk, side: int, packet: Packet, growth: Growth) -> None: ...

    def datagram(self, talk: Talk, side: int, packet: Packet) -> None: ...

    def message(self, talk: Talk, side: int, packet: Packet, message: Message) -> None: ...

    def ended(self, talk: Talk) -> None: ...


@dataclass(frozen=True, slots=True)
class _Match:
    rule: Rule
    where: str
    excerpt: bytes


def literal_of(rule: Rule) -> bytes:
    """The longest bytes that must occur, in lower case, in what the rule is tried on; empty when there are none.

    For a rule about messages it occurs in one of their buffers, else in the payload."""
    wanted = [group for group in rule.groups if (group.buffer != PAYLOAD) == bool(rule.buffers)]
    literals = [
        item.data.lower() for group in wanted for item in group.items if isinstance(item, Content) and not item.negated
    ]
    return max(literals, key=len, default=b"")


class Detector:
    """The rules and the flows that they are tried on. One thread.

    prefilter: made from ``[literal_of(rule) for rule in detector.rules]`` by ``make_prefilter``; without one every rule
    is tried."""

    def __init__(
        self,
        rules: Sequence[Rule],
        limits: Limits = Limits(),
        make_prefilter: Callable[[Sequence[bytes]], Prefilter | None] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._listener = listener
        self.rules = sorted(rules, key=lambda rule: (ACTIONS.index(rule.action), _asks_bits(rule)))
        self.flows: Flows[FlowKey, Talk] = Flows(limits, lambda key: Talk(Conversation(key)), self._ended)
        self._thresholds = Thresholds()
        self._alerts: list[Alert] = []
        literals = [literal_of(rule) for rule in self.rules]
        self._prefilter = make_prefilter(literals) if make_prefilter is not None else None
        everything = self._prefilter is None
        self._always = {number for number, literal in enumerate(literals) if everything or not literal}
        self._on_packet = {n for n, rule in enumerate(self.rules) if not rule.buffers and _per_packet(rule)}
        self._on_stream = {n for n, rule in enumerate(self.rules) if not rule.buffers and _per_stream(rule)}
        self._on_message = {n for n, rule in enumerate(self.rules) if rule.buffers}
        self._transport_numbers = {
            proto: frozenset(n for n, rule in enumerate(self.rules) if _speaks(rule, proto)) for proto in (TCP, UDP)
        }

    @property
    def counts(self) -> Counts:
        return self.flows.counts

    # --- packets --------------------------------------------------------------------------------------------

    def see(self, packet: Packet) -> list[Alert]:
        """One packet; the alerts that it completed."""
        key = flow_key(packet)
        if packet.proto == TCP and packet.flags & (SYN | ACK | RST | FIN) == SYN:
            self._begin_anew(key, packet)
        talk, sides = self.flows.at(key, packet.at_s)
        talk.sides = sides
        side = talk.conversation.side_of(packet)
        talk.last[side] = packet
        matches = []
        growth = None
        if packet.proto == TCP:
            growth = self._reassemble(key, talk, side, packet)
        elif packet.payload:
            talk.conversation.learn_app(side, packet.payload, packet.proto)
        if self._listener is not None and growth is not None:
            self._listener.grew(talk, side, packet, growth)
        elif self._listener is not None and packet.proto != TCP and packet.payload:
            self._listener.datagram(talk, side, packet)
        if not talk.conversation.passed:
            matches += self._packet_matches(talk, side, packet)
            if growth is not None:
                matches += self._stream_matches(talk, side, packet, growth)
            if growth is not None or (packet.proto == TCP and packet.flags & (FIN | RST)):
                matches += self._message_matches(talk, side, packet)
            elif packet.proto == UDP and packet.payload and talk.conversation.app == "dns":
                matches += self._try_messages(
                    talk, (side, 0, 0), packet, dns_datagram(packet.payload), talk.conversation.ages
                )
            self._judge(talk, packet, matches)
        return self._take()

    def expire(self, now_s: float) -> list[Alert]:
        """End flows that fell silent; the alerts that their ends completed."""
        self.flows.expire(now_s)
        return self._take()

    def finish(self) -> list[Alert]:
        """End all flows."""
        self.flows.end_all()
        return self._take()

    def _take(self) -> list[Alert]:
        alerts, self._alerts = self._alerts, []
        return alerts

    def _begin_anew(self, key: FlowKey, packet: Packet) -> None:
        """A SYN with another number on a known tuple is another flow."""
        found = self.flows.find(key)
        if found is not None:
            talk, sides = found
            sender = (packet.source, packet.source_port)
            if talk.conversation.client == sender and not sides[CLIENT].begins_at(packet.seq):
                self.flows.end(key)

    def _reassemble(self, key: FlowKey, talk: Talk, side: int, packet: Packet) -> Growth | None:
        seq = packet.seq
        if packet.flags & SYN:
            talk.sides[side].start(seq)
            seq = (seq + 1) & 0xFFFFFFFF
        growth = None
        if packet.payload and not packet.flags & RST:
            growth = self.flows.add(key, side, seq, packet.payload)
            if growth is not None:
                talk.conversation.learn_app(side, bytes(talk.sides[side].runs[0].first[:4096]), TCP)
        if packet.flags & FIN:
            talk.conversation.closed.add(side)
        if packet.flags & RST:
            talk.conversation.closed |= {0, 1}
        return growth

    def _ended(self, _key: FlowKey, talk: Talk) -> None:
        """A flow leaves: what was open in it is closed now."""
        if not talk.conversation.passed and talk.sides:
            talk.conversation.closed |= {0, 1}
            for side, packet in talk.last.items():
                if packet.proto == TCP:
                    self._judge(talk, packet, self._message_matches(talk, side, packet))
        if self._listener is not None:
            self._listener.ended(talk)

    # --- matching -------------------------------------------------------------------------------------------

    def _candidates(self, data: bytes, among: set[int], proto: int) -> list[int]:
        wanted = self._always if self._prefilter is None or not data else self._always.union(self._prefilter(data))
        spoken = self._transport_numbers.get(proto)
        chosen = among & wanted
        return sorted(chosen if spoken is None else chosen & spoken)

    def _packet_matches(self, talk: Talk, side: int, packet: Packet) -> list[_Match]:
        found = []
        for number in self._candidates(packet.payload, self._on_packet, packet.proto):
            rule = self.rules[number]
            if self._fits(rule, talk, side, packet) and (at := _in_payload(rule, packet.payload)) is not None:
                found.append(_Match(rule, "packet", _excerpt(packet.payload, at)))
        return found

    def _stream_matches(self, talk: Talk, side: int, packet: Packet, growth: Growth) -> list[_Match]:
        found = []
        for data in growth.run.readings():
            for number in self._candidates(data, self._on_stream, TCP):
                rule = self.rules[number]
                once = (number, side, 0, growth.run.offset, -1)
                if once in talk.conversation.done or not self._fits(rule, talk, side, packet):
                    continue
                if (at := _in_payload(rule, data)) is not None:
                    talk.conversation.done.add(once)
                    found.append(_Match(rule, "stream", _excerpt(data, at)))
        return found

    def _message_matches(self, talk: Talk, side: int, packet: Packet) -> list[_Match]:
        found = []
        if not talk.conversation.app or (not self._on_message and self._listener is None):
            return []
        both = {0, 1} if talk.conversation.closed else {side}
        for one in sorted(both):
            if one != side and one not in talk.conversation.closed:
                continue
            sender = packet if one == side else talk.last.get(one)
            for run in talk.sides[one].runs[:1] if sender is not None else ():
                for reading, data in enumerate(run.readings()):
                    where = one, reading, run.offset
                    skip, number = talk.read.get(where, (0, 0)) if reading == 0 else (0, 0)
                    messages = talk.conversation.messages(one, data[skip:])
                    if sender is not None:
                        found += self._try_messages(talk, where, sender, messages, number)
                    for message in messages:  # those that have ended need not be taken apart again
                        if not (message.ended and message.size):
                            break
                        skip, number = skip + message.size, number + 1
                    talk.read[where] = skip, number
        return found

    def _try_messages(
        self, talk: Talk, where: tuple[int, int, int], packet: Packet, messages: list[Message], first: int
    ) -> list[_Match]:
        """where: side, reading, and offset of the run. first: how many messages came before these."""
        found, side = [], where[0]
        for place, message in enumerate(messages, first):
            if not message.headed:
                continue
            if self._listener is not None:
                self._listener.message(talk, side, packet, message)
            if not self._on_message:
                continue
            every = b"\0".join(one for instances in message.buffers.values() for one in instances)
            for number in self._candidates(every, self._on_message, packet.proto):
                rule = self.rules[number]
                once = (number, *where, place)
                if once in talk.conversation.done or not self._fits(rule, talk, side, packet):
                    continue
                if not message.ended and any(group.wants_all and group.buffer in BODIES for group in rule.groups):
                    continue
                match = self._in_message(rule, message, talk, side)
                if match is not None:
                    talk.conversation.done.add(once)
                    found.append(match)
        return found

    def _in_message(self, rule: Rule, message: Message, talk: Talk, side: int) -> _Match | None:
        where, excerpt = "", b""
        for group in rule.groups:
            if group.buffer == PAYLOAD:
                runs = talk.sides[side].runs if talk.sides and talk.sides[side].runs else []
                said = [data for run in runs for data in run.readings()] or [talk.last[side].payload]
                if not any(found_at(group, data) is not None for data in said):
                    return None
                continue
            hit = _in_instances(group, message.buffers.get(group.buffer))
            if hit is None:
                return None
            if not where:
                where, excerpt = group.buffer, _excerpt(*hit)
        return _Match(rule, where, excerpt)

    def _fits(self, rule: Rule, talk: Talk, side: int, packet: Packet) -> bool:
        """Everything about a rule that is not content: protocol, ends, direction, header fields, flow bits."""
        return (
            _fits_protocol(rule, packet.proto, talk.conversation.app)
            and _fits_ends(rule, packet)
            and (rule.flow.to is None or rule.flow.to == side)
            and (rule.flow.established is None or rule.flow.established == talk.conversation.established(packet))
            and (rule.flags is None or (packet.proto == TCP and _fits_flags(rule.flags, packet.flags)))
            and all(_fits_number(name, size, packet) for name, size in rule.numbers)
            and (rule.ip_proto is None or (packet.proto == rule.ip_proto[0]) != rule.ip_proto[1])
            and all(
                (name in talk.conversation.bits) == (command == "isset")
                for command, name in rule.bits
                if command in ("isset", "isnotset")
            )
        )

    # --- what follows from a match ----------------------------------------------------------------------------

    def _judge(self, talk: Talk, packet: Packet, matches: list[_Match]) -> None:
        conversation = talk.conversation
        for match in sorted(matches, key=lambda each: ACTIONS.index(each.rule.action)):
            rule = match.rule
            _change_bits(rule, conversation.bits)
            if rule.action == "pass":
                conversation.passed = conversation.passed or match.where != "packet" or not rule.groups
                return
            if rule.noalert or not self._thresholds.allows(rule, packet, conversation.key, packet.at_s):
                continue
            self._alerts.append(
                Alert(
                    rule, packet.source, packet.source_port, packet.dest, packet.dest_port, packet.proto, match.where,
                    match.excerpt, packet.at_s,
                )
            )  # fmt: skip


def _asks_bits(rule: Rule) -> bool:
    return any(command in ("isset", "isnotset") for command, _ in rule.bits)


def _per_packet(rule: Rule) -> bool:
    return rule.proto != "tcp-stream" and not rule.flow.only_stream


def _per_stream(rule: Rule) -> bool:
    """Rules about content of TCP are also tried on what was reassembled, unless they ask about one packet."""
    one_packet = rule.proto == "tcp-pkt" or rule.flow.no_stream or rule.flags is not None or bool(rule.numbers)
    return bool(rule.groups) and not one_packet and rule.proto not in ("udp", "icmp")


def _speaks(rule: Rule, proto: int) -> bool:
    return rule.proto == "ip" or rule.proto == "dns" or _TRANSPORTS.get(rule.proto) == proto


def _fits_protocol(rule: Rule, proto: int, app: str) -> bool:
    if rule.proto in APPLICATIONS:
        return app == rule.proto
    if rule.proto == "ip":
        return True
    if rule.proto == "icmp":
        return proto in (ICMP, ICMP6)
    return _TRANSPORTS[rule.proto] == proto


def _fits_ends(rule: Rule, packet: Packet) -> bool:
    source, dest = (packet.source, packet.source_port), (packet.dest, packet.dest_port)
    return _fits_way(rule, source, dest) or (rule.both_ways and _fits_way(rule, dest, source))


def _fits_way(rule: Rule, source: tuple[bytes, int], dest: tuple[bytes, int]) -> bool:
    return (
        (rule.source_ports.anything or source[1] in rule.source_ports)
        and (rule.dest_ports.anything or dest[1] in rule.dest_ports)
        and (rule.source.anything or number_of(source[0]) in rule.source)
        and (rule.dest.anything or number_of(dest[0]) in rule.dest)
    )


def _fits_flags(test: FlagsTest, flags: int) -> bool:
    flags &= ~test.ignored
    match test.mode:
        case "+":
            return flags & test.wanted == test.wanted
        case "*":
            return bool(flags & test.wanted)
        case "!":
            return not flags & test.wanted
        case _:
            return flags == test.wanted


def _fits_number(name: str, size: Size, packet: Packet) -> bool:
    number = {
        "dsize": len(packet.payload), "itype": packet.icmp_type, "icode": packet.icmp_code, "ttl": packet.ttl,
        "icmp_id": packet.icmp_id,
    }[name]  # fmt: skip
    return number >= 0 and (size.low <= number <= size.high) != size.negated


def _in_payload(rule: Rule, data: bytes) -> int | None:
    """Where the rule's contents lie in it; 0 for a rule without any."""
    first = 0
    for group in rule.groups:
        place = found_at(group, data) if data else None
        if place is None:
            return None
        first = first or place
    return first


def _in_instances(group: Group, instances: list[bytes] | None) -> tuple[bytes, int] | None:
    """The instance in which the group matches, and where. Of several readings of a body any may match; absence of a
    content, or a length, is asked of the most ordinary one."""
    if not instances:
        return None
    looked_at = instances[:1] if group.wants_all and group.buffer not in SEVERAL else instances
    for data in looked_at:
        place = found_at(group, data)
        if place is not None:
            return data, place
    return None


def _change_bits(rule: Rule, bits: set[str]) -> None:
    for command, name in rule.bits:
        if command == "set" and len(bits) < 256:
            bits.add(name)
        elif command == "unset":
            bits.discard(name)
        elif command == "toggle":
            bits ^= {name}


def _excerpt(data: bytes, at: int) -> bytes:
    return data[max(0, at - 8) : at + EXCERPT_BYTES - 8]


__all__ = ["Alert", "Detector", "Listener", "Prefilter", "Talk", "literal_of"]
