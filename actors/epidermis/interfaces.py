"""Which network interfaces face the outside, and which of them exist."""

import socket

from actors.core import rtnetlink
from actors.core.errors import Unavailable


def protected_interfaces(configured: tuple[str, ...]) -> tuple[str, ...]:
    """The configured ones, else those of the default routes of both families, in order of their index.

    Raises Unavailable when nothing is configured and there is no default route."""
    if configured:
        return configured
    default = [route for route in rtnetlink.routes() if not route.length and route.table == rtnetlink.MAIN_TABLE]
    indices = {index for route in default for index in route.interfaces}
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
