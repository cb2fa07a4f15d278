"""The BPF file system: where program, tables and links stay alive when every process has died.

Layout below ``bpf_dir``: ``v<schema>/<map>`` and ``v<schema>/prog_<kind>_<build>``, with one directory per shape of the
tables, and ``links/<rung>_<interface>`` and ``egress/<interface>`` beside them, because a link outlives versions.
"""

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path

from bpf.errors import DataPlaneError

BPFFS_MAGIC = 0xCAFE4A11
STANDARD_MOUNT = Path("/sys/fs/bpf")


def _file_system_of(path: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(str(path).encode(), ctypes.byref(buffer)):
        return 0
    return int(buffer[0])


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def ensure(directory: Path) -> None:
    """Make the directory, mounting the file system first where the standard place lacks it. Raises DataPlaneError."""
    if _file_system_of(_nearest(directory)) != BPFFS_MAGIC:
        if STANDARD_MOUNT not in (directory, *directory.parents):
            raise DataPlaneError(f"{directory} is not on a BPF file system", remedy="mount -t bpf bpf /sys/fs/bpf")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", str(STANDARD_MOUNT).encode(), b"bpf", 0, None):
            number = ctypes.get_errno()
            raise DataPlaneError(
                f"cannot mount the BPF file system at {STANDARD_MOUNT}: {os.strerror(number)}",
                errno=number,
                remedy="run as root, or: mount -t bpf bpf /sys/fs/bpf",
            )
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataPlaneError(f"cannot make {directory}: {error.strerror}", errno=error.errno or 0) from error


def pin_name(text: str) -> str:
    """Names in this file system know no dots: what is no letter, digit or dash becomes ``_hex``."""
    return re.sub(r"[^A-Za-z0-9-]", lambda match: f"_{ord(match.group()):02x}", text)


def unpin(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def remove_directory(directory: Path) -> None:
    """Unpin all that lies directly in a directory, then remove it. What is in use elsewhere lives on."""
    with suppress(FileNotFoundError):
        for path in list(directory.iterdir()):
            unpin(path)
        directory.rmdir()
