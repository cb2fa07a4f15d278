"""Kernel totals for /metrics: the pinned per-CPU counters, opened before privileges go, true while every cell is down."""

from pathlib import Path

from actors.core.metrics import Family


class KernelTotals:
    def __init__(self, bpf_dir: Path) -> None:
        self._bpf_dir = bpf_dir

    def families(self) -> list[Family]:
        return []
