"""What shall be blocked, and where it goes: the desired state that both epidermis cells keep. Pure.

Orders come one by one, in batches and as a whole; messages may overtake each other, so every order carries the
generation of the state it belongs to and an older one never undoes a newer one. The clock is an argument.
"""

import ipaddress
import math
import socket
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from actors.core.messages import Action, Order

#: A look at all orders for what has run out is not worth more.
LOOK_EVERY_S = 5.0
_HOSTS = {"4": "bans4", "6": "bans6"}
#: Prefix lengths that have a hash set of their own, by family.
_HASHED = {"24": "bans4_24", "64": "bans6_64"}


class Place(NamedTuple):
    """Where a subject lives in the nftables filter: which set, under which key."""

    set: str
    key: str


def place(subject: str) -> Place:
    """The set and key of a subject in canonical text. Raises ValueError for anything else.

    Hosts, IPv4 /24 and IPv6 /64 go to hash sets (about 1 us each here); other prefixes to interval sets."""
    address, slash, length = subject.partition("/")
    family = "6" if ":" in address else "4"
    if not slash:
        canonical = _canonical(address)  # the same text is kept once
        return Place(_HOSTS[family], subject if canonical == subject else canonical)
    net = ipaddress.ip_network(subject)
    if (family, length) in {("4", "24"), ("6", "64")}:
        return Place(_HASHED[length], str(net.network_address))
    if net.num_addresses == 1:
        return Place(_HOSTS[family], str(net.network_address))
    return Place(f"banned_nets{family}", str(net))


def probe_address(subject: str) -> str:
    """One address that the subject covers, for asking the kernel."""
    return subject.partition("/")[0]


def disjoint(prefixes: Iterable[str]) -> list[str]:
    """The prefixes without those that lie inside another one. Canonical text in, both families, order by address."""
    nets = [ipaddress.ip_network(prefix) for prefix in prefixes]
    kept: list[str] = []
    last: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    ordered = sorted(nets, key=lambda net: (net.version, int(net.network_address), net.prefixlen))
    for net in ordered:
        if last is None or net.version != last.version or net.network_address not in last:
            kept.append(str(net))
            last = net
    return kept


def family_of(prefix: str) -> str:
    return "6" if ":" in prefix else "4"


def by_family(prefixes: Iterable[str]) -> dict[str, list[str]]:
    """``{"4": [...], "6": [...]}``, both keys always there."""
    ordered = sorted(prefixes, key=family_of)
    return {"4": [], "6": []} | {family: list(group) for family, group in groupby(ordered, family_of)}


def alive(order: Order, now_unix_s: float) -> bool:
    """Whether the order still means a drop. ``until_unix_s`` 0 is until released."""
    return order.action is Action.BAN and (order.until_unix_s == 0 or order.until_unix_s > now_unix_s)


class Ledger:
    """The desired bans. Every change returns the subjects whose enforcement may have to change."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        #: no order ends before this moment, so most looks for what is over are free
        self._next_end = math.inf
        #: subject → generation of the last word about it, releases included
        self._said: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def __contains__(self, subject: object) -> bool:
        return subject in self._orders

    @property
    def orders(self) -> Mapping[str, Order]:
        return self._orders

    def order(self, subject: str) -> Order | None:
        return self._orders.get(subject)

    def enforce(self, orders: Iterable[Order], generation: int) -> list[str]:
        """Take orders; the same one twice is one ban. An action other than a ban ends a ban of that subject."""
        changed = []
        for order in orders:
            if self._said.get(order.subject, -1) > generation:
                continue
            self._said[order.subject] = generation
            if order.action is not Action.BAN:
                if self._orders.pop(order.subject, None):
                    changed.append(order.subject)
            elif self._orders.get(order.subject) != order:
                self._orders[order.subject] = order
                self._next_end = min(self._next_end, order.until_unix_s or math.inf)
                changed.append(order.subject)
        return changed

    def enforce_many(self, subjects: Iterable[str], until_unix_s: float, reason: str, generation: int) -> list[str]:
        """Bans of one decision, about two microseconds each."""
        said, orders, changed = self._said, self._orders, []
        for subject in subjects:
            if said.get(subject, -1) > generation:
                continue
            said[subject] = generation
            order = Order(subject=subject, action=Action.BAN, until_unix_s=until_unix_s, reason=reason)
            if orders.get(subject) != order:
                orders[subject] = order
                changed.append(subject)
        self._next_end = min(self._next_end, until_unix_s or math.inf)
        return changed

    def release(self, subjects: Iterable[str], generation: int) -> list[str]:
        """Forget bans. Unknown subjects are returned too: the kernel may hold what this life never heard of."""
        changed = []
        for subject in subjects:
            if self._said.get(subject, -1) > generation:
                continue
            self._said[subject] = generation
            self._orders.pop(subject, None)
            changed.append(subject)
        return changed

    def replace(self, orders: Iterable[Order], generation: int) -> list[str]:
        """The whole state as of ``generation``; what was said later stands."""
        later = {subject for subject, said in self._said.items() if said > generation}
        before = self._orders
        after = {order.subject: order for order in orders if order.action is Action.BAN and order.subject not in later}
        after |= {subject: before[subject] for subject in later if subject in before}
        self._orders = after
        self._next_end = min((order.until_unix_s for order in after.values() if order.until_unix_s), default=math.inf)
        self._said = {subject: said for subject, said in self._said.items() if said > generation}
        return [s for s in before.keys() | after.keys() if before.get(s) != after.get(s)]

    def new_source(self) -> None:
        """The cell that sends orders was replaced: it counts generations anew, so old ones mean nothing now."""
        self._said.clear()

    def expire(self, now_unix_s: float) -> list[str]:
        """Forget what has run out, some seconds late at most. The kernel forgot it by itself."""
        if now_unix_s < self._next_end:
            return []
        gone = [s for s, order in self._orders.items() if 0 < order.until_unix_s <= now_unix_s]
        for subject in gone:
            del self._orders[subject]
        ends = (order.until_unix_s for order in self._orders.values() if order.until_unix_s)
        self._next_end = max(min(ends, default=math.inf), now_unix_s + LOOK_EVERY_S)
        return gone


def _canonical(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError as exc:
        raise ValueError(f"{address!r} is no address") from exc
