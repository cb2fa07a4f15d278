"""One question to the host and its answer; how many together say whether the node can protect."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Weight(StrEnum):
    """What a *no* means. VITAL: one of the ways to refuse packets is gone; USEFUL: something works less well."""

    VITAL = "vital"
    USEFUL = "useful"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Check:
    """name: stable, for programs. says: what was found. consequence and remedy: sentences, empty when all is well."""

    name: str
    state: State
    says: str = ""
    consequence: str = ""
    remedy: str = ""
    weight: Weight = Weight.USEFUL

    def document(self) -> dict[str, Any]:
        return asdict(self)


def good(name: str, says: str = "") -> Check:
    return Check(name=name, state=State.YES, says=says)


def bad(name: str, says: str, consequence: str, remedy: str, weight: Weight = Weight.USEFUL) -> Check:
    return Check(name=name, state=State.NO, says=says, consequence=consequence, remedy=remedy, weight=weight)


def unclear(name: str, says: str, consequence: str = "", remedy: str = "") -> Check:
    return Check(name=name, state=State.UNKNOWN, says=says, consequence=consequence, remedy=remedy, weight=Weight.NOTE)


def enforcement(checks: Iterable[Check]) -> list[str]:
    """The ways this host can refuse packets, best first; empty: it can only watch."""
    state = {check.name: check.state for check in checks}

    def all_yes(*names: str) -> bool:
        return all(state.get(name) is State.YES for name in names)

    ways = []
    program = all_yes("bpf_object") or all_yes("bcc")
    if program and all_yes("capabilities", "libbpf", "ring_buffer"):
        for name, way in (("xdp_native", "native XDP"), ("xdp_generic", "generic XDP"), ("tcx", "TCX")):
            if all_yes(name):
                ways.append(way)
                break
    if all_yes("nft", "nft_rights"):
        ways.append("nftables")
    return ways


def exit_code(checks: list[Check]) -> int:
    """0: protects with all that it has; 6: protects, something that matters is missing; 1: cannot refuse a packet."""
    if not enforcement(checks):
        return 1
    return 6 if any(check.state is State.NO and check.weight is not Weight.NOTE for check in checks) else 0
