"""A dictionary by prefix that also answers: which entry covers this address?

One hash look-up for each prefix length in use (seldom more than five), however many entries there are.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from actors.hypodermis.subjects import Prefix

V = TypeVar("V")


class PrefixTable(Generic[V]):
    """Prefix → value, in the order of insertion."""

    def __init__(self) -> None:
        self._values: dict[Prefix, V] = {}
        self._lengths: dict[tuple[int, int], int] = {}  # (version, length) → entries of that length

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self._values

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._values)

    def __reversed__(self) -> Iterator[Prefix]:
        return reversed(self._values)

    def values(self) -> Iterator[V]:
        return iter(self._values.values())

    def get(self, prefix: Prefix) -> V | None:
        """The entry of exactly this prefix."""
        return self._values.get(prefix)

    def put(self, prefix: Prefix, value: V) -> None:
        if prefix not in self._values:
            kind = (prefix.version, prefix.length)
            self._lengths[kind] = self._lengths.get(kind, 0) + 1
        self._values[prefix] = value

    def pop(self, prefix: Prefix) -> V | None:
        """Take the entry out; None when there was none."""
        value = self._values.pop(prefix, None)
        if value is not None:
            kind = (prefix.version, prefix.length)
            self._lengths[kind] -= 1
            if not self._lengths[kind]:
                del self._lengths[kind]
        return value

    def covering(self, prefix: Prefix) -> V | None:
        """The narrowest entry that contains all of ``prefix``; None without one."""
        found: V | None = None
        narrowest = -1
        for version, length in self._lengths:
            if version == prefix.version and narrowest < length <= prefix.length:
                value = self._values.get(prefix.widened(length))
                if value is not None:
                    found, narrowest = value, length
        return found

    def within(self, prefix: Prefix) -> list[Prefix]:
        """Entries that lie inside ``prefix``, itself included. Looks at every entry unless ``prefix`` is a host."""
        if prefix.is_host:
            return [prefix] if prefix in self._values else []
        return [entry for entry in self._values if prefix.contains(entry)]
