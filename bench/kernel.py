"""The programs under measurement in the kernel: the skin's own, its peers, and the harness that feeds them.

Nothing is attached anywhere except in network namespaces of this process (bench/wire.py). Everything is private to
the process or pinned in a directory of its own, which is gone afterwards.
"""

import contextlib
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.admin.lab.net import mount_bpffs, owner_tag, remove_pins
from actors.epidermis.blocklist import compile4
from actors.epidermis.blocklist6 import compile6
from actors.epidermis.prefixes import Prefixes
from bench.blocklist_harness import SOURCES
from bpf import libbpf
from bpf.btf import Btf
from bpf.build import FLAGS, SOURCE_DIR, _system_includes
from bpf.dataplane import Policy
from bpf.loader import KernelPlane
from bpf.maps import SnapshotSlot
from bpf.program import Build

HERE = Path(__file__).parent
Sources = npt.NDArray[np.uint8]


@cache
def compiled(name: str) -> bytes:
    """The object of ``bench/NAME.bpf.c``, compiled like the product."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "out.o")
        flags = [*FLAGS, *_system_includes(), f"-I{SOURCE_DIR}"]
        subprocess.run(["clang", *flags, "-c", str(HERE / f"{name}.bpf.c"), "-o", str(target)], check=True)
        return target.read_bytes()


def tcp_frame(family: int = 4, *, syn: bool = False, mac: bytes = b"\x02\0\0\0\0\x01") -> bytes:
    """60 bytes (IPv6: 74): a TCP segment without payload to a documentation address; the source is written later."""
    flags = 0x02 if syn else 0x10
    tcp = bytes((0x9C, 0x40, 0x01, 0xBB)) + bytes(8) + bytes((0x50, flags, 0xFF, 0xFF)) + bytes(4)
    if family == 4:
        ip = bytes((0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0)) + bytes(4) + bytes((192, 0, 2, 1))
        return mac + b"\x02\0\0\0\0\x02\x08\x00" + ip + tcp + bytes(6)
    ip = bytes((0x60, 0, 0, 0, 0, 20, 6, 64)) + bytes(16) + bytes.fromhex("20010db8000000000000000000000001")
    return mac + b"\x02\0\0\0\0\x02\x86\xdd" + ip + tcp


class Loaded:
    """A bench object in the kernel."""

    def __init__(self, name: str, pins: Path) -> None:
        self.object = libbpf.BpfObject(compiled(name), name, pins)
        self.object.load()

    def program(self, name: str) -> int:
        return self.object.program_fd(name)

    def table(self, name: str) -> int:
        return self.object.map_fd(name)

    def fill(self, name: str, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        fd = self.table(name)
        stored = libbpf.put_many(fd, keys, values)
        os.close(fd)
        assert stored == len(keys), f"{name} took {stored} of {len(keys)}"

    def fill_trie(self, listed: Prefixes) -> None:
        """The list, into trie4 or trie6."""
        keys: npt.NDArray[Any]
        if listed.family == 4:
            keys = np.zeros(len(listed), [("bits", "<u4"), ("addr", ">u4")])
            keys["addr"] = listed.hi >> np.uint64(32)
        else:
            keys = np.zeros(len(listed), [("bits", "<u4"), ("addr", ">u8", 2)])
            keys["addr"] = np.column_stack([listed.hi, listed.lo])
        keys["bits"] = listed.plen
        self.fill(f"trie{listed.family}", keys, np.ones(len(keys), np.uint32))


class Mutator(Loaded):
    """Gives every packet another source and measures the program behind it."""

    def __init__(self, pins: Path) -> None:
        super().__init__("mutator", pins)
        self._slot = self.table("under_test")
        self._runners = {family: libbpf.TestRunner(self.program(f"mutate{family}")) for family in (4, 6)}
        memory = mmap.mmap(self.table("sources"), SOURCES * 16)
        self._table = np.frombuffer(memory, np.uint8).reshape(SOURCES, 16)

    def send_through(self, ifindex: int, frame: bytes = b"") -> None:
        """The device for ``send4`` and ``send_syn4``, by its number there, and the frame of the latter."""
        section = next(name for name in self.object.map_names() if name.endswith(".bss"))
        variables = Btf(compiled("mutator")).variables(".bss")
        with mmap.mmap(self.table(section), mmap.PAGESIZE) as memory:
            for name, value in (("out_ifindex", ifindex.to_bytes(4, "little")), ("whole_frame", frame[:56])):
                offset, _ = variables[name]
                memory[offset : offset + len(value)] = value

    def use(self, sources: Sources) -> None:
        """Repeated until the table of 2^20 is full."""
        self._table[:] = np.resize(sources, (SOURCES, 16))

    def run(self, program: int, packets: int, family: int = 4, frame: bytes | None = None) -> float:
        """Nanoseconds per packet, harness included."""
        libbpf.put(self._slot, np.zeros(1, np.uint32), np.array([program], np.uint32))
        return self._runners[family].nanoseconds(frame or tcp_frame(family), packets)

    def verdict(self, program: int, family: int = 4, frame: bytes | None = None) -> int:
        """What the program says of the next packet."""
        libbpf.put(self._slot, np.zeros(1, np.uint32), np.array([program], np.uint32))
        return self._runners[family].run(frame or tcp_frame(family))


class Skin:
    """The real program with its real tables, pinned where the one extra entry of the bench finds them."""

    def __init__(self, pins: Path, policy: Policy | None = None, *, live: bool = False, steps: bool = True) -> None:
        build = Build(live=live, max_bans=1 << 20)
        self.plane = KernelPlane(pins, build, policy)
        self.whole = self.plane.program.entries["xdp"]
        directory = self.plane.program.directory
        assert directory is not None
        self.steps = self._open_steps(build, directory) if steps else None

    def _open_steps(self, build: Build, directory: Path) -> libbpf.BpfObject:
        """The doors to single steps, over the same tables."""
        image = compiled("skin_steps")
        opened = libbpf.BpfObject(image, "skin_steps", directory)
        opened.set_constants(build.constants(), Btf(image).variables(".rodata"))
        for name, size in build.sizes().items():
            opened.resize(name, size)
        for name in opened.map_names():
            if name == "events_perf":
                opened.leave_out(name)
            elif "." not in name:
                opened.pin_to(name, directory / name)
        opened.load()
        return opened

    def step(self, name: str) -> int:
        assert self.steps is not None
        return self.steps.program_fd(name)

    def publish(self, listed: Prefixes, random: np.random.Generator) -> None:
        """Compile the list and swap it in."""
        classes = np.zeros(len(listed), np.uint8)
        image = compile4(listed, classes) if listed.family == 4 else compile6(listed, classes, random)
        outer = self.plane.program.maps["snapshot" if listed.family == 4 else "snapshot6"]
        SnapshotSlot(outer, listed.family).publish_pages(image.pages)

    def close(self) -> None:
        if self.steps is not None:
            self.steps.close()
        self.plane.close()


def xdp_filter(hosts: npt.NDArray[np.uint32], pins: Path) -> tuple[libbpf.BpfObject, int] | None:
    """xdp-filter's own object in allow mode with these hosts; None where the package xdp-tools is not installed."""
    from bench import blocklist_harness

    return blocklist_harness.xdp_filter(hosts, pins)


@contextlib.contextmanager
def pins() -> Iterator[Path]:
    """A bpffs directory of this process alone."""
    directory = mount_bpffs() / owner_tag()
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        remove_pins(directory)


def stay_on_one_cpu() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
