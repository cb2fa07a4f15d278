"""For the tests of feeds and blocklists: the probe program, slow oracles, and lists of prefixes to try."""

import ipaddress
import mmap
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actors.epidermis.blocklist import PAGES4
from actors.epidermis.blocklist6 import PAGES6
from actors.epidermis.prefixes import MASK_HI, MASK_LO, Prefixes
from bpf import libbpf
from bpf.blocklist_image import PAGE_BYTES, Image

ROOT = Path(__file__).parents[2]
QUESTION = np.dtype([("addr", "u1", 16), ("answer", "<u4"), ("unused", "<u4", 3)])
QUESTIONS = 1 << 20


def compile_probe(directory: Path) -> Path:
    """The object of tests/kernel/blocklist_probe.bpf.c; warnings are errors."""
    target = directory / "blocklist_probe.bpf.o"
    includes = [f"-I{ROOT / 'bpf'}", f"-I/usr/include/{os.uname().machine}-linux-gnu"]
    flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"]
    source = ROOT / "tests/kernel/blocklist_probe.bpf.c"
    subprocess.run(["clang", *flags, *includes, "-c", str(source), "-o", str(target)], check=True)
    return target


class Probe:
    """The probe program, loaded. Nothing is pinned and nothing attached: all goes with ``close``."""

    def __init__(self, path: Path) -> None:
        self._object = libbpf.BpfObject(path.read_bytes(), "probe", path.parent)
        self._object.load()
        self._questions = self._mapped("questions", QUESTIONS * QUESTION.itemsize)
        self._cursor = self._mapped(next(name for name in self._object.map_names() if name.endswith(".bss")), 4096)

    def _mapped(self, name: str, size: int) -> mmap.mmap:
        fd = self._object.map_fd(name)
        memory = mmap.mmap(fd, size)
        os.close(fd)
        return memory

    def publish(self, image: Image) -> None:
        """As the data plane does it: a new inner map, filled, then one swap."""
        pages = PAGES4 if image.family == 4 else PAGES6
        inner = libbpf.create_array("image", PAGE_BYTES, pages)
        with mmap.mmap(inner, pages * PAGE_BYTES) as memory:
            memory[: image.pages.nbytes] = image.pages.tobytes()
        outer = self._object.map_fd(f"snapshot{image.family}")
        libbpf.put(outer, np.zeros(1, np.uint32), np.array([inner], np.uint32))
        os.close(outer)
        os.close(inner)

    def ask(self, family: int, addresses: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        """uint8[n, 16] in network order (IPv4 in the first four bytes) → uint32[n]: 0, or 1 + class."""
        table = np.frombuffer(self._questions, QUESTION)
        answers = []
        for start in range(0, len(addresses), QUESTIONS):
            part = addresses[start : start + QUESTIONS]
            table["answer"] = 0xFFFF_FFFF
            table["addr"][: len(part)] = part
            if family == 4:
                table["addr"][: len(part), :4] = part[:, 3::-1]
            self._run(f"probe{family}", len(part))
            answers.append(table["answer"][: len(part)].copy())
        return np.concatenate(answers)

    def _run(self, program: str, times: int) -> None:
        self._cursor[:4] = bytes(4)
        fd = self._object.program_fd(program)
        runner = libbpf.TestRunner(fd)
        runner._options.repeat = times
        runner.run(bytes(64))
        os.close(fd)

    def close(self) -> None:
        self._questions.close()
        self._cursor.close()
        self._object.close()


@contextmanager
def probe(directory: Path) -> Iterator[Probe]:
    loaded = Probe(compile_probe(directory))
    try:
        yield loaded
    finally:
        loaded.close()


# --- lists and oracles --------------------------------------------------------------------------------------


def packed(family: int, hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Addresses as uint8[n, 16] in network order."""
    return np.ascontiguousarray(np.column_stack([hi, lo]).astype(">u8")).view(np.uint8).reshape(-1, 16)


def oracle(prefixes: Prefixes, hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Membership by another way than the image: masked addresses in sorted tables, one for each length."""
    found = np.zeros(len(hi), bool)
    for plen in np.unique(prefixes.plen).tolist():
        mine = prefixes.plen == plen
        table = _texts(prefixes.hi[mine], prefixes.lo[mine])
        found |= np.isin(_texts(hi & MASK_HI[plen], lo & MASK_LO[plen]), table)
    return found


def _texts(hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64]) -> npt.NDArray[np.bytes_]:
    # a byte that is never zero keeps numpy from trimming trailing zeros
    data = np.concatenate([packed(6, hi, lo), np.ones((len(hi), 1), np.uint8)], axis=1)
    return np.ascontiguousarray(data).view("S17").reshape(-1)


def around(prefixes: Prefixes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Addresses where mistakes hide: first and last of each prefix, and the ones just outside."""
    step = np.uint64(1 << 32) if prefixes.family == 4 else np.uint64(1)
    last_hi, last_lo = prefixes.hi | ~MASK_HI[prefixes.plen], prefixes.lo | ~MASK_LO[prefixes.plen]
    if prefixes.family == 4:
        last_hi, last_lo = last_hi & MASK_HI[32], prefixes.lo
        hi = np.concatenate([prefixes.hi, last_hi, prefixes.hi - step, last_hi + step])
        return hi, np.zeros(len(hi), np.uint64)
    below, above = prefixes.lo - step, last_lo + step
    return (
        np.concatenate([prefixes.hi, last_hi, prefixes.hi - (prefixes.lo == 0), last_hi + (above == 0)]).astype(
            np.uint64
        ),
        np.concatenate([prefixes.lo, last_lo, below, above]),
    )


def random_prefixes(family: int, lengths: Iterable[int], count: int, random: np.random.Generator) -> Prefixes:
    choice = np.array(list(lengths), np.uint8)
    plen = choice[random.integers(0, len(choice), count)]
    hi = random.integers(0, 1 << 64, count, np.uint64)
    lo = random.integers(0, 1 << 64, count, np.uint64)
    if family == 4:
        lo = np.zeros(count, np.uint64)
    return Prefixes(family, hi & MASK_HI[plen], lo & MASK_LO[plen], plen)


def networks(*texts: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(text) for text in texts]
