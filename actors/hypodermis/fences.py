"""Fences: a quick first look at many subjects, before anybody is asked in words. Pure.

What may not be banned is a few thousand ranges. Put together and sorted they tell for a subject in half a microsecond
whether it touches any of them; only one that does has to pass the gate's own questions.
"""

from bisect import bisect_right
from collections.abc import Iterable

from actors.hypodermis.subjects import WIDEST_BAN, Prefix

_MAPPED = 0xFFFF << 32


class Fences:
    """Ranges of addresses, both families on one scale: IPv4 stands in its IPv6 form."""

    def __init__(self, ranges: Iterable[Prefix]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, last in sorted(map(_span, ranges)):
            if self._ends and first <= self._ends[-1] + 1:
                self._ends[-1] = max(self._ends[-1], last)
            else:
                self._starts.append(first)
                self._ends.append(last)

    def doubtful(self, subjects: Iterable[Prefix]) -> list[Prefix]:
        """Those that touch a range, or are wider than any ban may be."""
        starts, ends, found = self._starts, self._ends, []
        for subject in subjects:
            version, value, length = subject
            if version == 4:
                first = value + _MAPPED
                last = first + (1 << (32 - length)) - 1
            else:
                first = value
                last = first + (1 << (128 - length)) - 1
            place = bisect_right(starts, last)
            if (place and ends[place - 1] >= first) or length < WIDEST_BAN[version]:
                found.append(subject)
        return found


def _span(prefix: Prefix) -> tuple[int, int]:
    first = prefix.value + (_MAPPED if prefix.version == 4 else 0)
    return first, first + (1 << (prefix.bits - prefix.length)) - 1
