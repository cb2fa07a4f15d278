"""The nftables table as text: what it shall be, and the transactions that make it so. Pure.

One table, ``inet tegumentar_epiderme``. Its rules are static and name sets; what changes from second to second is the
contents of the sets. Every function here returns text for one ``nft -f`` call, which the kernel applies as a whole or
not at all.

The path of a packet from outside::

    ingress*   ─┐
    prerouting ─┼─> suspects ──hit──> convict | listed ──> (tolerated: back) ──> drop
    input      ─┤      │ miss
    forward    ─┘      └─> input: established, tolerated, essential ICMP, management ports, then the posture

``ingress`` exists only while the ladder stands on its rung. The sets are looked at again in ``input`` and ``forward``
because a replaced base chain is registered before the old one goes: a packet caught between the two generations sees
neither in prerouting, but always the new one behind it.

Interval sets are refilled whole and never grow by one element (nft re-reads such a set to add to it: 1.4 s at 100,000);
single addresses and the two usual prefix lengths, /24 and /64, therefore have hash sets.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

Posture = Literal["explore", "balanced", "hardened", "lockdown"]

#: Elements on one line of a transaction. nft reads lines whole; this keeps one under 64 KiB.
_CHUNK = 1000

#: Before connection tracking (-200), so that a banned source costs no conntrack entry.
_RAW = "raw - 5"
#: Before the usual filter chains (0): what we drop, nobody else counts as accepted.
_FILTER = "filter - 10"
#: Before everything else at ingress, tc included.
_INGRESS = "-500"

#: What the kernel allows (at most 15 bytes, no slash, no space), less what would end a quoted word.
_INTERFACE = re.compile(r'[^\s/:"]{1,15}')


@dataclass(frozen=True, slots=True)
class SetKind:
    """How one set is declared. ``flags`` in nft's words; an interval set is refilled, never patched."""

    type: Literal["ipv4_addr", "ipv6_addr"]
    flags: str = ""
    merge: bool = False

    @property
    def interval(self) -> bool:
        return "interval" in self.flags


SETS: Mapping[str, SetKind] = {
    "bans4": SetKind("ipv4_addr", "timeout"),
    "bans6": SetKind("ipv6_addr", "timeout"),
    "bans4_24": SetKind("ipv4_addr", "timeout"),
    "bans6_64": SetKind("ipv6_addr", "timeout"),
    "banned_nets4": SetKind("ipv4_addr", "interval,timeout"),
    "banned_nets6": SetKind("ipv6_addr", "interval,timeout"),
    "feeds4": SetKind("ipv4_addr"),
    "feeds6": SetKind("ipv6_addr"),
    "feed_nets4": SetKind("ipv4_addr", "interval", merge=True),
    "feed_nets6": SetKind("ipv6_addr", "interval", merge=True),
    "tolerated4": SetKind("ipv4_addr", "interval"),
    "tolerated6": SetKind("ipv6_addr", "interval"),
}

#: Named, so that they live through a change of rules. ``would_*`` count what EXPLORE lets pass.
COUNTERS = ("banned", "listed", "tolerated", "closed", "invalid", "would_ban", "would_list")

