"""True counters of the kernel program, by reason and by tally: shared memory, no system call, no privilege once open.

They lie in a map with one page per CPU, written by that CPU alone, so they stay true while the service is down and are
never reset by it. Open before privileges are dropped; read ever after.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi, libbpf
from bpf.dataplane import Counters
from bpf.maps import shared_memory


class StatsReader:
    """Reads the counters of a pinned map (by path) or of an open one (by descriptor, which stays the caller's)."""

    def __init__(self, source: Path | int) -> None:
        fd = source if isinstance(source, int) else libbpf.get_pinned(source)
        try:
            rows = libbpf.map_info(fd).max_entries
            self._rows = shared_memory(fd, abi.STATS, rows, writable=False)
        finally:
            if not isinstance(source, int):
                os.close(fd)

    def read(self) -> Counters:
        did, would = self._rows["did"], self._rows["would"]
        tally = self._rows["tally"].sum(axis=0)
        return Counters(
            did_packets=_by_reason(did["packets"]),
            did_bytes=_by_reason(did["bytes"]),
            would_packets=_by_reason(would["packets"]),
            would_bytes=_by_reason(would["bytes"]),
            tally={name: int(tally[index]) for index, name in enumerate(abi.TALLIES)},
        )

    def frames(self) -> int:
        """All frames ever judged: cheaper than ``read`` for a pressure gauge."""
        return int(np.sum(self._rows["did"]["packets"]) + np.sum(self._rows["would"]["packets"]))


def _by_reason(rows: npt.NDArray[Any]) -> dict[str, int]:
    totals = rows.sum(axis=0)
    return {name: int(totals[number]) for number, name in abi.REASONS.items()}
