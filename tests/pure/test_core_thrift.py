"""What is freed goes back to the kernel, and what is declared absent can be imported later."""

import json
import subprocess
import sys

from actors.core import thrift

WORK_IN_A_THREAD = """
import threading
from pathlib import Path
from actors.core import thrift

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work():
    blocks = [bytearray(2000) for _ in range(20_000)]
    kept.append(bytearray(2000))
    blocks.clear()

kept = []
thrift.one_heap()
before = resident()
worker = threading.Thread(target=work)
worker.start()
worker.join()
thrift.give_back()
print(resident() - before)
"""


def test_what_a_worker_thread_freed_goes_back_to_the_kernel():
    done = subprocess.run([sys.executable, "-c", WORK_IN_A_THREAD], capture_output=True, text=True, check=True)

    assert int(done.stdout) < 4_000_000, "of the 40 MB that the thread used"


def test_an_absent_module_cannot_be_imported_and_is_there_again_afterwards():
    sys.modules.pop("colorsys", None)

    with thrift.absent("colorsys"):
        try:
            import colorsys
        except ImportError:
            refused = True
        else:
            refused = False

    import colorsys

    assert refused
    assert colorsys.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)


def test_a_module_that_is_loaded_stays_loaded():
    import json

    with thrift.absent("json"):
        import json as again

    assert again is json


SETTLED = """
import json, re, sys
from pathlib import Path
from actors.core import thrift

def code():
    return sum(int(size) for size in re.findall(r"r-xp .*?Rss: +(\\d+)", Path("/proc/self/smaps").read_text(), re.S))

import sqlite3, ssl
before = code()
thrift.settle()
left = code()
sqlite3.connect(":memory:").execute("select 1")
ssl.create_default_context()
print(json.dumps([before, left]))
"""


def test_code_that_ran_only_at_the_start_is_let_go_and_runs_again_when_it_is_needed():
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True)

    before, left = json.loads(done.stdout)
    assert left < before / 2
