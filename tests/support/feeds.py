"""For the tests of feeds and blocklists: the probe program, slow oracles, and lists of prefixes to try."""

import ctypes
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
from bpf.blocklist_image import PAGE_BYTES, Image

ROOT = Path(__file__).parents[2]
QUESTION = np.dtype([("addr", "u1", 16), ("answer", "<u4"), ("unused", "<u4", 3)])
QUESTIONS = 1 << 20
_ARRAY, _MMAPABLE = 2, 1 << 10


class _CreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf", ctypes.c_uint32 * 5),
        ("map_flags", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 2),
    ]


class _RunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("size_in", ctypes.c_uint32),
        ("size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_sizes", ctypes.c_uint32 * 2),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 3),
    ]


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
        self._lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in ("bpf_object__open", "bpf_object__find_program_by_name", "bpf_object__find_map_by_name"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._object = ctypes.c_void_p(self._lib.bpf_object__open(str(path).encode()))
        if not self._object or self._lib.bpf_object__load(self._object) != 0:
            raise OSError(ctypes.get_errno(), "the probe program does not load")
        self._questions = mmap.mmap(self._map("questions"), QUESTIONS * QUESTION.itemsize)
        self._cursor = mmap.mmap(self._map(".bss"), mmap.PAGESIZE)

    def publish(self, image: Image) -> None:
        """As the data plane does it: a new inner map, filled, then one swap."""
        fd = self.inner_map(image)
        name = "snapshot4" if image.family == 4 else "snapshot6"
        slot, value = ctypes.c_uint32(0), ctypes.c_uint32(fd)
        result = self._lib.bpf_map_update_elem(
            self._map(name), ctypes.byref(slot), ctypes.byref(value), ctypes.c_uint64(0)
        )
        os.close(fd)
        if result != 0:
            raise OSError(ctypes.get_errno(), "the swap was refused")

    def inner_map(self, image: Image) -> int:
        pages = PAGES4 if image.family == 4 else PAGES6
        opts = _CreateOpts(sz=ctypes.sizeof(_CreateOpts), map_flags=_MMAPABLE)
        fd = int(self._lib.bpf_map_create(_ARRAY, b"image", 4, PAGE_BYTES, pages, ctypes.byref(opts)))
        if fd < 0:
            raise OSError(-fd, "no inner map")
        with mmap.mmap(fd, pages * PAGE_BYTES) as memory:
            memory[: image.pages.nbytes] = image.pages.tobytes()
        return fd

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
        del table
        return np.concatenate(answers)

    def _run(self, program: str, times: int) -> None:
        self._cursor[:4] = bytes(4)
        packet = ctypes.create_string_buffer(64)
        opts = _RunOpts(sz=ctypes.sizeof(_RunOpts), data_in=ctypes.addressof(packet), size_in=64, repeat=times)
        found = ctypes.c_void_p(self._lib.bpf_object__find_program_by_name(self._object, program.encode()))
        if self._lib.bpf_prog_test_run_opts(self._lib.bpf_program__fd(found), ctypes.byref(opts)) != 0:
            raise OSError(ctypes.get_errno(), "the probe did not run")

    def _map(self, name: str) -> int:
        found = ctypes.c_void_p(self._lib.bpf_object__find_map_by_name(self._object, name.encode()))
        return int(self._lib.bpf_map__fd(found))

    def close(self) -> None:
        self._questions.close()
        self._cursor.close()
        self._lib.bpf_object__close(self._object)


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
