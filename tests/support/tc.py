"""A shaper without a kernel; it refuses what the kernel's would."""

from actors.core.errors import ToolFailed, Unavailable
from actors.hypodermis.shaper import BITS_LEAST


class FakeShaper:
    """foreign: interfaces with somebody else's queue."""

    def __init__(self, interfaces: set[str], foreign: frozenset[str] | set[str] = frozenset()) -> None:
        self._interfaces, self._foreign = interfaces, foreign
        self._rates: dict[str, int] = {}

    def shape(self, interface: str, bits_per_s: int) -> None:
        if bits_per_s < BITS_LEAST:
            raise ToolFailed(f"{bits_per_s} bit/s is too little")
        self._known(interface)
        if interface in self._foreign:
            raise ToolFailed(f"{interface} has a queue of its own (prio), which is left alone", remedy="remove it")
        self._rates[interface] = bits_per_s

    def shaped(self, interface: str) -> int:
        self._known(interface)
        return self._rates.get(interface, 0)

    def release(self, interface: str) -> bool:
        return self._rates.pop(interface, None) is not None

    def outward(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _known(self, interface: str) -> None:
        if interface not in self._interfaces:
            raise Unavailable(f"there is no interface {interface}", remedy="ip link shows those that exist")
