"""What this node must never block: its addresses, the networks on its links, its default gateways and
its resolvers.

Read without privileges, from rtnetlink and resolv.conf, in some milliseconds. What cannot be read is left out: the
special networks of ``feed_health`` still cover the usual cases.
"""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute

from actors.core import log
from actors.epidermis.feed_health import OwnNetworks
from actors.epidermis.prefixes import Address, Network

_RESOLV_CONF_BYTES = 65_536
_say_once = log.OncePer(3600.0)


def read(resolv_conf: Path = Path("/etc/resolv.conf")) -> OwnNetworks:
    """As of now, in this network namespace. Never raises."""
    hosts: set[Address] = set(_resolvers(resolv_conf))
    networks: set[Network] = set()
    try:
        with IPRoute() as netlink:
            for entry in netlink.get_addr():
                text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
                if (address := _address(text)) is not None:
                    hosts.add(address)
                    networks.add(ipaddress.ip_network((address, int(entry["prefixlen"])), strict=False))
            for route in netlink.get_routes():
                if route["dst_len"]:
                    continue  # only the way to everywhere: who routes for one network may well be an attacker
                hops = [route.get_attr("RTA_GATEWAY"), (route.get_attr("RTA_VIA") or {}).get("addr")]
                hops += [hop.get_attr("RTA_GATEWAY") for hop in route.get_attr("RTA_MULTIPATH") or ()]
                hosts.update(address for hop in hops if (address := _address(hop)) is not None)
    except Exception as exc:  # pyroute2 raises its own, OSError and plain ones; feeds go on with what is known
        if _say_once("own networks"):
            problem = f"{type(exc).__name__}: {exc}"[:200]
            log.logger(cell="melanocyte").warning("own_networks_unknown", problem=problem, known=len(networks))
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
