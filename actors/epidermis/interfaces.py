"""Which network interfaces face the outside, and which of them exist."""

import socket

from pyroute2 import IPRoute

from actors.core.errors import Unavailable


def protected_interfaces(configured: tuple[str, ...]) -> tuple[str, ...]:
    """The configured ones, else those of the default routes of both families, in order of their index.

    Raises Unavailable when nothing is configured and there is no default route."""
    if configured:
        return configured
    with IPRoute() as ipr:
        routes = [r for family in (socket.AF_INET, socket.AF_INET6) for r in ipr.get_default_routes(family=family)]
        indices: set[int] = set()
        for route in routes:
            hops = route.get_attr("RTA_MULTIPATH") or []
            indices.update([route.get_attr("RTA_OIF")] if route.get_attr("RTA_OIF") else [hop["oif"] for hop in hops])
    names = tuple(socket.if_indextoname(index) for index in sorted(indices) if index > 1)
    if not names:
        raise Unavailable(
            "there is no default route, so no interface is known to face the outside",
            remedy="name it: --interface eth0, or TEGUMENTAR_INTERFACES",
        )
    return names


def existing(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are here now, in this network namespace."""
    here = {name for _, name in socket.if_nameindex()}
    return tuple(name for name in names if name in here)
