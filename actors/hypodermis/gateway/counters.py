"""Kernel totals for /metrics: the pinned counters, opened while root, read as memory, true while every cell is down."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from actors.core.metrics import Family

if TYPE_CHECKING:
    from bpf.stats import StatsReader

#: At the first start of a node the reflex arc makes the counters at the same time; they are worth this wait. Seconds.
PATIENCE_S = 1.0
_LOOK_AGAIN_S = 0.01


class KernelTotals:
    """Packets and bytes by reason and outcome; nothing where there is no kernel program."""

    def __init__(self, bpf_dir: Path) -> None:
        self._bpf_dir = bpf_dir
        self._reader: StatsReader | None = None
        self._drops: frozenset[str] = frozenset()

    def open(self, patience_s: float) -> bool:
        """Map the counters, waiting a moment for them to appear. Without the right to, or without them: False."""
        deadline = time.monotonic() + (patience_s if os.geteuid() == 0 else 0.0)
        while (pin := self._newest()) is None and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_S)
        if pin is None:
            return False
        from bpf import abi, libbpf
        from bpf.dataplane import DataPlaneError
        from bpf.stats import StatsReader

        try:
            fd = libbpf.get_pinned(pin)  # the kernel maps nothing shared from a read-only descriptor
            try:
                self._reader, self._drops = StatsReader(fd), abi.DROP_REASONS
            finally:
                os.close(fd)
        except (DataPlaneError, OSError):
            return False
        return True

    def _newest(self) -> Path | None:
        """The counters of the shape in use; an older shape may lie beside it until the move to the new one is over."""
        try:
            return max(self._bpf_dir.glob("v*/stats"), key=lambda path: path.stat().st_mtime, default=None)
        except OSError:
            return None

    def families(self) -> list[Family]:
        """outcome: ``passed``, ``dropped``, or ``observed`` for a verdict that was withheld."""
        if self._reader is None:
            return []
        counters = self._reader.read()
        return [
            self._family("packets", "Packets judged in the kernel", counters.did_packets, counters.would_packets),
            self._family("bytes", "Bytes judged in the kernel", counters.did_bytes, counters.would_bytes),
            Family(
                "kernel_events",
                "Tallies of the kernel program",
                ("tally",),
                {(name,): float(count) for name, count in counters.tally.items()},
            ),
        ]

    def _family(self, name: str, help_text: str, did: Mapping[str, int], would: Mapping[str, int]) -> Family:
        samples: dict[tuple[str, ...], float] = {}
        for reason, count in did.items():
            samples[reason, "dropped" if reason in self._drops else "passed"] = count
        for reason, count in would.items():
            samples[reason, "observed"] = count
        return Family(name, help_text, ("reason", "outcome"), samples)
