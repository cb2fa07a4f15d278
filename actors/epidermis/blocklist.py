"""Compiles blocklists into the images that the kernel program looks addresses up in. Pure.

The layout is bpf/blocklist.h; the constants here mirror it and a test compares them. Everything is columns of numpy:
a million IPv4 prefixes take about a tenth of a second. A class (0..63) tells the feeds apart in the kernel's
counters; it decides nothing. Where several feeds list the same address the lower class counts it, save that a longer
prefix of a whole /24 or more goes before a wider one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.epidermis.prefixes import MASK_HI, MASK_LO, Lengths, Prefixes, Words
from bpf.blocklist_image import PAGE_BYTES, Image

#: pages of the inner maps (shared.h): what an image may hold at most
PAGES4, PAGES6 = 6912, 9216

RANK_PAGE, ENTRY_PAGE = 512, 768
UNIFORM = np.uint32(1 << 31)
HOST, BLOCK = np.uint32(1 << 30), np.uint32(2 << 30)
CLASS_MIXED = 63
CLASSES = 64

HEAD_BYTES, BITS_PAGE, BUCKET_PAGE = 64, 1, 513
LENGTHS, SLOTS, BUCKET_BYTES = 64, 7, 64
#: three entries in a bucket of seven on average: one bucket in a hundred overflows, and the table stays dense
BUCKET_LOAD = 3

#: few lengths are cheap to probe: prefixes are split to the next length while that adds at most this share
SPLIT_SHARE, SPLIT_ALWAYS = 0.25, 4096

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_LOW = np.uint64(0xFFFF_FFFF)
_WHOLE_BLOCK = 255  # marks, in the owner table, a /24 of which only some addresses are listed

Classes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint32]


class BlocklistError(ValueError):
    """The list cannot be compiled: it is larger than the kernel's table. ``str()`` says by how much."""


# --- IPv4: bitmap, rank, entries, blocks ------------------------------------------------------------------


