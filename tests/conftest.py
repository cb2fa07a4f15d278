"""How the whole suite is run: which tests share the machine, and what becomes of a promise about time."""

import os
import signal
from collections.abc import Iterable

import pytest
from hypothesis import settings

# How long one example takes says nothing on a shared machine; a hang meets the limit of every test.
settings.register_profile("tegumentar", deadline=None)
settings.load_profile("tegumentar")

#: The machine is shared with strangers: a promise in wall-clock time is broken when it is broken three times in a row.
#: Every repetition is named in the summary.
PLAYS = 3


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    long_chaos = "TEGUMENTAR_CHAOS_SECONDS" in os.environ  # is not repeated until it is good
    for item in items:
        if item.get_closest_marker("timed") and not long_chaos:
            item.add_marker(pytest.mark.flaky(reruns=PLAYS - 1, reruns_delay=1))


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job ignores Ctrl-C, and so would every service that a test starts and wants to interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
