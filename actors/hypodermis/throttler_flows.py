"""Opens the kernel's flow table while the cell is root still; it is read ever after without any right."""

import os
import time
from pathlib import Path

from actors.hypodermis.throttler_fleet import FlowReader

#: At the first start of a node the reflex arc makes the tables at the same time; they are worth this wait. Seconds.
PATIENCE_S = 1.0
_LOOK_AGAIN_S = 0.02


def open_flows(bpf_dir: Path, *, patient: bool) -> FlowReader | None:
    """None where there is no kernel program, or no right to look at its tables."""
    deadline = time.monotonic() + (PATIENCE_S if patient and os.geteuid() == 0 else 0.0)
    while (tables := _newest(bpf_dir)) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
    if tables is None:
        return None
    from bpf import libbpf
    from bpf.dataplane import DataPlaneError
    from bpf.flow_table import FlowTable

    try:
        return FlowTable(libbpf.get_pinned(tables / "flow_index"), libbpf.get_pinned(tables / "flows"))
    except (DataPlaneError, OSError):
        return None


def _newest(bpf_dir: Path) -> Path | None:
    """The tables of the shape in use; those of an older one may lie beside them for a moment."""
    try:
        found = [path.parent for path in bpf_dir.glob("v*/flows") if (path.parent / "flow_index").exists()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None
