"""Data planes whose program BCC has compiled: once for each build, then with its tables emptied for the next test."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bpf import abi, bcc_loader, libbpf
from bpf.dataplane import Policy
from bpf.loader import KernelPlane
from bpf.maps import shared_memory
from bpf.program import Build, Program, keep_pins, possible_cpus, settle
from bpf.ring import RecordRing

#: deploy/packages.sh installs it for the tests where there is such a package.
needs_bcc = pytest.mark.skipif(bool(bcc_loader.missing()), reason=bcc_loader.missing() or "BCC is here")

_PERCPU_ARRAY, _RING = 6, 27
_made: dict[Build, tuple[dict[str, int], bytes]] = {}


@pytest.fixture(autouse=True)
def forget_types() -> Iterator[None]:
    """For modules that name it: what was learned from BCC ends with each test."""
    yield
    abi.learn(None)


def bcc_plane(directory: Path | None, build: Build, policy: Policy | None = None) -> KernelPlane:
    """As new. A former plane of the same build must be closed: it shares its tables with this one."""
    if build not in _made:
        _made[build] = bcc_loader.compile_apart(build)
    fds, types = _made[build]
    abi.learn(types)
    program = Program(
        {name: os.dup(fd) for name, fd in fds.items() if not name.startswith("prog_")},
        {name.removeprefix("prog_"): os.dup(fd) for name, fd in fds.items() if name.startswith("prog_")},
        build.event_paths[0], directory and directory / "vbcc", "bcc", fresh=False, adopted=False, loader="bcc",
    )  # fmt: skip
    for name, fd in program.maps.items():
        _empty(name, fd)
    keep_pins(program)
    settle(program, directory, policy)
    return KernelPlane(directory, build, policy, made=(program, "a test wants it"))


def _empty(name: str, fd: int) -> None:
    info = libbpf.map_info(fd)
    if info.flags & libbpf.MMAPABLE:
        size = -(-info.value_size // 8) * 8  # the kernel lays the values of an array out in steps of eight bytes
        shared_memory(fd, np.dtype(f"V{size}"), info.max_entries).view(np.uint8)[:] = 0
    elif info.type == _PERCPU_ARRAY:
        zeros = np.zeros(-(-info.value_size // 8) * 8 * possible_cpus(), np.uint8)
        for key in range(info.max_entries):
            libbpf.put(fd, np.array([key], "<u4"), zeros)
    elif info.type == libbpf.ARRAY_OF_MAPS:
        libbpf.delete(fd, np.zeros(1, "<u4"))
    elif info.type == _RING:
        ring = RecordRing(os.dup(fd), abi.EVENT)
        ring.advance(ring.waiting()[1])
        ring.close()
    elif name not in (abi.TYPES, "events_perf"):
        with suppress(libbpf.KernelRefused):
            keys, _ = libbpf.read_all(fd, np.dtype(f"V{info.key_size}"), np.dtype(f"V{info.value_size}"))
            for at in range(len(keys)):
                libbpf.delete(fd, keys[at : at + 1])
