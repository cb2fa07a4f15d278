"""Reads the kernel's flow table: an index of 8 bytes per flow in shared memory, then the records that matter."""

import os
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpf import abi, libbpf
from bpf.maps import shared_memory

#: Up to so many records are asked of the kernel one by one, 3 us each; the mapping for more costs 3 ms of processor.
FEW: Final = 500


class FlowTable:
    """Copies of live flow records.

    A copy may catch a record in the middle of an update: every number in it is then either the old or the new one.
    Records whose slot changed hands while they were copied are left out. The records are never mapped for longer than
    one look, and not at all while few flows live: 29 MB count as memory of whoever maps them."""

    def __init__(self, index_fd: int, records_fd: int) -> None:
        """The descriptors are the caller's; what is needed of them later is kept."""
        self._records_fd = os.dup(records_fd)
        sets = libbpf.map_info(index_fd).max_entries
        self._tags = shared_memory(index_fd, abi.FLOW_SET, sets, writable=False)["tag"]
        self._sets = sets
        self.capacity = sets * abi.FLOW_WAYS

    def slots(self, live: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Where the records of these tags are: those of one way lie side by side. live: bool[sets, ways]."""
        found = np.flatnonzero(live)
        return found % abi.FLOW_WAYS * self._sets + found // abi.FLOW_WAYS

    def mapped(self) -> npt.NDArray[Any]:
        """All records as they are in the kernel; the mapping goes with the last array that looks at it."""
        return shared_memory(self._records_fd, abi.FLOW, self.capacity, writable=False)

    def copies(self, slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A copy of the record in each slot."""
        if len(slots) <= FEW:
            with suppress(libbpf.KernelRefused):  # before Linux 5.19 a process without CAP_BPF may map, but not ask
                return self._asked(slots)
        picked: npt.NDArray[Any] = self.mapped()[slots]
        return picked

    def _asked(self, slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
        keys, found = slots.astype("<u4"), np.zeros(len(slots), abi.FLOW)
        for at in range(len(keys)):
            libbpf.find(self._records_fd, keys[at : at + 1], found[at : at + 1])
        return found

    def read(self, since_ns: int = 0) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]:
        """Slots and copies of the flows whose last packet was at or after ``since_ns`` (0: all that are held).

        The index knows the time in ticks of 2^20 ns, so a few flows from just before may come along."""
        live = self._tags["hash"] != 0
        if since_ns:
            ticks = self._tags["seen"] >> np.uint32(2)
            since = np.uint32((since_ns >> 20) - 8 & 0x3FFFFFFF)  # the program's clock lags by up to a jiffy
            live &= ((ticks - since) & np.uint32(0x3FFFFFFF)) < np.uint32(0x20000000)
        slots = self.slots(live).astype(np.uint32)
        if len(slots) <= FEW:
            copies = self.copies(slots)
            same = self.copies(slots)["incarnation"] == copies["incarnation"]
        else:
            records = self.mapped()
            before = records["incarnation"][slots]
            copies = records[slots]
            same = (before == records["incarnation"][slots]) & (copies["incarnation"] == before)
        return slots[same], copies[same]

    def close(self) -> None:
        """No more looks; arrays that were given out stay good."""
        if self._records_fd >= 0:
            os.close(self._records_fd)
            self._records_fd = -1

    def __del__(self) -> None:
        self.close()
