"""Looks for the items of a rule's group in one buffer, with Suricata's meaning of windows. Pure.

A later item may be relative to an earlier match, so earlier matches are tried one after the other; the work for one
buffer is bounded (``STEPS_MAX``), because the buffer is the attacker's: beyond the bound the group does not match.
"""

import re
from collections.abc import Iterator

from actors.dermis.inspection.suricata_types import ByteTest, Content, Group, Item, Pcre, Size

#: Attempts for one group on one buffer; Suricata's own limit is 3000.
STEPS_MAX = 3_000


def found_at(group: Group, data: bytes) -> int | None:
    """Where the first positive item lies when all of them match (0 without one); None when they do not."""
    search = _Search(group.items, data)
    return search.first if search.from_item(0, 0) else None


class _Search:
    def __init__(self, items: tuple[Item, ...], data: bytes) -> None:
        self._items, self._data = items, data
        self._lower = data.lower() if any(isinstance(item, Content) and item.nocase for item in items) else data
        self._steps = 0
        self.first = 0

    def from_item(self, at: int, behind: int) -> bool:
        """Whether all items from number ``at`` on match, the last match having ended at ``behind``."""
        while at < len(self._items):
            item = self._items[at]
            if isinstance(item, Size):
                if (item.low <= len(self._data) <= item.high) == item.negated:
                    return False
            elif isinstance(item, ByteTest):
                if not self._compares(item, behind):
                    return False
            elif item.negated:
                if next(self._places(item, behind), None) is not None:
                    return False
            else:
                return self._positive(item, at, behind)
            at += 1
        return True

    def _positive(self, item: Content | Pcre, at: int, behind: int) -> bool:
        again = self._matters(at + 1)
        for start, end in self._places(item, behind):
            self._steps += 1
            if self._steps > STEPS_MAX:
                return False
            if self.from_item(at + 1, end):
                if at == self._first_positive():
                    self.first = start
                return True
            if not again:
                return False
        return False

    def _first_positive(self) -> int:
        return next(i for i, item in enumerate(self._items) if isinstance(item, Content | Pcre) and not item.negated)

    def _matters(self, at: int) -> bool:
        """Whether where the match before ended makes a difference to what follows."""
        for item in self._items[at:]:
            if isinstance(item, Size):
                continue
            if item.relative:
                return True
            if isinstance(item, Content | Pcre) and not item.negated:
                return False
        return False

    def _compares(self, test: ByteTest, behind: int) -> bool:
        """Numbers that reach beyond the buffer, and digits that are none, compare as nothing does."""
        at = test.offset + (behind if test.relative else 0)
        data = self._data[at : at + test.bytes] if at >= 0 else b""
        if len(data) < test.bytes:
            return False
        if test.base:
            digits = re.match(rb"[0-9A-Fa-f]+", data.strip())
            try:
                number = int(digits.group(), test.base) if digits else None
            except ValueError:
                number = None
            if number is None:
                return False
        else:
            number = int.from_bytes(data, "little" if test.little else "big")
        if test.mask > 0:  # Suricata moves the masked bits down to the lowest set bit of the mask
            number = (number & test.mask) >> ((test.mask & -test.mask).bit_length() - 1)
        holds = {
            "<": number < test.value, ">": number > test.value, "=": number == test.value,
            "<=": number <= test.value, ">=": number >= test.value, "&": bool(number & test.value),
            "^": bool(number ^ test.value),
        }[test.operator]  # fmt: skip
        return holds != test.negated

    def _places(self, item: Content | Pcre, behind: int) -> Iterator[tuple[int, int]]:
        if isinstance(item, Pcre):
            return self._pcre_places(item, behind)
        return self._content_places(item, behind)

    def _content_places(self, item: Content, behind: int) -> Iterator[tuple[int, int]]:
        size = len(item.data)
        low, high = item.offset, len(self._data)
        if item.depth is not None:
            high = min(high, item.offset + item.depth)
        if item.relative:
            low = max(low, behind + (item.distance or 0), 0)
            if item.within is not None:
                high = min(high, behind + (item.distance or 0) + item.within)
        if item.begins:
            high = min(high, low + size)
        if item.ends:
            low = max(low, len(self._data) - size)
        needle, hay = (item.data.lower(), self._lower) if item.nocase else (item.data, self._data)
        while (place := hay.find(needle, low, high)) >= 0:
            yield place, place + size
            low = place + 1

    def _pcre_places(self, item: Pcre, behind: int) -> Iterator[tuple[int, int]]:
        start = behind if item.relative else 0
        data = self._data[start:] if start else self._data
        if item.anchored:
            match = item.pattern.match(data)
            if match is not None:
                yield start + match.start(), start + match.end()
            return
        for match in item.pattern.finditer(data):
            yield start + match.start(), start + match.end()
