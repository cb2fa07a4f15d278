"""The table of per-source budgets from outside: charging a source for what it sent elsewhere.

The program writes the same memory without a lock; a charge that meets a packet of the same source may lose a few
tokens of one of the two, as two processors that meet there do (bpf/budgets.h).
"""

from collections.abc import Iterable

import numpy as np

from bpf import abi, libbpf
from bpf.dataplane import Charge, DataPlaneError
from bpf.hashes import mix64
from bpf.maps import Knobs, shared_memory
from bpf.subjects import Subject, parse

_TOKEN = 1000  # milli-tokens, as the program counts them


class SourceTable:
    """Set-associative; a source is an IPv4 address or an IPv6 /64. Mapped only while it charges."""

    def __init__(self, fd: int, knobs: Knobs) -> None:
        self._fd, self._knobs = fd, knobs

    def charge(self, charges: Iterable[Charge]) -> int:
        """Take tokens away; those of a source that is not in the table are not its node's business. Returns how many
        sources were there. Raises BadSubject, or DataPlaneError for a budget that is not per source."""
        wanted = [(_tag(parse(charge.subject)), budget_number(charge.budget), charge.packets) for charge in charges]
        if not wanted:
            return 0
        sets = libbpf.map_info(self._fd).max_entries
        memory = shared_memory(self._fd, abi.SOURCE_SET, sets)["way"]
        tags = np.array([tag for tag, _, _ in wanted], np.uint64)
        places = mix64(tags ^ np.uint64(self._knobs["seed"])) & np.uint64(sets - 1)
        done = 0
        for (tag, budget, packets), place in zip(wanted, places.tolist(), strict=True):
            [ways] = np.nonzero(memory["tag"][place] == np.uint64(tag))
            if len(ways):
                way = memory[place, int(ways[0])]
                way["tokens"][budget] = max(0, int(way["tokens"][budget]) - packets * _TOKEN)
                done += 1
        return done


def budget_number(name: str) -> int:
    """Raises DataPlaneError for a name that is no budget of a source."""
    number = abi.BUDGETS.index(name) if name in abi.BUDGETS else len(abi.BUDGETS)
    if number > abi.BUDGETS.index("total"):
        raise DataPlaneError(f"{name[:40]!r} is no budget of a source")
    return number


def _tag(subject: Subject) -> int:
    """As ``source_tag`` in bpf/budgets.h."""
    if subject.is_ip4:
        return 0xFFFF_0000_0000 | int.from_bytes(subject.addr[12:16], "little")
    return int.from_bytes(subject.addr[:8], "little") or 1
