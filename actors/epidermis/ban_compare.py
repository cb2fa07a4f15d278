"""The desired bans against those of the kernel program: a hundred thousand in some tens of milliseconds.

Both sides are arrays. What is desired is kept up to date change by change; what the kernel holds is read whole, and in
most comparisons neither its keys nor the desired ones have changed since the one before. Runs off the actor thread;
one object belongs to one thread at a time.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from actors.core.messages import Order
from bpf.ban_rows import BanRows, Words, key_of
from bpf.dataplane import BadSubject
from bpf.subjects import parse

#: A ban whose end differs by more than this from what is wanted is written again.
SLACK_S = 2.0
_LEAST_ROOM = 1024
#: They make one number of the three words of a key; nobody outside can choose keys whose numbers collide.
_MIX = np.array([secrets.randbits(64) | 1 for _ in range(3)], np.uint64)


@dataclass(slots=True)
class BanDifference:
    """The kernel's bans against the desired ones. ``made_by_kernel``: unknown to the desired state, with reason, end
    and packets. expired: entries that are over and wait for the sweep."""

    held: int = 0
    expired: int = 0
    missing: list[str] = field(default_factory=list)
    wrong_time: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    made_by_kernel: list[tuple[str, str, float, int]] = field(default_factory=list)


class DesiredBans:
    """Subjects with their keys and ends, without an order. About 200 bytes each."""

    def __init__(self) -> None:
        self._subjects: list[str] = []
        self._at: dict[str, int] = {}
        self._keys: Words = np.zeros((_LEAST_ROOM, 3), np.uint64)
        self._until = np.zeros(_LEAST_ROOM)
        self._sorted: tuple[npt.NDArray[np.uint64], npt.NDArray[np.intp]] | None = None
        self._last: tuple[Words, npt.NDArray[np.intp]] | None = None

    def __len__(self) -> int:
        return len(self._subjects)

    def update(self, changes: Mapping[str, Order | None]) -> None:
        """New words about subjects; None: not desired any more. What is no address is left out: it was refused when
        it was to be written."""
        for subject, order in changes.items():
            if order is None:
                self._drop(subject)
            else:
                self._put(subject, order.until_unix_s)

    def compare(self, rows: BanRows, now_unix: float, now_ns: int) -> BanDifference:
        """``now_unix`` and ``now_ns`` are the same moment, after the rows were read."""
        until_ns = rows.until_ns.astype(np.int64)
        over = (until_ns > 0) & (until_ns <= now_ns)
        ends = np.where(until_ns == 0, 0.0, now_unix + (until_ns - now_ns) / 1e9)
        found = BanDifference(held=len(rows), expired=int(np.count_nonzero(over)))
        match = self._match(rows.keys)
        known = (match >= 0) & ~over
        wanted = self._until[match]
        differs = known & (((ends == 0) != (wanted == 0)) | (np.abs(ends - wanted) > SLACK_S))
        found.wrong_time = [self._subjects[at] for at in match[differs]]
        for row in np.flatnonzero(~known & ~over).tolist():
            ban = rows.ban(row)
            if ban.by_kernel:
                found.made_by_kernel.append((ban.subject, ban.reason, float(ends[row]), ban.packets))
            else:
                found.strangers.append(ban.subject)
        until = self._until[: len(self)]
        missing = (until == 0) | (until > now_unix + SLACK_S)
        missing[match[known]] = False
        found.missing = [self._subjects[at] for at in np.flatnonzero(missing)]
        return found

    def _match(self, keys: Words) -> npt.NDArray[np.intp]:
        """For each key its place among the desired ones, -1 where it is none of them."""
        if self._sorted is None:
            digests = _digests(self._keys[: len(self)])
            order = np.argsort(digests)
            self._sorted, self._last = (digests[order], order), None
        if self._last is not None and np.array_equal(self._last[0], keys):
            return self._last[1]
        digests, order = self._sorted
        if not len(self):
            return np.full(len(keys), -1, np.intp)
        near = np.minimum(np.searchsorted(digests, _digests(keys)), len(self) - 1)
        # two keys with one digest: the second counts as missing, and is written again; that is all
        match = np.where((self._keys[order[near]] == keys).all(axis=1), order[near], -1)
        self._last = (keys, match)
        return match

    def _put(self, subject: str, until_unix_s: float) -> None:
        at = self._at.get(subject)
        if at is None:
            try:
                key = key_of(parse(subject))
            except BadSubject:
                return
            at = self._at[subject] = len(self._subjects)
            self._subjects.append(subject)
            if at == len(self._keys):
                self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
                self._until = np.concatenate([self._until, np.zeros_like(self._until)])
            self._keys[at] = key
            self._sorted = None
        self._until[at] = until_unix_s

    def _drop(self, subject: str) -> None:
        """The last one takes the place of the one that goes."""
        at = self._at.pop(subject, None)
        if at is None:
            return
        last = self._subjects.pop()
        if at < len(self._subjects):
            end = len(self._subjects)
            self._subjects[at], self._at[last] = last, at
            self._keys[at], self._until[at] = self._keys[end], self._until[end]
        self._sorted = None


def _digests(keys: Words) -> npt.NDArray[np.uint64]:
    words = (keys ^ (keys >> np.uint64(29))) * _MIX
    digests: npt.NDArray[np.uint64] = np.add.reduce(words, axis=1, dtype=np.uint64)
    return digests
