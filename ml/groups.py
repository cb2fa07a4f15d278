"""Grouping of numbers, as numpy's unique and isin do it; those two load numpy.ma, 5 MB that a service never uses."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def distinct(keys: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The different keys in ascending order, and for each key which of them it is. (any[K], int64[N])."""
    if not len(keys):
        return keys, np.zeros(0, "i8")
    order = np.argsort(keys)
    ranked = keys[order]
    leads = np.ones(len(keys), "?")
    leads[1:] = ranked[1:] != ranked[:-1]
    which = np.empty(len(keys), "i8")
    which[order] = np.cumsum(leads) - 1
    return ranked[leads], which


def among(keys: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.bool_]:
    """Which keys are one of those wanted. bool[N]."""
    if not len(wanted):
        return np.zeros(len(keys), "?")
    ranked = np.sort(wanted)
    place = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)
    return np.asarray(ranked[place] == keys)