_ICMP4 = "destination-unreachable, time-exceeded, parameter-problem"
_ICMP6 = (
    "destination-unreachable, packet-too-big, time-exceeded, parameter-problem, mld-listener-query, "
    "mld-listener-report, nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, "
    "mld2-listener-report"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides the shape of the table. Ports are TCP (services also UDP); ``interfaces`` face the outside:
    LOCKDOWN also closes what would be forwarded from them. ``ingress``: devices whose earliest hook is used."""

    table: str
    posture: Posture = "balanced"
    management_ports: tuple[int, ...] = (22,)
    service_ports: tuple[int, ...] = ()
    interfaces: tuple[str, ...] = ()
    ingress: tuple[str, ...] = ()
    max_elements: int = 262_144

    def __post_init__(self) -> None:
        for name in (*self.interfaces, *self.ingress):
            if not _INTERFACE.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a network interface")


@dataclass(frozen=True, slots=True)
class Element:
    """An address or prefix; ``timeout_s`` None stays until it is removed."""

    key: str
    timeout_s: float | None = None


# --- commands: what a transaction may do ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplaceTable:
    """The whole table anew, whatever stood under its name, with these contents."""

    layout: Layout
    contents: Mapping[str, Sequence[Element]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplaceRules:
    """Other rules over the same sets: a posture."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class AddElements:
    """Into a set: for those known to be absent; one that is there keeps its timeout on most kernels."""

    table: str
    set: str
    elements: Sequence[Element]


@dataclass(frozen=True, slots=True)
class PutElements:
    """Into a hash set: absent ones are added, present ones get the new timeout. Three times the work of adding."""

    table: str
    set: str
    elements: Sequence[Element]


@dataclass(frozen=True, slots=True)
class RemoveElements:
    """Out of a hash set. Removing what is absent is success."""

    table: str
    set: str
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class RefillSet:
    """The set holds exactly these afterwards; the only way to change an interval set."""

    table: str
    set: str
    elements: Sequence[Element]


@dataclass(frozen=True, slots=True)
class RemoveTable:
    """The operator's explicit wish to have no table. Absent is success."""

    table: str


Command = ReplaceTable | ReplaceRules | AddElements | PutElements | RemoveElements | RefillSet | RemoveTable


def render(commands: Iterable[Command]) -> str:
    """One transaction. Keys must be canonical addresses: they are written as they are."""
    return "".join(part for command in commands for part in _render(command))


def declaration(layout: Layout) -> str:
    """The table without contents, worded as ``nft --stateless --terse list table`` words it."""
    return "\n".join((f"table inet {layout.table} {{", *_objects(layout), *_chains(layout), "}")) + "\n"


def shape(listing: str) -> tuple[str, ...]:
    """A listing without what does not matter (space, and the quotes that nft sets or leaves out): two tables with the
    same shape filter alike."""
    return tuple(line.strip().replace('"', "") for line in listing.splitlines() if line.strip())


# --- text ----------------------------------------------------------------------------------------------------------


def _render(command: Command) -> Iterator[str]:
    match command:
        case ReplaceTable(layout, contents):
            yield from (f"add table inet {layout.table}\n", f"delete table inet {layout.table}\n", declaration(layout))
            for name, elements in contents.items():
                yield from _add(layout.table, name, elements)
        case ReplaceRules(layout):
            yield f"flush table inet {layout.table}\n"
            yield f"table inet {layout.table} {{\n" + "\n".join(_chains(layout)) + "\n}\n"
        case AddElements(table, name, elements):
            yield from _add(table, name, elements)
        case PutElements(table, name, elements):
            # Older kernels ignore a new timeout for an element that is there: add, delete, add is right on all of
            # them, and the packets see only the end.
            bare = [Element(element.key) for element in elements]
            yield from (*_add(table, name, bare), *_add(table, name, bare, "delete"), *_add(table, name, elements))
        case RemoveElements(table, name, keys):
            bare = [Element(key) for key in keys]
            yield from (*_add(table, name, bare), *_add(table, name, bare, "delete"))
        case RefillSet(table, name, elements):
            yield f"flush set inet {table} {name}\n"
            yield from _add(table, name, elements)
        case RemoveTable(table):
            yield f"add table inet {table}\ndelete table inet {table}\n"


def _add(table: str, name: str, elements: Iterable[Element], verb: str = "add") -> Iterator[str]:
    rest = iter(elements)
    while chunk := list(islice(rest, _CHUNK)):
        yield f"{verb} element inet {table} {name} {{ {', '.join(map(_element, chunk))} }}\n"


def _element(element: Element) -> str:
    if element.timeout_s is None:
        return element.key
    return f"{element.key} timeout {max(1, round(element.timeout_s * 1000))}ms"


def _objects(layout: Layout) -> Iterator[str]:
    for counter in COUNTERS:
        yield f"\tcounter {counter} {{\n\t}}"
    for name, kind in SETS.items():
        lines = [f"type {kind.type}"]
        if not kind.interval:
            lines.append(f"size {layout.max_elements}")
        if kind.flags:
            lines.append(f"flags {kind.flags}")
        if kind.merge:
            lines.append("auto-merge")
        yield f"\tset {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}"


def _chains(layout: Layout) -> Iterator[str]:
    enforcing = layout.posture != "explore"
    yield _chain("suspects", _suspects())
    yield _chain("convict", _sentence("banned", "would_ban", enforcing))
    yield _chain("listed", _sentence("listed", "would_list", enforcing))
    yield _chain("posture", _posture(layout))
    if layout.ingress:
        devices = ", ".join(f'"{name}"' for name in layout.ingress)
        devices = f"device {devices}" if len(layout.ingress) == 1 else f"devices = {{ {devices} }}"
        hook = f"type filter hook ingress {devices} priority {_INGRESS}; policy accept;"
        yield _chain("ingress", [hook, "jump suspects"])
    yield _chain("prerouting", _base("prerouting", _RAW, ['iif "lo" accept', "jump suspects"]))
    # In EXPLORE nothing is dropped, so a second look would only count twice.
    second_look = ["jump suspects"] if enforcing else []
    yield _chain("input", _base("input", _FILTER, _input(layout, second_look)))
    yield _chain("forward", _base("forward", _FILTER, _forward(layout, second_look)))


def _suspects() -> list[str]:
    return [
        "ip saddr @bans4 goto convict",
        "ip saddr & 255.255.255.0 == @bans4_24 goto convict",
        "ip saddr @banned_nets4 goto convict",
        "ip6 saddr @bans6 goto convict",
        "ip6 saddr & ffff:ffff:ffff:ffff:: == @bans6_64 goto convict",
        "ip6 saddr @banned_nets6 goto convict",
        "ip saddr @feeds4 goto listed",
        "ip saddr @feed_nets4 goto listed",
        "ip6 saddr @feeds6 goto listed",
        "ip6 saddr @feed_nets6 goto listed",
    ]


def _sentence(counter: str, would: str, enforcing: bool) -> list[str]:
    if not enforcing:
        return [f'counter name "{would}" return']
    return [
        'ip saddr @tolerated4 counter name "tolerated" return',
        'ip6 saddr @tolerated6 counter name "tolerated" return',
        # like ARP, which never comes here: without it a neighbour's ban would unsettle the link
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return",
        f'counter name "{counter}" drop',
    ]


def _input(layout: Layout, second_look: list[str]) -> list[str]:
    return [
        'iif "lo" accept',
        "ip saddr @tolerated4 accept",
        "ip6 saddr @tolerated6 accept",
        *second_look,
        "ct state established,related accept",
        f"icmp type {{ {_ICMP4} }} accept",
        f"icmpv6 type {{ {_ICMP6} }} accept",
        # a lease that cannot be renewed would lock the operator out
        "udp sport 67 udp dport 68 accept",
        "ip6 saddr fe80::/10 udp dport 546 accept",
        *([f"tcp dport {_ports(layout.management_ports)} accept"] if layout.management_ports else []),
        "jump posture",
    ]


def _posture(layout: Layout) -> list[str]:
    """New connections to the node. BALANCED does not drop what conntrack calls invalid: asymmetric routes are legal."""
    if layout.posture in ("explore", "balanced"):
        return []
    services = []
    if layout.posture == "hardened":
        ports = _ports(layout.service_ports)
        services = [f"meta l4proto {{ tcp, udp }} th dport {ports} accept"] if layout.service_ports else []
        services += ["icmp type echo-request accept", "icmpv6 type echo-request accept"]
    return ['ct state invalid counter name "invalid" drop', *services, 'counter name "closed" drop']


def _forward(layout: Layout, second_look: list[str]) -> list[str]:
    if layout.posture != "lockdown" or not layout.interfaces:
        return second_look
    outside = _braced([f'"{name}"' for name in layout.interfaces])
    return [
        "ip saddr @tolerated4 accept",
        "ip6 saddr @tolerated6 accept",
        *second_look,
        "ct state established,related accept",
        f'iifname {outside} counter name "closed" drop',
    ]


def _base(hook: str, priority: str, rules: list[str]) -> list[str]:
    return [f"type filter hook {hook} priority {priority}; policy accept;", *rules]


def _chain(name: str, lines: Sequence[str]) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}"


def _ports(ports: Sequence[int]) -> str:
    return _braced([str(port) for port in sorted(set(ports))])


def _braced(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{{ {', '.join(items)} }}"
