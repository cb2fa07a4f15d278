"""Reads the kernel's flow table through shared memory: an index of 8 bytes per flow, then the records that matter."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi, libbpf
from bpf.maps import shared_memory


class FlowTable:
    """Copies of live flow records.

    A copy may catch a record in the middle of an update: every number in it is then either the old or the new one.
    Records whose slot changed hands while they were copied are left out. The records are mapped at the first read:
    50 MB count against whoever maps them, and most holders of a data plane never look."""

    def __init__(self, index_fd: int, records_fd: int) -> None:
        self._records_fd = records_fd
        sets = libbpf.map_info(index_fd).max_entries
        self._tags = shared_memory(index_fd, abi.FLOW_SET, sets, writable=False)["tag"]
        self.capacity = sets * abi.FLOW_WAYS

    @cached_property
    def _records(self) -> npt.NDArray[Any]:
        return shared_memory(self._records_fd, abi.FLOW, self.capacity, writable=False)

    def read(self, since_ns: int = 0) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]:
        """Slots and copies of the flows whose last packet was at or after ``since_ns`` (0: all that are held).

        The index knows the time in ticks of 2^20 ns, so a few flows from just before may come along."""
        hashes = self._tags["hash"].reshape(-1)
        live = hashes != 0
        if since_ns:
            ticks = self._tags["seen"].reshape(-1) >> np.uint32(2)
            since = np.uint32((since_ns >> 20) - 8 & 0x3FFFFFFF)  # the program's clock lags by up to a jiffy
            live &= ((ticks - since) & np.uint32(0x3FFFFFFF)) < np.uint32(0x20000000)
        slots = np.flatnonzero(live).astype(np.uint32)
        before = self._records["incarnation"][slots]
        copies = self._records[slots]
        same = (before == self._records["incarnation"][slots]) & (copies["incarnation"] == before)
        return slots[same], copies[same]

    def close(self) -> None:
        """The mapping goes with the last array that looks at it."""
