"""May this feed be enforced? Pure.

A list made by strangers can cut a node off from its own network, from itself, or from half the internet: by accident
(a bogon list on a host in private space), by a broken publisher, or on purpose. Each rule here either takes such
entries out or quarantines the whole list, with a reason that names the entry.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.epidermis import prefixes
from actors.epidermis.feed_formats import Parsed
from actors.epidermis.feed_sources import FeedSource
from actors.epidermis.prefixes import Address, Flags, Network, Prefixes

#: Where no attack from the internet can come from, but where our own neighbours, ourselves and our protocols live.
SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, and the nodes of many clusters
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "::/127",  # unspecified and loopback
        "64:ff9b::/96",  # NAT64: all of IPv4 as some networks see it
        "fc00::/7",  # private
        "fe80::/10",  # link-local: without it there is no IPv6 at all
        "ff00::/8",
    )
)
#: A few single entries of this kind in a long list are somebody's mistake and are just taken out; a network, or more
#: than this share of the list, means that the list is not what it should be.
STRAY_SHARE, STRAY_LENGTH = 0.001, {4: 24, 6: 64}
#: changes of size are judged only from here on: small lists jump
_SETTLED = 50


class Quarantined(Exception):  # noqa: N818 - it is a verdict on a feed, not an error
    """The feed must not be enforced. reason and remedy are sentences for the operator."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, slots=True)
class OwnNetworks:
    """What must stay reachable. hosts: own addresses, gateways, resolvers; networks: those on the link."""

    hosts: frozenset[Address] = frozenset()
    networks: frozenset[Network] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Healthy:
    """What may be enforced: collapsed. notes: what was taken out and why."""

    v4: Prefixes
    v6: Prefixes
    notes: tuple[str, ...] = field(default=())

    @property
    def entries(self) -> int:
        return len(self.v4) + len(self.v6)


def judge(parsed: Parsed, source: FeedSource, own: OwnNetworks, previous_entries: int = 0) -> Healthy:
    """Clean the list or raise Quarantined. previous_entries: how many the last good copy had; 0 when there was none."""
    parts = [prefixes.collapse(parsed.v4), prefixes.collapse(parsed.v6)]
    notes = [f"{parsed.skipped} lines were no addresses ({parsed.first_skipped})"] if parsed.skipped else []
    _size(sum(map(len, parts)), source)
    parts = [_keep_own(part, source, own, notes) for part in parts]
    if source.special != "allow":
        parts = [_keep_special(part, source, notes) for part in parts]
    if not any(map(len, parts)):
        raise Quarantined("nothing is left of it once special networks are taken out", "remove the feed")
    for part in parts:
        _share(part, source)
    _change(sum(map(len, parts)), source, previous_entries)
    return Healthy(parts[0], parts[1], tuple(notes))


def protect(part: Prefixes, own: OwnNetworks) -> Prefixes:
    """The last line: whatever was judged earlier, this node's addresses, gateways and resolvers of now stay out."""
    return prefixes.subtract(part, [ipaddress.ip_network(host) for host in own.hosts])


def _size(entries: int, source: FeedSource) -> None:
    if entries < source.min_entries:
        raise Quarantined(
            f"it has {entries} entries, and at least {source.min_entries} are expected" if entries else "it is empty",
            "ask the publisher, or remove the feed",
        )
    if entries > source.max_entries:
        raise Quarantined(
            f"it has {entries} entries, more than the {source.max_entries} allowed", "raise max_entries of the feed"
        )


def _change(entries: int, source: FeedSource, previous: int) -> None:
    if previous < _SETTLED:
        return
    if entries < previous * source.shrink:
        raise Quarantined(f"it shrank from {previous} to {entries} entries at once", _ACCEPT)
    if entries > previous * source.grow:
        raise Quarantined(f"it grew from {previous} to {entries} entries at once", _ACCEPT)


_ACCEPT = "look at the list; if it is right: `feeds reload FEED --accept`, or change shrink and grow of the feed"


def _keep_own(part: Prefixes, source: FeedSource, own: OwnNetworks, notes: list[str]) -> Prefixes:
    """An entry that covers us is a broken list. Single neighbours on our link are just spared, unless private
    networks are allowed: then the operator wants them blocked."""
    hosts: list[Network] = [ipaddress.ip_network(host) for host in sorted(own.hosts, key=int)]
    for network in (network for network in [*hosts, *own.networks] if network.version == part.family):
        covers = prefixes.overlapping(part, network) & (part.plen <= network.prefixlen)
        if covers.any() and source.special != "subtract" and not _stray(part, covers):
            entry = prefixes.to_text(part.pick(covers))[0]
            ours = f"network {network}" if network.num_addresses > 1 else f"address {network.network_address}"
            raise Quarantined(
                f"its entry {entry} would block this node's own {ours}",
                'set special = "subtract" for the feed to use the rest of it',
            )
    spared = hosts if source.special == "allow" else [*hosts, *own.networks]
    return _without(part, spared, "this node's own addresses and networks", notes)


def _keep_special(part: Prefixes, source: FeedSource, notes: list[str]) -> Prefixes:
    for network in SPECIAL:
        hit = prefixes.overlapping(part, network)
        if source.special == "quarantine" and hit.any() and not _stray(part, hit):
            entry = prefixes.to_text(part.pick(hit))[0]
            raise Quarantined(
                f"its entry {entry} lies in {network}, which is private or special",
                'set special = "subtract" for the feed to use the rest of it, or "allow" if it is meant',
            )
    return _without(part, SPECIAL, "private and special networks", notes)


def _stray(part: Prefixes, hit: Flags) -> bool:
    return bool(hit.sum() <= STRAY_SHARE * len(part) and (part.plen[hit] >= STRAY_LENGTH[part.family]).all())


def _without(part: Prefixes, networks: Iterable[Network], what: str, notes: list[str]) -> Prefixes:
    left = prefixes.subtract(part, networks)
    if left is not part:
        taken = prefixes.address_count(part) - prefixes.address_count(left)
        notes.append(f"{taken:.0f} IPv{part.family} addresses in {what} were taken out")
    return left


def _share(part: Prefixes, source: FeedSource) -> None:
    """Of IPv6 only an eighth, 2000::/3, is in use."""
    space = 2.0**32 if part.family == 4 else 2.0**125
    share = prefixes.address_count(part) / space
    if share > source.max_share:
        raise Quarantined(
            f"it covers {share:.1%} of the IPv{part.family} address space; {source.max_share:.1%} are allowed",
            "raise max_share of the feed if it is meant",
        )
