"""A forked child: its end in numbers, and nothing of the parent's written twice."""

import os
import signal
import subprocess
import sys
import time

import pytest

from actors.core.forked import Forked


def _ended(child: Forked) -> int | None:
    deadline = time.monotonic() + 10
    while child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    return child.exitcode


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: None, 0),
        (lambda: sys.exit(4), 4),
        (lambda: sys.exit("words"), 1),
        (lambda: os._exit(9), 9),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9),
    ],
)
def test_the_way_a_child_ended_is_known(end, code):
    child = Forked(target=end)

    child.start()

    assert _ended(child) == code
    assert child.exitcode == code, "asked again"


def test_an_exception_in_a_child_is_shown_and_its_buffered_words_are_written_once():
    program = """
import sys, time
from actors.core.forked import Forked
def fail(what):
    print("child")
    raise ValueError(what)
print("parent", end=" ")
child = Forked(target=fail, args=("boom",))
child.start()
while child.is_alive():
    time.sleep(0.005)
print(child.exitcode)
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["parent", "child", "1"]
    assert "ValueError: boom" in done.stderr


def test_a_child_that_somebody_else_collected_counts_as_running_for_its_end_cannot_be_known():
    child = Forked(target=os._exit, args=(3,))
    child.start()

    os.waitpid(child.pid, 0)

    assert child.exitcode is None
