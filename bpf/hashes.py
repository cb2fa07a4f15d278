"""The kernel program's hashes once more, in numpy and plain Python: filters and fingerprints must agree bit for bit.

Their twins: ``mix64``, ``address_hash`` (bpf/reflex.h), ``ban_slot`` (bpf/bans.h), ``fingerprint`` (bpf/vaccine.h).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bpf.abi import FILTER_SLOTS, FINGERPRINT_BYTES, PREFIX_SLOTS

_M1, _M2, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)
_WORD = (1 << 64) - 1


def mix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> _SHIFT)) * _M1
    x = (x ^ (x >> _SHIFT)) * _M2
    return x ^ (x >> _SHIFT)


def ban_slots(keys: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint64]:
    """Filter slots of ban keys (``bpf.abi`` BAN_KEY), uint64[n]."""
    words = np.ascontiguousarray(keys["addr"]).view("<u8").reshape(len(keys), 2)
    salt = keys["bits"].astype(np.uint64) + np.uint64(seed)
    return mix64((words[:, 1] ^ salt) + words[:, 0] * (salt | np.uint64(1))) & np.uint64(FILTER_SLOTS - 1)


def prefix_slots(addr: bytes, bits: int, *, is_ip4: bool) -> range | list[int]:
    """Filter slots that a banned prefix must set: every first-16-bits of IPv4, or the hashed first 32 of IPv6."""
    if is_ip4:
        first = int.from_bytes(addr[12:14], "big")
        return range(first, first + (1 << max(112 - bits, 0)))
    if bits < 32:
        return range(PREFIX_SLOTS, 2 * PREFIX_SLOTS)
    word = np.frombuffer(addr[:4], "<u4").astype(np.uint64)
    return [PREFIX_SLOTS + int(mix64(word)[0] & np.uint64(PREFIX_SLOTS - 1))]


def fingerprint(payload: bytes) -> int:
    """FNV-1a (64 bit) of the first 32 payload bytes, padded with zeros, and of how many there were."""
    head = payload[:FINGERPRINT_BYTES]
    value = 0xCBF29CE484222325
    for byte in head.ljust(FINGERPRINT_BYTES, b"\0"):
        value = ((value ^ byte) * 0x100000001B3) & _WORD
    return ((value ^ len(head)) * 0x100000001B3) & _WORD
