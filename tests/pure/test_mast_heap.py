"""Room for a flood: the heap keeps what large looks free, and gives it back when they are over.

Each in a process of its own, because a heap has a history."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
from pathlib import Path
import numpy as np
from actors.core import thrift
from actors.dermis.mast_cell_heap import CALM, MANY, Heap

def resident_kb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4

def faults(work):
    count = lambda: int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[7])
    before = count()
    work()
    return count() - before

def large_look():
    for _ in range(100):
        np.ones(100_000, "f8")

thrift.one_heap()
heap = Heap()
"""
FAULTS = """
thrifty = faults(large_look)
heap.look(MANY)
large_look()
roomy = faults(large_look)
for _ in range(CALM):
    heap.look(0)
print(thrifty, roomy, faults(large_look))
"""
MEMORY = """
before = resident_kb()
heap.look(MANY)
kept = np.ones(3_000_000, "f8")
del kept
during = resident_kb()
for _ in range(CALM):
    heap.look(MANY - 1)
print(during - before, resident_kb() - before, int(heap.roomy))
"""


def numbers(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_a_flood_is_worked_off_without_mapping_memory_again_and_again():
    thrifty, roomy, again = numbers(FAULTS)

    assert thrifty > 15_000, "a hundred times 800 kB, page by page, too small for huge pages"
    assert roomy < thrifty / 10
    assert again > 15_000


def test_what_was_kept_goes_back_when_the_flood_is_over():
    during_kb, after_kb, roomy = numbers(MEMORY)

    assert during_kb > 20_000
    assert after_kb < 5_000
    assert not roomy
