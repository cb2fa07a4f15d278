"""Shaper: the traffic-control queue that bounds what the node sends by an interface. The tool of the throttler.

One token-bucket queue (``tc qdisc ... tbf``) at the root of the interface, marked as ours by its handle. A queue that
somebody else has put there is never touched: the shaper refuses and says so. Like everything that the kernel holds, the
queue stays when this process dies, and the next one finds and changes it.

``Shaper`` is the Protocol; tests/contract holds ``TcShaper`` and the fake in tests/support to it, the former in a
network namespace.
"""

import socket
from typing import Any, Protocol

from actors.core.errors import ToolFailed, Unavailable

#: Major number of our queue: "7e6:" in tc's own writing.
HANDLE = 0x7E60000
#: Longer than this no packet waits; what would is dropped.
LATENCY = "50ms"
#: A tenth of a second's worth, and at least a jumbo frame: a shorter burst could not reach the rate at all.
BURST_S, BURST_LEAST = 0.1, 16_384
BITS_LEAST = 8_000


class Shaper(Protocol):
    """Raises Unavailable (no such interface, no traffic control here) and ToolFailed (refused) and nothing else."""

    def shape(self, interface: str, bits_per_s: int) -> None:
        """Bound what goes out; said again with another rate, the queue is changed in place."""
        ...

    def shaped(self, interface: str) -> int:
        """The bound in force in bits per second; 0 without ours."""
        ...

    def release(self, interface: str) -> bool:
        """Take our queue away. False when there was none; an interface that is gone has none."""
        ...

    def outward(self) -> list[str]:
        """Interfaces of the default routes."""
        ...

    def close(self) -> None: ...


class TcShaper:
    """The real one; works in the network namespace in which it was made. Needs CAP_NET_ADMIN."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute  # 20 MB that a node without a shaper does not need

        try:
            self._route: Any = IPRoute()
        except OSError as error:
            raise Unavailable(f"traffic control cannot be reached: {error}", remedy="see `doctor`") from error

    def shape(self, interface: str, bits_per_s: int) -> None:
        if bits_per_s < BITS_LEAST:
            raise ToolFailed(f"{bits_per_s} bit/s is less than the {BITS_LEAST} that a shaper can keep")
        index = _index(interface)
        standing = self._root(index)
        if standing is not None and standing["handle"] not in (0, HANDLE):
            raise ToolFailed(
                f"{interface} has a queue of its own ({_kind(standing)}), which is left alone",
                remedy=f"remove it (tc qdisc del dev {interface} root) or set throttler.shape_egress_mbit = 0",
            )
        burst = max(int(bits_per_s / 8 * BURST_S), BURST_LEAST)
        self._tc("replace", "tbf", index=index, handle=HANDLE, rate=bits_per_s // 8, latency=LATENCY, burst=burst)

    def shaped(self, interface: str) -> int:
        standing = self._root(_index(interface))
        if standing is None or standing["handle"] != HANDLE:
            return 0
        options = standing.get_attr("TCA_OPTIONS")
        return int(options.get_attr("TCA_TBF_PARMS")["rate"]) * 8

    def release(self, interface: str) -> bool:
        try:
            index = _index(interface)
        except Unavailable:
            return False
        standing = self._root(index)
        if standing is None or standing["handle"] != HANDLE:
            return False
        self._tc("del", index=index, handle=HANDLE, parent=0xFFFFFFFF)
        return True

    def outward(self) -> list[str]:
        families = (socket.AF_INET, socket.AF_INET6)
        routes = [route for family in families for route in self._call(self._route.get_default_routes, family=family)]
        indexes = {route.get_attr("RTA_OIF") for route in routes} - {None}
        return sorted(socket.if_indextoname(index) for index in indexes)

    def close(self) -> None:
        self._route.close()

    def _root(self, index: int) -> Any:
        """The queue at the root; None where the kernel shows none."""
        for queue in self._call(self._route.get_qdiscs, index):
            if queue["parent"] == 0xFFFFFFFF and queue["index"] == index:
                return queue
        return None

    def _tc(self, command: str, *words: str, **parameters: Any) -> None:
        self._call(self._route.tc, command, *words, **parameters)

    @staticmethod
    def _call(work: Any, *args: Any, **named: Any) -> Any:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            return work(*args, **named)
        except (NetlinkError, OSError) as error:
            raise ToolFailed(
                f"the kernel refused the shaper: {error}",
                said=str(error),
                remedy="the module sch_tbf and CAP_NET_ADMIN are needed; or set throttler.shape_egress_mbit = 0",
            ) from error


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise Unavailable(f"there is no interface {interface}", remedy="ip link shows those that exist") from error


def _kind(queue: Any) -> str:
    return str(queue.get_attr("TCA_KIND"))
