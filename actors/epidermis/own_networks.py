"""What this node must never block: its addresses, the networks on its links, its default gateways and
its resolvers.

Read without privileges, from rtnetlink and resolv.conf, in some milliseconds. What cannot be read is left out: the
special networks of ``feed_health`` still cover the usual cases.
"""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from actors.core import log, rtnetlink
from actors.epidermis.feed_health import OwnNetworks
from actors.epidermis.prefixes import Address, Network

_RESOLV_CONF_BYTES = 65_536
_say_once = log.OncePer(3600.0)


def read(resolv_conf: Path = Path("/etc/resolv.conf")) -> OwnNetworks:
    """As of now, in this network namespace. Never raises."""
    hosts: set[Address] = set(_resolvers(resolv_conf))
    networks: set[Network] = set()
    try:
        for own in rtnetlink.addresses():
            hosts.add(own.address)
            networks.add(ipaddress.ip_network((own.address, own.length), strict=False))
        for route in rtnetlink.routes():
            if not route.length:  # only the way to everywhere: who routes for one network may well be an attacker
                hosts.update(route.gateways)
    except OSError as exc:  # feeds go on with what is known
        if _say_once("own networks"):
            log.logger(cell="melanocyte").warning("own_networks_unknown", problem=str(exc), known=len(networks))
    return OwnNetworks(frozenset(hosts), frozenset(networks))


def _resolvers(path: Path) -> Iterator[Address]:
    try:
        text = path.read_bytes()[:_RESOLV_CONF_BYTES].decode("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and (address := _address(words[1].partition("%")[0])):
            yield address


def _address(text: str | None) -> Address | None:
    try:
        return ipaddress.ip_address(text) if text else None
    except ValueError:
        return None
