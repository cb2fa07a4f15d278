"""Room for a flood: the heap keeps what large looks free, and gives it back when they are over."""

from pathlib import Path

import numpy as np

from actors.core import thrift
from actors.dermis.mast_cell_heap import CALM, MANY, Heap


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def faults(work) -> int:
    before = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[7])
    work()
    return int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[7]) - before


def large_look() -> None:
    for _ in range(100):
        np.ones(100_000, "f8")


def test_a_flood_is_worked_off_without_mapping_memory_again_and_again():
    thrift.one_heap()
    heap = Heap()

    thrifty = faults(large_look)
    heap.look(MANY)
    large_look()
    roomy = faults(large_look)
    for _ in range(CALM):
        heap.look(0)
    again = faults(large_look)

    assert thrifty > 15_000, "a hundred times 800 kB, page by page, too small for huge pages"
    assert roomy < thrifty / 10
    assert again > 15_000


def test_what_was_kept_goes_back_when_the_flood_is_over():
    thrift.one_heap()
    heap, before = Heap(), resident_kb()
    heap.look(MANY)
    kept = np.ones(3_000_000, "f8")
    del kept
    during = resident_kb()

    for _ in range(CALM):
        heap.look(MANY - 1)

    assert during - before > 20_000
    assert resident_kb() - before < 5_000
    assert not heap.roomy
