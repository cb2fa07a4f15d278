"""Lists, sources and the mutating harness for the blocklist measurements."""

import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.epidermis import prefixes
from actors.epidermis.prefixes import MASK_HI, MASK_LO, Prefixes
from bpf import libbpf
from bpf.blocklist_image import PAGE_BYTES, Image
from bpf.build import FLAGS, SOURCE_DIR, _system_includes

SOURCE = Path(__file__).with_name("blocklist_candidates.bpf.c")
SOURCES = 1 << 20
#: like published lists: nearly all hosts in IPv4, half of them networks in IPv6
MIX = {4: {32: 0.9, 24: 0.09, 22: 0.009, 20: 0.001}, 6: {128: 0.5, 64: 0.4, 48: 0.09, 32: 0.01}}
FRAME = {4: b"\x02" * 12 + b"\x08\x00" + b"\x45" + b"\x00" * 59, 6: b"\x02" * 12 + b"\x86\xdd" + b"\x60" + b"\x00" * 75}
Random = np.random.Generator


def made_up_list(family: int, count: int, random: Random, hosts_only: bool = False) -> Prefixes:
    """IPv6 prefixes crowd in 20,000 /32s, as allocations do."""
    shares = {max(MIX[family]): 1.0} if hosts_only else MIX[family]
    plen = random.choice(np.array(list(shares), np.uint8), count, p=list(shares.values()))
    hi, lo = _somewhere(family, count, random)
    hi[plen == 32] ^= np.uint64(1 << 61 if family == 6 else 0)  # listed allocations, elsewhere: they cover no others
    return prefixes.collapse(Prefixes(family, hi & MASK_HI[plen], lo & MASK_LO[plen], plen))


def _somewhere(family: int, count: int, random: Random) -> tuple[Any, Any]:
    if family == 4:
        addr = random.integers(0x01000000, 0xDF000000, count, dtype=np.uint64)
        return addr << np.uint64(32), np.zeros(count, np.uint64)
    allocation = np.uint64(0x2001_0000 << 32) + (random.integers(0, 20_000, count, dtype=np.uint64) << np.uint64(32))
    return allocation | random.integers(0, 1 << 32, count, dtype=np.uint64), random.integers(
        0, 1 << 64, count, np.uint64
    )


def listed_sources(listed: Prefixes, random: Random) -> npt.NDArray[np.uint8]:
    chosen = listed.pick(random.integers(0, len(listed), SOURCES))
    hi, lo = random.integers(0, 1 << 64, SOURCES, np.uint64), random.integers(0, 1 << 64, SOURCES, np.uint64)
    return _bytes(listed.family, chosen.hi | (hi & ~MASK_HI[chosen.plen]), chosen.lo | (lo & ~MASK_LO[chosen.plen]))


def clean_sources(listed: Prefixes, random: Random) -> npt.NDArray[np.uint8]:
    """Not listed; in IPv6 half of them are neighbours of listed ones, in the same /32."""
    hi, lo = _somewhere(listed.family, SOURCES + SOURCES // 2, random)
    if listed.family == 6:
        hi[::2] ^= np.uint64(1 << 60)
    clean = np.ones(len(hi), bool)
    for plen in np.unique(listed.plen).tolist():
        mine = listed.plen == plen
        key = (hi & MASK_HI[plen]) ^ ((lo & MASK_LO[plen]) * np.uint64(0x9E3779B97F4A7C15))
        table = listed.hi[mine] ^ (listed.lo[mine] * np.uint64(0x9E3779B97F4A7C15))
        clean &= ~np.isin(key, table)
    return _bytes(listed.family, hi[clean][:SOURCES], lo[clean][:SOURCES])


def _bytes(family: int, hi: Any, lo: Any) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.column_stack([hi, lo]).astype(">u8")).view(np.uint8).reshape(-1, 16)


