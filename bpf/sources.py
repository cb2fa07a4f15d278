"""The table of per-source budgets from outside: charging a source for what it sent elsewhere.

The program writes the same memory without a lock; a charge that meets a packet of the same source may lose a few
tokens of one of the two, as two processors that meet there do (bpf/budgets.h).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi, libbpf
from bpf.dataplane import Charge, DataPlaneError
from bpf.hashes import mix64
from bpf.maps import Knobs, shared_memory
from bpf.subjects import Subject, parse

_TOKEN = 1000  # milli-tokens, as the program counts them
_TOTAL = 4  # enum tg_budget_name: the kinds come before it


class SourceTable:
    """Set-associative; a source is an IPv4 address or an IPv6 /64. Mapped only while it charges."""

    def __init__(self, sets_fd: int, rows_fd: int, knobs: Knobs) -> None:
        self._sets_fd, self._rows_fd, self._knobs = sets_fd, rows_fd, knobs

    def charge(self, charges: Iterable[Charge]) -> int:
        """Take tokens away; those of a source that is not in the table are not its node's business. Returns how many
        sources were there. Raises BadSubject, or DataPlaneError for a budget that is not per source."""
        wanted = [(_tag(parse(charge.subject)), budget_number(charge.budget), charge.packets) for charge in charges]
        if not wanted:
            return 0
        count = libbpf.map_info(self._sets_fd).max_entries
        sets = shared_memory(self._sets_fd, abi.SOURCE_SET, count)
        rows = shared_memory(self._rows_fd, abi.SOURCE_KINDS, count * abi.SOURCE_WAYS)
        tags = np.array([tag for tag, _, _ in wanted], np.uint64)
        hashes = mix64(tags ^ np.uint64(self._knobs["seed"]))
        done = 0
        for (tag, budget, packets), spread in zip(wanted, hashes.tolist(), strict=True):
            place = spread & (count - 1)
            [ways] = np.nonzero(sets["tag"][place] == np.uint64(tag))
            if len(ways):
                way = int(ways[0])
                if budget == _TOTAL:
                    left, at = sets["total"][place], way
                else:
                    left, at = self._kinds(rows[way * count + place], spread, int(sets["seen"][place, way])), budget
                left[at] = max(0, int(left[at]) - packets * _TOKEN)
                done += 1
        return done

    def _kinds(self, row: Any, spread: int, seen: int) -> npt.NDArray[np.uint32]:
        """The tokens by kind, as ``spend_kind`` in bpf/budgets.h finds or makes them."""
        owner = spread >> 32 | 1
        if int(row["owner"]) != owner:
            row["owner"], row["seen"] = owner, seen >> 1
            row["tokens"] = self._knobs.page["budget"][0]["burst"][:_TOTAL]
        tokens: npt.NDArray[np.uint32] = row["tokens"]
        return tokens


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
