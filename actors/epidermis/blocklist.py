"""Compiles IPv4 blocklists into the image that the kernel program looks addresses up in. Pure.

The layout is bpf/blocklist.h; the constants here mirror it and a test compares them. Everything is columns of numpy:
a million prefixes take about a tenth of a second. IPv6 is in blocklist6.py. A class (0..63) tells the feeds apart in
the kernel's counters; it decides nothing. Where several feeds list the same address the lower class counts it, save
that a longer prefix of a whole /24 or more goes before a wider one.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from actors.epidermis.prefixes import Lengths, Prefixes, Words
from bpf.blocklist_image import PAGE_BYTES, Image

#: pages of the inner map (shared.h): what an image may hold at most
PAGES4 = 6912

RANK_PAGE, ENTRY_PAGE = 512, 768
UNIFORM = np.uint32(1 << 31)
HOST, BLOCK = np.uint32(1 << 30), np.uint32(2 << 30)
CLASS_MIXED = 63
CLASSES = 64

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_WHOLE_BLOCK = 255  # marks, in the owner table, a /24 of which only some addresses are listed

Classes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]


class BlocklistError(ValueError):
    """The list cannot be compiled: it is larger than the kernel's table. ``str()`` says by how much."""


def compile4(prefixes: Prefixes, classes: Classes) -> Image:
    """classes: uint8[n], one for each prefix, below 64. Doubles and overlaps are welcome. Raises BlocklistError."""
    if not len(prefixes):
        return nothing_listed(4)
    addr, plen, cls = _ordered4(prefixes, classes)
    owner = _owners(addr, plen, cls)
    rows = np.flatnonzero(plen > 24)
    rows = rows[owner[addr[rows] >> np.uint32(8)] == 0]
    addr, plen, cls = addr[rows], plen[rows], cls[rows]
    nets = addr >> np.uint32(8)
    owner[nets] = _WHOLE_BLOCK

    words = np.packbits(owner, bitorder="little").view(np.uint64)
    uniform = _uniform_words(words, owner)
    counts = np.bitwise_count(words).astype(np.uint32)
    counts[uniform] = 0
    rank = np.concatenate([np.zeros(1, np.uint32), np.cumsum(counts[:-1], dtype=np.uint32)])
    listed = np.flatnonzero(owner)
    if len(uniform):
        listed = listed[~np.isin(listed >> 6, uniform)]
    entries = (owner[listed].astype(np.uint32) - np.uint32(1)) << np.uint32(8)

    first_block = (ENTRY_PAGE + pages_for(4 * len(entries))) * (PAGE_BYTES // 32)
    where, kinds, blocks = _hosts_and_blocks(addr, plen, cls, nets, first_block)
    entries[_positions(where, words, rank)] = kinds
    rank[uniform] = UNIFORM | (owner[uniform << 6].astype(np.uint32) - np.uint32(1))

    pages = ENTRY_PAGE + pages_for(4 * len(entries)) + pages_for(blocks.nbytes)
    must_fit(pages, PAGES4, "IPv4")
    image = np.zeros(pages * PAGE_BYTES, np.uint8)
    for page, part in ((0, words), (RANK_PAGE, rank), (ENTRY_PAGE, entries), (first_block // 128, blocks)):
        start = page * PAGE_BYTES
        image[start : start + part.nbytes] = part.reshape(-1).view(np.uint8)
    return Image(4, len(prefixes), image.reshape(pages, PAGE_BYTES))


def _ordered4(prefixes: Prefixes, classes: Classes) -> tuple[Numbers, Lengths, Classes]:
    """Sorted by address, then length; one row for each prefix, of the lowest class. A /25 becomes two /26, so that
    no row crosses a 64-bit word of its block."""
    key = prefixes.hi | (prefixes.plen.astype(np.uint64) << np.uint64(8)) | classes
    halves = prefixes.plen == 25
    if halves.any():
        one = np.uint64(1 << 8)  # a length one longer
        key[halves] += one
        key = np.concatenate([key, key[halves] + np.uint64(64 << 32)])
    key.sort()
    prefix = key >> np.uint64(8)
    kept = np.concatenate([[True], prefix[1:] != prefix[:-1]])
    key = key[kept]
    low = key.astype(np.uint32)
    return (key >> np.uint64(32)).astype(np.uint32), (low >> np.uint32(8)).astype(np.uint8), low.astype(np.uint8)


def _owners(addr: Numbers, plen: Lengths, cls: Classes) -> Classes:
    """uint8[2^24]: for each /24 that is listed whole, 1 + the class that owns it; 0 for the others."""
    owner = np.zeros(1 << 24, np.uint8)
    for length in np.unique(plen[plen <= 24]).tolist():
        chosen = plen == length
        start, mark = (addr[chosen] >> np.uint32(8)).astype(np.int64), cls[chosen] + np.uint8(1)
        size = 1 << (24 - length)
        if size >= 64:
            for begin, value in zip(start.tolist(), mark.tolist(), strict=True):
                owner[begin : begin + size] = value
        else:
            owner[(start[:, None] + np.arange(size)).reshape(-1)] = np.repeat(mark, size)
    return owner


def _uniform_words(words: Words, owner: Classes) -> Indices:
    """Indices of the words whose 64 /24s are all whole and of one class."""
    full = np.flatnonzero(words == _ALL)
    owners = owner.reshape(-1, 64)[full]
    same = (owners == owners[:, :1]).all(axis=1) & (owners[:, 0] != _WHOLE_BLOCK)
    words_of_one: Indices = full[same]
    return words_of_one


def _positions(nets: Numbers, words: Words, rank: Numbers) -> Numbers:
    """Where the entry of each /24 stands."""
    word = nets >> np.uint32(6)
    below = (np.uint64(1) << (nets & np.uint32(63)).astype(np.uint64)) - np.uint64(1)
    position: Numbers = rank[word] + np.bitwise_count(words[word] & below)
    return position


def _hosts_and_blocks(
    addr: Numbers, plen: Lengths, cls: Classes, nets: Numbers, first_block: int
) -> tuple[Numbers, Numbers, Words]:
    """For the /24s listed in part: their numbers, their entries, and the blocks uint64[m, 4] behind them."""
    if not len(addr):
        return nets, nets, np.empty((0, 4), np.uint64)
    first = np.flatnonzero(np.concatenate([[True], nets[1:] != nets[:-1]]))
    rows = np.diff(np.append(first, len(nets)))
    lone = (rows == 1) & (plen[first] == 32)
    owner = np.minimum.reduceat(cls, first)
    owner[owner != np.maximum.reduceat(cls, first)] = CLASS_MIXED

    number = np.cumsum(~lone) - 1
    entry = np.where(
        lone,
        HOST | (owner.astype(np.uint32) << np.uint32(8)) | (addr[first] & np.uint32(255)),
        BLOCK | (owner.astype(np.uint32) << np.uint32(24)) | (first_block + number).astype(np.uint32),
    ).astype(np.uint32)

    in_block = np.repeat(~lone, rows)
    addr, plen, block = addr[in_block], plen[in_block], np.repeat(number, rows)[in_block]
    blocks = np.zeros((int((~lone).sum()), 4), np.uint64)
    if len(addr):
        span = np.uint64(1) << (np.uint64(32) - plen)  # 1 to 64 addresses
        ones = _ALL >> (np.uint64(64) - span)
        bits = ones << (addr & np.uint32(63)).astype(np.uint64)
        word = block * 4 + ((addr >> np.uint32(6)) & np.uint32(3))
        start = np.flatnonzero(np.concatenate([[True], word[1:] != word[:-1]]))
        blocks.reshape(-1)[word[start]] = np.bitwise_or.reduceat(bits, start)
    return nets[first], entry, blocks


def hosts_and_prefixes(collapsed: Prefixes) -> tuple[Prefixes, Prefixes]:
    """Single addresses for a hash set, prefixes for an interval set: never the former into the latter."""
    host = collapsed.plen == collapsed.host_length
    return collapsed.pick(host), collapsed.pick(~host)


def chunks(texts: list[str], size: int = 50_000) -> Iterator[str]:
    """Comma-separated pieces, each fit for one ``add element`` of nft."""
    for start in range(0, len(texts), size):
        yield ", ".join(texts[start : start + size])


def nothing_listed(family: int) -> Image:
    return Image(family, 0, np.empty((0, PAGE_BYTES), np.uint8))


def pages_for(size: int) -> int:
    return -(-size // PAGE_BYTES)


def must_fit(pages: int, limit: int, family: str) -> None:
    if pages > limit:
        raise BlocklistError(
            f"the {family} list needs {pages * PAGE_BYTES >> 20} MiB and the kernel's table holds "
            f"{limit * PAGE_BYTES >> 20} MiB: leave a feed out"
        )
