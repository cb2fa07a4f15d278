"""Lists longer than a message: kept part by part until the last one is there, so that all or none of it counts.

Bounded: few lists at a time, no more subjects than there can be bans, and what is not finished soon is forgotten.
"""

from dataclasses import dataclass, field

from actors.core.errors import Refused
from actors.hypodermis.subjects import Prefix

#: Lists that may be arriving at the same time.
LISTS = 4
#: The next part must come within this time.
KEPT_S = 10.0
NAME_LIMIT = 64


@dataclass
class _List:
    subjects: dict[Prefix, None] = field(default_factory=dict)
    heard_at: float = 0.0


class LongLists:
    """At most ``limit`` subjects in each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lists: dict[str, _List] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._lists

    def add(self, name: str, subjects: list[Prefix], now: float) -> int:
        """Another part, at this monotonic moment. Returns how many subjects there are by now. Raises Refused."""
        self._lists = {key: one for key, one in self._lists.items() if now - one.heard_at < KEPT_S}
        if name not in self._lists and len(self._lists) >= LISTS:
            raise Refused("other long lists are arriving", remedy="wait for them to end, then send it again")
        one = self._lists.setdefault(name, _List())
        one.heard_at = now
        one.subjects.update(dict.fromkeys(subjects))
        if len(one.subjects) > self._limit:
            raise Refused(
                f"there can be {self._limit} bans, and the list is longer; nothing was changed",
                remedy="ban prefixes instead of single addresses, make a feed of it, or raise reflex.max_bans",
            )
        return len(one.subjects)

    def take(self, name: str) -> list[Prefix]:
        """The whole list, each subject once; it is forgotten."""
        return list(self._lists.pop(name).subjects)

    def forget(self, name: str) -> None:
        """It was refused, or its sender has given up."""
        self._lists.pop(name, None)


def name_of(given: object) -> str:
    """The name that the sender gave his list; empty when it came in one piece. Raises Refused."""
    if given is None:
        return ""
    if not isinstance(given, str) or not 0 < len(given) <= NAME_LIMIT:
        raise Refused("the name of a list must be a short text")
    return given
