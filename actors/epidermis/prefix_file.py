"""The merged blocklist as text, one address or prefix a line, read for the nftables filter. Pure but for the file.

The file was written by a cell without privileges, from what strangers publish: every line is checked here before it
may stand in a transaction, whatever the writer promised.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from actors.core.errors import Refused

#: Nothing shorter is a blocklist entry; it would cut the node off from whole continents.
SHORTEST = {"4": 8, "6": 16}
#: 1,000,000 lines of IPv6 prefixes are 43 MB.
_BYTES_LIMIT = 256 << 20
_V4 = re.compile(r"[0-9.]{7,15}(?:/[0-9]{1,2})?")
_V6 = re.compile(r"[0-9a-f:.]{2,45}(?:/[0-9]{1,3})?")


class TooManyEntries(Refused):
    """More than the nftables filter may hold: an operator's choice, not a fault of the file."""


@dataclass(slots=True)
class PrefixLists:
    """Checked text, by nftables set."""

    feeds4: list[str] = field(default_factory=list)
    feeds6: list[str] = field(default_factory=list)
    feed_nets4: list[str] = field(default_factory=list)
    feed_nets6: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.feeds4) + len(self.feeds6) + len(self.feed_nets4) + len(self.feed_nets6)

    def items(self) -> list[tuple[str, list[str]]]:
        return [(name, getattr(self, name)) for name in ("feeds4", "feeds6", "feed_nets4", "feed_nets6")]


def read_prefix_file(path: Path, limit: int) -> PrefixLists:
    """Raises Refused, naming the line, for an unreadable file, a bad line or more than ``limit`` entries."""
    try:
        if path.stat().st_size > _BYTES_LIMIT:
            raise Refused(f"the blocklist {path} is larger than {_BYTES_LIMIT >> 20} MiB")
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError) as exc:
        raise Refused(f"the blocklist {path} cannot be read: {exc}") from exc
    return parse_prefixes(text, limit)


def parse_prefixes(text: str, limit: int) -> PrefixLists:
    """Lists by family and kind. Empty lines and ``#`` lines are skipped. Raises Refused and nothing else."""
    lists = PrefixLists()
    count = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        count += 1
        if count > limit:
            raise TooManyEntries(
                f"the blocklist has more than the {limit} entries that the nftables filter may hold",
                remedy="raise keratinocyte.max_elements, or rely on the kernel program alone for feeds",
            )
        try:
            _sort_in(lists, line)
        except ValueError as exc:
            raise Refused(f"line {number} of the blocklist is no address or prefix: {line[:60]!r}") from exc
    return lists


def _sort_in(lists: PrefixLists, line: str) -> None:
    six = ":" in line
    if not (_V6 if six else _V4).fullmatch(line):
        raise ValueError(line)
    address, slash, length = line.partition("/")
    if slash and int(length) != (128 if six else 32):
        if int(length) < SHORTEST["6" if six else "4"]:
            raise ValueError(line)
        ipaddress.ip_network(line)
        (lists.feed_nets6 if six else lists.feed_nets4).append(line)
        return
    try:
        socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address)
    except OSError as exc:
        raise ValueError(line) from exc
    (lists.feeds6 if six else lists.feeds4).append(address)
