"""The whole ban table as arrays: a hundred thousand bans are read and compared in milliseconds, without an object each.

A key is three words of 64 bits: the upper and the lower half of the (mapped) address as numbers, and how many bits
count. ``bpf.subjects`` says what they mean as text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi
from bpf.ban import Ban
from bpf.subjects import Subject, text_of

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class BanRows:
    """Arrays of one length, row by row one ban. keys: ``[n, 3]``; until_ns 0: until released; reason: its number."""

    keys: Words
    until_ns: npt.NDArray[np.uint64]
    packets: npt.NDArray[np.uint64]
    reason: npt.NDArray[np.uint32]
    by_kernel: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)

    def subject(self, row: int) -> str:
        """The canonical text of this row's subject."""
        upper, lower, bits = self.keys[row].tolist()
        return text_of(upper.to_bytes(8, "big") + lower.to_bytes(8, "big"), bits)

    def ban(self, row: int) -> Ban:
        return Ban(
            self.subject(row),
            int(self.until_ns[row]),
            abi.reason_name(int(self.reason[row])),
            bool(self.by_kernel[row]),
            int(self.packets[row]),
        )


def key_of(subject: Subject) -> tuple[int, int, int]:
    """The three words of a subject."""
    return int.from_bytes(subject.addr[:8], "big"), int.from_bytes(subject.addr[8:], "big"), subject.bits


def rows_of_tables(tables: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> BanRows:
    """Keys and values as the kernel's tables gave them (``bpf.abi`` BAN_KEY or PREFIX, and BAN)."""
    values = np.concatenate([value for _, value in tables])
    keys = np.concatenate([_words(key) for key, _ in tables])
    return BanRows(keys, values["until_ns"], values["packets"], values["reason"], values["made_by"] == 0)


def rows_of_bans(bans: Iterable[tuple[Subject, Ban]]) -> BanRows:
    """The same of bans that are objects already."""
    listed = list(bans)
    return BanRows(
        np.array([key_of(subject) for subject, _ in listed], np.uint64).reshape(-1, 3),
        np.array([ban.until_ns for _, ban in listed], np.uint64),
        np.array([ban.packets for _, ban in listed], np.uint64),
        np.array([abi.REASON_NUMBERS[ban.reason] for _, ban in listed], np.uint32),
        np.array([ban.by_kernel for _, ban in listed], np.bool_),
    )


def _words(keys: npt.NDArray[Any]) -> Words:
    words = np.empty((len(keys), 3), np.uint64)
    words[:, :2] = np.ascontiguousarray(keys["addr"]).view(">u8").reshape(-1, 2)
    words[:, 2] = keys["bits"]
    return words
