"""A bounded, vectorised hash table: many keys at once to small integers, with fair eviction.

Four ways to a set, like a processor's cache. A flood of new keys can only push out keys that were seen once, and
only then the oldest; so an established source keeps its state while a million spoofed ones pass. Keys that find
no room in one batch share place 0, the *crowd*, which is why its figures are sums and blame nobody.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

WAYS: Final = 4
CROWD: Final = 0
#: A key seen in more than one batch outlives once-seen ones that are up to this much younger.
KNOWN_BONUS_MS: Final = 300_000
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]
Places = NDArray[np.int64]


def mix(values: Keys) -> Keys:
    """A 64-bit finaliser: every input bit reaches every output bit. Source: splitmix64, Steele et al. 2014."""
    x = values * _ODD
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


class PlaceTable:
    """Maps 64-bit keys to places 1..size; ``evicted`` counts keys that lost theirs, ``crowded`` those without one."""

    def __init__(self, size: int, seed: int = 0) -> None:
        sets = size // WAYS
        if sets < 1 or sets & (sets - 1):
            raise ValueError(f"a table of {size} places cannot be split into a power of two of sets with {WAYS} ways")
        self.size = size
        self.evicted = 0
        self.crowded = 0
        self._mask = np.uint64(sets - 1)
        self._seed = np.uint64(seed)
        self._keys = np.zeros((sets, WAYS), "u8")
        self._seen_ms = np.full((sets, WAYS), -1, "i8")
        self._again = np.zeros((sets, WAYS), "?")  # seen in more than one batch

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._seen_ms.nbytes + self._again.nbytes

    def find(self, keys: Keys, now_ms: int) -> tuple[Places, NDArray[np.bool_]]:
        """Places of *distinct* keys, and which of them are new there (their old state must be cleared).

        Three rounds settle keys of one batch that want the same set; who is left over joins the crowd."""
        hashed = mix(keys ^ self._seed) | np.uint64(1)
        sets = ((hashed >> np.uint64(16)) & self._mask).astype("i8")
        places = np.zeros(len(keys), "i8")
        new = np.zeros(len(keys), "?")
        left = np.arange(len(keys))
        for _ in range(3):
            hit = self._keys[sets[left]] == hashed[left, None]
            found = hit.any(axis=1)
            known = left[found]
            way = hit[found].argmax(axis=1)
            self._again[sets[known], way] |= self._seen_ms[sets[known], way] < now_ms
            self._seen_ms[sets[known], way] = now_ms
            places[known] = sets[known] * WAYS + way + 1
            left = left[~found]
            if not len(left):
                return places, new
            self._settle(hashed[left], sets[left], now_ms)
            new[left] = True
        hit = self._keys[sets[left]] == hashed[left, None]
        found = hit.any(axis=1)
        places[left[found]] = sets[left[found]] * WAYS + hit[found].argmax(axis=1) + 1
        crowd = left[~found]
        new[crowd] = False
        self.crowded += len(crowd)
        return places, new

    def _settle(self, hashed: Keys, sets: Places, now_ms: int) -> None:
        """Give one newcomer per set the worst way of that set, unless this very batch uses all of them."""
        sets, first = np.unique(sets, return_index=True)
        rank = self._seen_ms[sets] + self._again[sets] * KNOWN_BONUS_MS
        way = rank.argmin(axis=1)
        free = self._seen_ms[sets, way] < now_ms
        sets, way, first = sets[free], way[free], first[free]
        self.evicted += int((self._seen_ms[sets, way] >= 0).sum())
        self._keys[sets, way] = hashed[first]
        self._seen_ms[sets, way] = now_ms
        self._again[sets, way] = False