class Harness:
    """The candidates, loaded, and a stopwatch. Nothing is attached anywhere."""

    def __init__(self, directory: Path) -> None:
        compiled = directory / "candidates.o"
        flags = [*FLAGS, *_system_includes(), f"-I{SOURCE_DIR}"]
        subprocess.run(["clang", *flags, "-c", str(SOURCE), "-o", str(compiled)], check=True)
        self.object = libbpf.BpfObject(compiled.read_bytes(), "candidates", directory)
        self.object.load()
        self._slot = self.object.map_fd("under_test")
        self._memory = mmap.mmap(self.object.map_fd("sources"), SOURCES * 16)
        self._table = np.frombuffer(self._memory, np.uint8).reshape(SOURCES, 16)

    def use_sources(self, sources: npt.NDArray[np.uint8]) -> None:
        self._table[:] = np.resize(sources, (SOURCES, 16))

    def publish(self, image: Image, pages: int) -> int:
        """Create, fill and swap in; returns the descriptor of the inner map, closed by nobody."""
        fd = libbpf.create_array("image", PAGE_BYTES, pages)
        with mmap.mmap(fd, pages * PAGE_BYTES) as memory:
            target = np.frombuffer(memory, np.uint8, image.pages.nbytes)
            target[:] = image.pages.reshape(-1)
            del target
        outer = self.object.map_fd(f"snapshot{image.family}")
        libbpf.put(outer, np.zeros(1, np.uint32), np.array([fd], np.uint32))
        os.close(outer)
        return fd

    def fill_trie(self, listed: Prefixes) -> None:
        keys: npt.NDArray[Any]
        bits = listed.plen.astype(np.uint32)
        if listed.family == 4:
            keys = np.zeros(len(listed), [("bits", "<u4"), ("addr", ">u4")])
            keys["addr"] = listed.hi >> np.uint64(32)
        else:
            keys = np.zeros(len(listed), [("bits", "<u4"), ("addr", "u1", 16)])
            keys["addr"] = _bytes(6, listed.hi, listed.lo)
        keys["bits"] = bits
        fd = self.object.map_fd(f"trie{listed.family}")
        stored = libbpf.put_many(fd, keys, np.ones(len(keys), np.uint32))
        os.close(fd)
        assert stored == len(keys), f"the trie took {stored} of {len(keys)}"

    def nanoseconds(self, family: int, program: int, packets: int = 1_000_000) -> tuple[int, int]:
        """Mean time per packet including the harness, and what the program said of the last one."""
        libbpf.put(self._slot, np.zeros(1, np.uint32), np.array([program], np.uint32))
        mutator = self.object.program_fd(f"mutate{family}")
        try:
            runner = libbpf.TestRunner(mutator)
            runner._options.repeat = packets
            verdict = runner.run(FRAME[family])
            return int(runner._options.duration), verdict
        finally:
            os.close(mutator)

    def close(self) -> None:
        del self._table
        self._memory.close()
        os.close(self._slot)
        self.object.close()


@contextmanager
def harness() -> Iterator[Harness]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as directory:
        made = Harness(Path(directory))
        try:
            yield made
        finally:
            made.close()


def xdp_filter(entries: npt.NDArray[np.uint32], pins: Path) -> tuple[libbpf.BpfObject, int] | None:
    """xdp-filter's own object in allow mode, its table enlarged, with these hosts; None where it is not installed."""
    path = next(Path("/usr/lib").glob("*-linux-gnu/bpf/xdpfilt_alw_ip.o"), None)
    if path is None:
        return None
    loaded = libbpf.BpfObject(path.read_bytes(), "xdpfilter", pins)
    loaded.resize("filter_ipv4", len(entries) + 16)
    loaded.load()
    values = np.ones((len(entries), os.cpu_count() or 1), np.uint64)  # the flag "source", on every CPU
    fd = loaded.map_fd("filter_ipv4")
    stored = libbpf.put_many(fd, entries.astype(">u4"), values)
    os.close(fd)
    assert stored == len(entries)
    return loaded, loaded.program_fd("xdpfilt_alw_ip")
