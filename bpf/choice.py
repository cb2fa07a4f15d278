"""Which loader brings the kernel program in: the compiled object through libbpf, else what BCC compiles from source.

The reason why it was BCC's turn stays with the data plane (``loaded.why``), for status and doctor.
"""

import errno
from pathlib import Path

from bpf import bcc_loader
from bpf.dataplane import DataPlaneError, Policy
from bpf.loader import KernelPlane
from bpf.program import Build

#: What another compiler would not change: a missing right, or no memory.
_SAME_FOR_BOTH = frozenset({errno.EPERM, errno.ENOMEM})


class ToCompile(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """BCC must compile first, which takes seconds: call ``compile`` in a thread, then open again."""

    def __init__(self, why: str, build: Build, bpf_dir: Path) -> None:
        super().__init__(f"BCC compiles the kernel program, because {why}", remedy="wait some seconds")
        self._build, self._dir = build, bpf_dir

    def compile(self) -> None:
        """Everything is pinned afterwards. Raises DataPlaneError."""
        bcc_loader.open_program(self._build, self._dir).close()


def open_plane(bpf_dir: Path, build: Build, policy: Policy | None = None, loader: str = "auto") -> KernelPlane:
    """The data plane with its pins below ``bpf_dir``, in milliseconds. loader: ``auto``, ``libbpf`` or ``bcc``.

    Raises ToCompile when only BCC can do it and has yet to, DataPlaneError when there can be none here."""
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
        raise ToCompile(why, build, bpf_dir)
    return KernelPlane(bpf_dir, build, policy, made=(program, why))
