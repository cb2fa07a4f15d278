"""Address and port sets of Suricata rules: ``any``, groups ``[a,!b]``, ranges ``1024:``, variables ``$HOME_NET``.
Pure."""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

_DEPTH_MAX = 8
_MEMBERS_MAX = 4096
_MAPPED = 0xFFFF << 32
_V6_MAX = (1 << 128) - 1

Pair = tuple[int, int]


class BadRule(ValueError):  # noqa: N818 - named for what it says
    """The rule, or a part of it, is not understood. ``str()`` is the reason in one sentence."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Numbers inside one of ``inside`` (empty: all) and in none of ``outside``; both are pairs of first and last."""

    inside: tuple[Pair, ...] = ()
    outside: tuple[Pair, ...] = ()

    def __contains__(self, number: int) -> bool:
        if any(first <= number <= last for first, last in self.outside):
            return False
        return not self.inside or any(first <= number <= last for first, last in self.inside)

    @property
    def anything(self) -> bool:
        return not self.inside and not self.outside


@lru_cache(maxsize=4096)
def number_of(address: bytes) -> int:
    """An address on one line of numbers: IPv4 as its mapped IPv6 form, so that the families never meet by chance."""
    return int.from_bytes(address, "big") | (_MAPPED if len(address) == 4 else 0)


def addresses(text: str, variables: Mapping[str, str]) -> Ranges:
    """Raises BadRule."""
    return _Reader(variables, _network).ranges(text)


def ports(text: str, variables: Mapping[str, str]) -> Ranges:
    """Raises BadRule."""
    return _Reader(variables, _port_range).ranges(text)


@dataclass(slots=True)
class _Reader:
    variables: Mapping[str, str]
    read: Callable[[str], Pair]
    inside: list[Pair] = field(default_factory=list)
    outside: list[Pair] = field(default_factory=list)

    def ranges(self, text: str) -> Ranges:
        everything = self._collect(text, negated=False, depth=0)
        return Ranges(() if everything else tuple(self.inside), tuple(self.outside))

    def _collect(self, text: str, *, negated: bool, depth: int) -> bool:
        """Add the members of ``text``; returns whether it named everything."""
        if depth > _DEPTH_MAX or len(self.inside) + len(self.outside) > _MEMBERS_MAX:
            raise BadRule(f"a group is nested more than {_DEPTH_MAX} deep or has more than {_MEMBERS_MAX} members")
        text = text.strip()
        while text.startswith("!"):
            negated, text = not negated, text[1:].strip()
        if text == "any":
            if negated:
                raise BadRule("'!any' matches nothing")
            return True
        if text.startswith("$"):
            if text[1:] not in self.variables:
                raise BadRule(f"the variable {text} is not defined")
            return self._collect(self.variables[text[1:]], negated=negated, depth=depth + 1)
        if text.startswith("["):
            if not text.endswith("]"):
                raise BadRule(f"the group {text!r} is not closed")
            named = [self._collect(part, negated=negated, depth=depth + 1) for part in _split(text[1:-1])]
            return any(named)
        (self.outside if negated else self.inside).append(self.read(text))
        return False


def _split(text: str) -> list[str]:
    """At the commas that stand in no inner group."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]]


def _network(text: str) -> Pair:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise BadRule(f"{text!r} is no address or prefix") from error
    shift = _MAPPED if network.version == 4 else 0
    return int(network.network_address) | shift, int(network.broadcast_address) | shift


def _port_range(text: str) -> Pair:
    first, colon, last = text.partition(":")
    try:
        low = int(first) if first else 0
        high = int(last) if last else (65_535 if colon else low)
    except ValueError as error:
        raise BadRule(f"{text!r} is no port or range of ports") from error
    if not 0 <= low <= high <= 65_535:
        raise BadRule(f"{text!r} is no port or range of ports")
    return low, high
