"""The kernel's ring of payload samples: opened as root from its pin, drained afterwards without any privilege."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bpf.dataplane import SampleDrain

_LOOK_AGAIN_S: Final = 0.05


def open_samples(bpf_dir: Path, patience_s: float) -> "SampleDrain | str":
    """The pinned ring of the shape in use, waiting a moment for it to appear; a sentence when there is none."""
    deadline = time.monotonic() + (patience_s if os.geteuid() == 0 else 0.0)
    while (pin := _newest(bpf_dir)) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
    if pin is None:
        return f"there is no sample ring of the kernel program in {bpf_dir}"
    from bpf import libbpf
    from bpf.dataplane import DataPlaneError
    from bpf.ring import SampleRing

    try:
        return SampleRing(libbpf.get_pinned(pin))
    except (DataPlaneError, OSError, ValueError) as error:
        return f"the sample ring {pin} cannot be read: {error}"


def _newest(bpf_dir: Path) -> Path | None:
    """An older shape may lie beside the one in use until the move to the new one is over."""
    try:
        return max(bpf_dir.glob("v*/samples"), key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None
