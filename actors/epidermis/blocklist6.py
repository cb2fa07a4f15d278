"""Compiles IPv6 blocklists: hashed bits in front of buckets of fingerprints. Pure.

The layout is bpf/blocklist.h; the constants here mirror it and a test compares them. A million prefixes take about
0.2 s. Classes are as in blocklist.py.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.epidermis.blocklist import BlocklistError, Classes, Indices, must_fit, nothing_listed, pages_for
from actors.epidermis.prefixes import MASK_HI, MASK_LO, Lengths, Prefixes, Words
from bpf.blocklist_image import PAGE_BYTES, Image

#: pages of the inner map (shared.h): what an image may hold at most
PAGES6 = 9216
HEAD_BYTES, BITS_PAGE, BUCKET_PAGE = 64, 1, 513
LENGTHS, SLOTS, BUCKET_BYTES = 64, 7, 64
#: three entries in a bucket of seven on average: one bucket in a hundred overflows, and the table stays dense
BUCKET_LOAD = 3

#: few lengths are cheap to probe: prefixes are split to the next length while that adds at most this share
SPLIT_SHARE, SPLIT_ALWAYS = 0.25, 4096

_LOW = np.uint64(0xFFFF_FFFF)


@dataclass(frozen=True, slots=True)
class _Seeds:
    """Random numbers of one image: two odd multipliers for each hash, and one tag for each prefix length."""

    index: Words
    print: Words
    tags: Words


def compile6(prefixes: Prefixes, classes: Classes, random: np.random.Generator) -> Image:
    """As ``compile4``. random: a fresh, secret source, so that nobody can aim at a bucket. Raises BlocklistError."""
    if not len(prefixes):
        return nothing_listed(6)
    prefixes_listed = len(prefixes)
    prefixes, classes = _split_to_few_lengths(prefixes, classes)
    for _ in range(8):  # a second try is as good as never needed: the stash would have to overflow as well
        seeds = _Seeds(
            index=random.integers(0, 1 << 64, 2, np.uint64) | np.uint64(1),
            print=random.integers(0, 1 << 64, 2, np.uint64) | np.uint64(1),
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
    pages = BUCKET_PAGE + pages_for((buckets + stash) * BUCKET_BYTES)
    must_fit(pages, PAGES6, "IPv6")
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
    hashed: Words = (x ^ prefixes.lo) * mul[1]
    return hashed


def _fill_buckets(place: Words, prints: Words, classes: Classes, count: int) -> tuple[npt.NDArray[np.uint8], Indices]:
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


def _targets(count: Indices) -> Indices:
    """int64[129]: the length to which prefixes of each length are split, never across 64. Cheapest splits first."""
    target = np.arange(129)
    count = count.copy()
    budget = max(int(count.sum() * SPLIT_SHARE), SPLIT_ALWAYS)
    while True:
        used = np.flatnonzero(count).tolist()
        options = [
            (int(count[short]) * ((1 << (longer - short)) - 1), short, longer)
            for short, longer in itertools.pairwise(used)
            if short != 64 and (short < 64) == (longer <= 64) and longer - short <= 16
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
