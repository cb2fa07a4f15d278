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
        # One array per way: a batch gathers from each of them at full speed.
        self._keys = [np.zeros(sets, "u8") for _ in range(WAYS)]
        self._seen_ms = [np.full(sets, -1, "i8") for _ in range(WAYS)]
        self._again = [np.zeros(sets, "?") for _ in range(WAYS)]  # seen in more than one batch

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for arrays in (self._keys, self._seen_ms, self._again) for array in arrays)

    def find(self, keys: Keys, now_ms: int) -> tuple[Places, NDArray[np.bool_]]:
        """Places of *distinct* keys, and which of them are new there (their old state must be cleared).

        Three rounds settle keys of one batch that want the same set; who is left over joins the crowd."""
        hashed = mix(keys ^ self._seed) | np.uint64(1)
        sets = ((hashed >> np.uint64(16)) & self._mask).astype("i8")
        places = np.zeros(len(keys), "i8")
        for way in range(WAYS):
            known = np.flatnonzero(self._keys[way][sets] == hashed)
            mine = sets[known]
            self._again[way][mine] |= self._seen_ms[way][mine] < now_ms
            self._seen_ms[way][mine] = now_ms
            places[known] = mine * WAYS + way + 1
        new = places == 0
        left = np.flatnonzero(new)
        for _ in range(3):
            if not len(left):
                return places, new
            places[left] = self._settle(hashed[left], sets[left], now_ms)
            left = left[places[left] == 0]
        new[left] = False
        self.crowded += len(left)
        return places, new

    def _settle(self, hashed: Keys, sets: Places, now_ms: int) -> Places:
        """Give one newcomer per set the worst way of that set, unless this very batch uses all of them. 0: no place."""
        order = np.arange(len(sets))
        first = np.empty(len(self._keys[0]), "i8")
        first[sets[::-1]] = order[::-1]
        chosen = np.flatnonzero(first[sets] == order)
        mine, places = sets[chosen], np.zeros(len(sets), "i8")
        rank, way = np.full(len(mine), np.iinfo("i8").max), np.zeros(len(mine), "i8")
        for i in range(WAYS):
            stale = self._seen_ms[i][mine] + self._again[i][mine] * KNOWN_BONUS_MS
            worse = stale < rank
            rank[worse], way[worse] = stale[worse], i
        for i in range(WAYS):
            here = np.flatnonzero(way == i)
            before = self._seen_ms[i][mine[here]]
            here, before = here[before < now_ms], before[before < now_ms]
            self.evicted += int((before >= 0).sum())
            self._keys[i][mine[here]] = hashed[chosen[here]]
            self._seen_ms[i][mine[here]] = now_ms
            self._again[i][mine[here]] = False
            places[chosen[here]] = mine[here] * WAYS + i + 1
        return places
