"""Reads addresses from text by the million. Pure.

What is common (plain addresses, prefixes) goes to libc's strict ``inet_pton`` in bulk, one C call a line and no Python
code in between: it refuses leading zeros, missing parts and trailing characters, as the ``ipaddress`` module does. Only
when one of a bulk is refused are they read one by one, to find out which.
"""

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from actors.epidermis import prefixes
from actors.epidermis.prefixes import Lengths, Prefixes, Words

_PACK4 = partial(socket.inet_pton, socket.AF_INET)
_PACK6 = partial(socket.inet_pton, socket.AF_INET6)
#: "24" and "255.255.255.0"; nothing else is a length, so that " 24", "+24" and "2_4" are none
_LENGTH4 = {str(n): n for n in range(33)} | {str(ipaddress.ip_network(f"0.0.0.0/{n}").netmask): n for n in range(1, 33)}
_LENGTH6 = {str(n): n for n in range(129)}
_MAPPED = np.uint64(0xFFFF)


#: after so many refusals the rest of a bulk is taken for bad unread: such a feed is refused anyway
BAD_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class BadAddress:
    text: str
    reason: str


def read_addresses(texts: list[str]) -> tuple[Prefixes, Prefixes, list[BadAddress]]:
    """IPv4 prefixes, IPv6 prefixes, and what was neither. Order is not kept. Never raises."""
    bad: list[BadAddress] = []
    colons, texts = _split(texts, ":")
    ports, sixes = _split(colons, ".")  # 1.2.3.4:443 and ::ffff:1.2.3.4, told apart one by one
    bracketed, sixes = _split(sixes, "[")
    freed = [_without_port(text) for text in ports + bracketed]
    six_again, four_again = _split(freed, ":")
    texts, sixes = texts + four_again, sixes + six_again

    ranges, texts = _split(texts, "-")
    slashed, hosts = _split(texts, "/")
    ranges6, sixes = _split(sixes, "-")
    slashed6, hosts6 = _split(sixes, "/")
    four = [
        _bulk(4, hosts, _hosts4, bad),
        _bulk(4, slashed, _prefixes4, bad),
        _bulk(4, ranges, _ranges4, bad),
    ]
    six = prefixes.concat(
        6, [_bulk(6, hosts6, _hosts6, bad), _bulk(6, slashed6, _prefixes6, bad), _bulk(6, ranges6, _ranges6, bad)]
    )
    mapped = (six.hi == 0) & (six.lo >> np.uint64(32) == _MAPPED) & (six.plen >= 96)
    if mapped.any():
        inner = six.pick(mapped)
        four.append(Prefixes(4, inner.lo << np.uint64(32), np.zeros(len(inner), np.uint64), inner.plen - np.uint8(96)))
        six = six.pick(~mapped)
    return prefixes.concat(4, four), six, bad


def _split(texts: list[str], mark: str) -> tuple[list[str], list[str]]:
    """Those with the mark, those without."""
    having = [text for text in texts if mark in text]
    return having, [text for text in texts if mark not in text] if having else texts


def _bulk(family: int, texts: list[str], read: Callable[[list[str]], Prefixes], bad: list[BadAddress]) -> Prefixes:
    """All at once; where one is refused, halves, and so on: a few bad lines in a million cost little."""
    if not texts:
        return prefixes.empty(family)
    if len(bad) > BAD_LIMIT:
        bad.extend(BadAddress(text, "not read, after too many bad ones") for text in texts)
        return prefixes.empty(family)
    try:
        return read(texts)
    except (OSError, ValueError, KeyError) as exc:
        if len(texts) == 1:
            bad.append(BadAddress(texts[0], _reason(family, exc)))
            return prefixes.empty(family)
        middle = len(texts) // 2
        return prefixes.concat(
            family, [_bulk(family, texts[:middle], read, bad), _bulk(family, texts[middle:], read, bad)]
        )


