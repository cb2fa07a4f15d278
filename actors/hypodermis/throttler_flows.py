"""Opens the kernel's flow table while the cell is root still; it is read ever after without any right."""

import os
import time
from pathlib import Path

from actors.hypodermis.throttler_fleet import FlowReader

#: At the start of a node the reflex arc makes the tables at the same time; nothing necessary waits with us. Seconds.
PATIENCE_S = 5.0
_LOOK_AGAIN_S = 0.02


def open_flows(bpf_dir: Path, patience_s: float) -> FlowReader | None:
    """None where there is no kernel program, or no right to look at its tables."""
    deadline = time.monotonic() + (patience_s if os.geteuid() == 0 else 0.0)
    while (table := _open(bpf_dir)) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
    return table


def _open(bpf_dir: Path) -> FlowReader | None:
    tables = _newest(bpf_dir)
    if tables is None:
        return None
    from bpf import libbpf
    from bpf.dataplane import DataPlaneError
    from bpf.flow_table import FlowTable

    fds: list[int] = []
    try:
        fds += [libbpf.get_pinned(tables / "flow_index"), libbpf.get_pinned(tables / "flows")]
        return FlowTable(*fds)  # it keeps what it needs
    except (DataPlaneError, OSError):
        return None
    finally:
        for fd in fds:
            os.close(fd)


def _newest(bpf_dir: Path) -> Path | None:
    """The tables of the shape in use; those of an older one may lie beside them for a moment."""
    try:
        found = [path.parent for path in bpf_dir.glob("v*/flows") if (path.parent / "flow_index").exists()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None