def compile4(prefixes: Prefixes, classes: Classes) -> Image:
    """classes: uint8[n], one for each prefix, below 64. Doubles and overlaps are welcome. Raises BlocklistError."""
    if not len(prefixes):
        return _nothing(4)
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

    first_block = (ENTRY_PAGE + _pages(4 * len(entries))) * (PAGE_BYTES // 32)
    where, kinds, blocks = _hosts_and_blocks(addr, plen, cls, nets, first_block)
    entries[_positions(where, words, rank)] = kinds
    rank[uniform] = UNIFORM | (owner[uniform << 6].astype(np.uint32) - np.uint32(1))

    pages = ENTRY_PAGE + _pages(4 * len(entries)) + _pages(blocks.nbytes)
    _must_fit(pages, PAGES4, "IPv4")
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


def _uniform_words(words: Words, owner: Classes) -> npt.NDArray[np.int64]:
    """Indices of the words whose 64 /24s are all whole and of one class."""
    full = np.flatnonzero(words == _ALL)
    owners = owner.reshape(-1, 64)[full]
    same = (owners == owners[:, :1]).all(axis=1) & (owners[:, 0] != _WHOLE_BLOCK)
    return full[same]


def _positions(nets: Numbers, words: Words, rank: Numbers) -> Numbers:
    """Where the entry of each /24 stands."""
    word = nets >> np.uint32(6)
    below = (np.uint64(1) << (nets & np.uint32(63)).astype(np.uint64)) - np.uint64(1)
    return rank[word] + np.bitwise_count(words[word] & below)


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


# --- IPv6: hashed bits, buckets of fingerprints, stash -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seeds:
    """Random numbers of one image: two odd multipliers for each hash, and one tag for each prefix length."""

    index: Words
    print: Words
    tags: Words


def compile6(prefixes: Prefixes, classes: Classes, random: np.random.Generator) -> Image:
    """As ``compile4``. random: a fresh, secret source, so that nobody can aim at a bucket. Raises BlocklistError."""
    if not len(prefixes):
        return _nothing(6)
    prefixes_listed = len(prefixes)
    prefixes, classes = _split_to_few_lengths(prefixes, classes)
    for _ in range(8):  # a second try is as good as never needed: the stash would have to overflow as well
        seeds = _Seeds(
            *(random.integers(0, 1 << 64, 2, np.uint64) | np.uint64(1) for _ in range(2)),
            tags=random.integers(0, 1 << 64, 129, np.uint64),
        )
        pages = _image6(prefixes, classes, seeds)
        if pages is not None:
            return Image(6, prefixes_listed, pages)
    raise BlocklistError(f"{prefixes_listed} IPv6 prefixes do not spread over the table")


def _image6(prefixes: Prefixes, classes: Classes, seeds: _Seeds) -> npt.NDArray[np.uint8] | None:
    tags = seeds.tags[prefixes.plen]
    index = _hash(prefixes, tags, seeds.index)
    prints = _hash(prefixes, tags, seeds.print)
    prints ^= prints >> np.uint64(32)
    order = np.argsort(prints)
    order = order[np.concatenate([[True], prints[order][1:] != prints[order][:-1]])]
    index, prints, cls = index[order], prints[order], classes[order]

    bits_log2 = min(max(int(16 * len(prints)).bit_length(), 15), 24)
    bits = np.zeros(1 << bits_log2, np.uint8)
    bits[index >> np.uint64(64 - bits_log2)] = 1
    buckets = len(prints) // BUCKET_LOAD + 1
    room = (PAGES6 - BUCKET_PAGE) * (PAGE_BYTES // BUCKET_BYTES)
    buckets = min(buckets, room - room // 16)
    folded = (index ^ (index >> np.uint64(32))) & _LOW
    table, left = _fill_buckets((folded * np.uint64(buckets)) >> np.uint64(32), prints, cls, buckets)
    stash = 2 * len(left)
    pages = BUCKET_PAGE + _pages((buckets + stash) * BUCKET_BYTES)
    _must_fit(pages, PAGES6, "IPv6")
    place = ((prints[left] & _LOW) * np.uint64(stash)) >> np.uint64(32)
    stashed, lost = _fill_buckets(place, prints[left], cls[left], stash)
    if len(lost):
        return None

    image = np.zeros(pages * PAGE_BYTES, np.uint8)
    head = _head(seeds, prefixes.plen, 64 - bits_log2, buckets, stash)
    packed = np.packbits(bits, bitorder="little")
    start = BUCKET_PAGE * PAGE_BYTES
    image[: len(head)] = head
    image[BITS_PAGE * PAGE_BYTES : BITS_PAGE * PAGE_BYTES + len(packed)] = packed
    image[start : start + table.nbytes] = table.reshape(-1)
    image[start + table.nbytes : start + table.nbytes + stashed.nbytes] = stashed.reshape(-1)
    return image.reshape(pages, PAGE_BYTES)


def _hash(prefixes: Prefixes, tags: Words, mul: Words) -> Words:
    """``bl6_hash`` of the header."""
    x = (prefixes.hi ^ tags) * mul[0]
    x ^= x >> np.uint64(32)
    return (x ^ prefixes.lo) * mul[1]


def _fill_buckets(
    place: Words, prints: Words, classes: Classes, count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Put each fingerprint into its bucket; returns uint8[count, 64] and the rows that found theirs full."""
    table = np.zeros((count, BUCKET_BYTES), np.uint8)
    if not len(place):
        return table, np.empty(0, np.int64)
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    slot = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    fits = slot < SLOTS
    row, bucket, slot, left = order[fits], ordered[fits].astype(np.int64), slot[fits], order[~fits]
    table.view(np.uint64)[bucket, slot] = prints[row]
    table[bucket, 8 * SLOTS + slot] = classes[row]
    table[place[left].astype(np.int64), BUCKET_BYTES - 1] = 1
    return table, left


def _head(seeds: _Seeds, plen: Lengths, shift: int, buckets: int, stash: int) -> npt.NDArray[np.uint8]:
    """``struct bl6_head``. Lengths with most prefixes first: a listed source is found early."""
    count = np.bincount(plen, minlength=129)
    lengths = np.argsort(-count, kind="stable")[: np.count_nonzero(count)]
    multipliers = np.concatenate([seeds.index, seeds.print])
    numbers = np.array([len(lengths), shift, buckets, stash], np.uint32)
    table = np.column_stack(
        [MASK_HI[lengths], MASK_LO[lengths], seeds.tags[lengths], np.zeros(len(lengths), np.uint64)]
    )
    head = np.concatenate([multipliers.view(np.uint8), numbers.view(np.uint8)])
    return np.concatenate([head, np.zeros(HEAD_BYTES - len(head), np.uint8), table.reshape(-1).view(np.uint8)])


# --- few prefix lengths ------------------------------------------------------------------------------------


def _split_to_few_lengths(prefixes: Prefixes, classes: Classes) -> tuple[Prefixes, Classes]:
    """Split prefixes of rare lengths to the next longer one in use, so that at most 64 lengths, and mostly a
    handful, are probed for each packet. 64 always suffice: an odd length splits into two of the next even one."""
    target = _targets(np.bincount(prefixes.plen, minlength=129))
    steps = target[prefixes.plen] - prefixes.plen
    pieces = [(prefixes.pick(steps == 0), classes[steps == 0])]
    for length in np.unique(prefixes.plen[steps > 0]).tolist():
        chosen = prefixes.plen == length
        pieces.append(
            (
                _split(prefixes.pick(chosen), int(target[length])),
                np.repeat(classes[chosen], 1 << int(target[length] - length)),
            )
        )
    columns = [piece for piece, _ in pieces]
    merged = Prefixes(
        6,
        np.concatenate([piece.hi for piece in columns]),
        np.concatenate([piece.lo for piece in columns]),
        np.concatenate([piece.plen for piece in columns]),
    )
    return merged, np.concatenate([part for _, part in pieces])


def _targets(count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64[129]: the length to which prefixes of each length are split. Cheapest splits first."""
    target = np.arange(129)
    count = count.copy()
    budget = max(int(count.sum() * SPLIT_SHARE), SPLIT_ALWAYS)
    while True:
        used = np.flatnonzero(count).tolist()
        options = [
            (int(count[short]) * ((1 << (longer - short)) - 1), short, longer)
            for short, longer in zip(used, used[1:], strict=False)
            if (short < 64) == (longer <= 64) and longer - short <= 16
        ]
        must = len(used) > LENGTHS
        if must:  # an even length may not be in use yet
            options += [(int(count[short]), short, short + 1) for short in used if short % 2]
        cost, short, longer = min(options, default=(budget + 1, 0, 0))
        if not must and cost > budget:
            return target
        budget -= cost
        count[longer] += count[short] << (longer - short)
        count[short] = 0
        target[target == short] = longer


def _split(prefixes: Prefixes, length: int) -> Prefixes:
    """Each prefix as its pieces of ``length``; both lengths lie on one side of the 64-bit border."""
    pieces = 1 << (length - int(prefixes.plen[0]))
    step = np.arange(pieces, dtype=np.uint64) << np.uint64((64 - length) % 64)
    hi, lo = np.repeat(prefixes.hi, pieces), np.repeat(prefixes.lo, pieces)
    if length <= 64:
        hi |= np.tile(step, len(prefixes))
    else:
        lo |= np.tile(step, len(prefixes))
    return Prefixes(6, hi, lo, np.full(len(hi), length, np.uint8))


# --- the nft side ------------------------------------------------------------------------------------------


def hosts_and_prefixes(collapsed: Prefixes) -> tuple[Prefixes, Prefixes]:
    """Single addresses for a hash set, prefixes for an interval set: never the former into the latter."""
    host = collapsed.plen == collapsed.host_length
    return collapsed.pick(host), collapsed.pick(~host)


def chunks(texts: list[str], size: int = 50_000) -> Iterator[str]:
    """Comma-separated pieces, each fit for one ``add element`` of nft."""
    for start in range(0, len(texts), size):
        yield ", ".join(texts[start : start + size])


def _nothing(family: int) -> Image:
    return Image(family, 0, np.empty((0, PAGE_BYTES), np.uint8))


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES)


def _must_fit(pages: int, limit: int, family: str) -> None:
    if pages > limit:
        raise BlocklistError(
            f"the {family} list needs {pages * PAGE_BYTES >> 20} MiB, the kernel's table holds {limit * PAGE_BYTES >> 20}"
        )