def _reason(family: int, exc: Exception) -> str:
    if isinstance(exc, KeyError):
        return "the prefix length is not right"
    if isinstance(exc, BackwardRangeError):
        return "the range ends before it starts"
    return f"not an IPv{family} address"


class BackwardRangeError(ValueError):
    """A range whose end lies before its start."""


def _hosts4(texts: list[str]) -> Prefixes:
    return prefixes.from_packed(4, b"".join(map(_PACK4, texts)), np.full(len(texts), 32, np.uint8))


def _hosts6(texts: list[str]) -> Prefixes:
    return prefixes.from_packed(6, b"".join(map(_PACK6, texts)), np.full(len(texts), 128, np.uint8))


def _prefixes4(texts: list[str]) -> Prefixes:
    addresses, lengths = _two_parts(texts, "/")
    return prefixes.from_packed(4, b"".join(map(_PACK4, addresses)), _lengths(lengths, _LENGTH4))


def _prefixes6(texts: list[str]) -> Prefixes:
    addresses, lengths = _two_parts(texts, "/")
    return prefixes.from_packed(6, b"".join(map(_PACK6, addresses)), _lengths(lengths, _LENGTH6))


def _lengths(texts: list[str], known: dict[str, int]) -> Lengths:
    return np.fromiter(map(known.__getitem__, texts), np.uint8, len(texts))


def _two_parts(texts: list[str], mark: str) -> tuple[list[str], list[str]]:
    parts = [text.split(mark) for text in texts]
    left, right = [part[0].rstrip() for part in parts], [part[1].lstrip() for part in parts]
    if any(len(part) != 2 for part in parts):
        raise ValueError
    return left, right


def _ranges4(texts: list[str]) -> Prefixes:
    left, right = _two_parts(texts, "-")
    first = np.frombuffer(b"".join(map(_PACK4, left)), ">u4").astype(np.uint64)
    last = np.frombuffer(b"".join(map(_PACK4, right)), ">u4").astype(np.uint64)
    if (first > last).any():
        raise BackwardRangeError
    return _cover4(first, last)


def _cover4(first: Words, last: Words) -> Prefixes:
    """The fewest prefixes that hold exactly first..last: in each round the largest aligned block that fits."""
    one = np.uint64(1)
    starts: list[npt.NDArray[np.uint64]] = []
    lengths: list[npt.NDArray[np.uint8]] = []
    while len(first):
        aligned = np.bitwise_count((first & (~first + one)) - one)  # trailing zeros; 64 for 0.0.0.0
        fitting = np.frexp((last - first + one).astype(np.float64))[1] - 1
        log2 = np.minimum(aligned, fitting).astype(np.uint64)
        starts.append(first)
        lengths.append((np.uint64(32) - log2).astype(np.uint8))
        first = first + (one << log2)
        more = first <= last
        first, last = first[more], last[more]
    hi = np.concatenate(starts) << np.uint64(32)
    return Prefixes(4, hi, np.zeros(len(hi), np.uint64), np.concatenate(lengths))


def _ranges6(texts: list[str]) -> Prefixes:
    """Rare in published lists, so one by one."""
    left, right = _two_parts(texts, "-")
    networks: list[prefixes.Network] = []
    for low, high in zip(left, right, strict=True):
        first, last = ipaddress.IPv6Address(_PACK6(low)), ipaddress.IPv6Address(_PACK6(high))
        if first > last:
            raise BackwardRangeError
        networks.extend(ipaddress.summarize_address_range(first, last))
    return prefixes.from_networks(6, networks)


def _without_port(text: str) -> str:
    """``1.2.3.4:443`` and ``[2001:db8::1]:443`` without the port; anything else unchanged."""
    if text.startswith("["):
        address, closed, rest = text[1:].partition("]")
        return address if closed and (not rest or (_is_port(rest[1:]) and rest[0] == ":")) else text
    address, _, port = text.rpartition(":")
    return address if ":" not in address and _is_port(port) else text


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65_535
