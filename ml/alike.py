"""Which flows of a batch are alike to the model: a flood from forged addresses is one packet, sent from everywhere.

Two flows are alike when everything a feature reads is equal: the counters of both sides, how long they lived, and their
service. A number per flow says so (multilinear hashing with secret multipliers, Lemire and Kaser 2014); that two flows
differ and share a number happens once in billions of pairs and gives one of them the other's score.
"""

import os
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.flows import Snapshots
from ml.groups import distinct
from ml.records import FLOW, SIDE
from ml.windows import services

#: Fewer flows than this are scored as fast as they are compared.
LEAST: Final = 4096
_UNREAD: Final = ("first_ns", "last_ns", "sampled_bytes", "syn_seq", "window", "mss", "ttl", "flags_seen")
_PIECE: Final = 1024


def kinds(shown: Snapshots) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """One flow of each kind, and the kind of each flow; None when it is not worth it: few flows, or all different."""
    if len(shown) < LEAST:
        return None
    number = np.empty(len(shown), "u8")
    mask, factors = _weights()
    lived = np.maximum(shown.flows["last_ns"].astype("i8") - shown.first_ns, 0).astype("u8")
    service = services(shown.flows)
    for at in range(0, len(shown), _PIECE):
        part = slice(at, at + _PIECE)
        words = np.ascontiguousarray(shown.flows[part]).view("<u4").reshape(-1, len(mask)) & mask
        number[part] = np.einsum("ij,j->i", words, factors[:-2])
    number += lived * factors[-2] + service * factors[-1]
    different, kind = distinct(number)
    if 2 * len(different) > len(shown):
        return None
    one = np.empty(len(different), "i8")
    one[kind] = np.arange(len(shown))
    return one, kind


@cache
def _weights() -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """Which 32-bit words of a record count, and the secret of this process."""
    used: NDArray[Any] = np.zeros(1, FLOW)
    everything = np.frombuffer(b"\xff" * SIDE.itemsize, SIDE)[0]
    for name in SIDE.names or ():
        if name not in _UNREAD and not name.startswith("_"):
            used["side"][name] = everything[name]
    mask = used.view("<u4")
    secret = np.frombuffer(os.urandom(8 * (len(mask) + 2)), "<u8") | np.uint64(1)
    return mask, secret
