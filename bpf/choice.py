"""Which loader brings the kernel program in: the compiled object through libbpf, else what BCC compiles from source.

The reason why it was BCC's turn stays with the data plane (``loaded.why``), for status and doctor.
"""

import errno
from functools import partial
from pathlib import Path

from bpf import bcc_loader
from bpf.dataplane import DataPlaneError, NotMade, Policy
from bpf.loader import KernelPlane
from bpf.program import Build

#: What another compiler would not change: a missing right, or no memory.
_SAME_FOR_BOTH = frozenset({errno.EPERM, errno.ENOMEM})


def open_plane(bpf_dir: Path, build: Build, policy: Policy | None = None, loader: str = "auto") -> KernelPlane:
    """The data plane with its pins below ``bpf_dir``, in milliseconds. loader: ``auto``, ``libbpf`` or ``bcc``.

    Raises NotMade when BCC has to compile it first, DataPlaneError when there can be none here."""
    why = "the setting reflex.loader wants it"
    if loader != "bcc":
        try:
            return KernelPlane(bpf_dir, build, policy)
        except DataPlaneError as error:
            if loader == "libbpf" or error.errno in _SAME_FOR_BOTH or bcc_loader.missing():
                raise
            why = str(error)
    program = bcc_loader.adopt(build, bpf_dir, policy)
    if program is None:
        raise NotMade(f"BCC compiles the kernel program, because {why}", partial(_make, bpf_dir, build, why))
    return KernelPlane(bpf_dir, build, policy, made=(program, why))


def _make(bpf_dir: Path, build: Build, why: str) -> None:
    try:
        bcc_loader.open_program(build, bpf_dir).close()
    except DataPlaneError as error:
        raise DataPlaneError(f"{error}; it was tried because {why}", errno=error.errno, remedy=error.remedy) from error
