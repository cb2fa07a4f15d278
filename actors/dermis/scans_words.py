"""How addresses, ports and times are written in evidence for people. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from ml.own import source_text, to_text

#: Ports named in one sentence.
_SHOWN: Final = 6


def subject_of(flow_key: Any, near: bool) -> str:
    """Whom a verdict names: the IPv4 address or the IPv6 /64 of the initiator; a neighbour by its whole address."""
    return to_text(flow_key["addr"][0].tobytes()) if near else source_text(flow_key)


def address_text(address: bytes) -> str:
    """Sixteen bytes as people write them."""
    return to_text(address)


def list_ports(ports: Iterable[int]) -> str:
    """The lowest few: ``21, 22, 80 and 140 more``."""
    ordered = sorted(ports)
    shown = ", ".join(map(str, ordered[:_SHOWN]))
    return shown if len(ordered) <= _SHOWN else f"{shown} and {len(ordered) - _SHOWN} more"


def span_text(seconds: float) -> str:
    """``9 s``, ``4 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
