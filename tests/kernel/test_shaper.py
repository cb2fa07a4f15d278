"""The shaper: the kernel's own queue in a namespace, and the fake, keep the same promises; and it truly shapes."""

import socket
import time
from collections.abc import Iterator

import pytest

from actors.core.errors import ToolFailed, Unavailable
from actors.hypodermis.shaper import Shaper, TcShaper
from tests.support.netns import Namespace, veth
from tests.support.tc import FakeShaper

pytestmark = pytest.mark.kernel

MBIT = 1_000_000


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace("tc") as made, Namespace("tcpeer") as peer:
        veth(made, peer)
        veth(made, peer, "other0", "other0")
        made.run("tc", "qdisc", "add", "dev", "other0", "root", "handle", "9:", "htb")
        with made.entered():
            yield made


@pytest.fixture(params=["real", "fake"])
def shaper(request: pytest.FixtureRequest, space: Namespace) -> Iterator[Shaper]:
    made = TcShaper() if request.param == "real" else FakeShaper({"v0", "other0"}, {"other0"})
    yield made
    made.close()


def test_a_shaper_is_set_changed_in_place_and_taken_away(shaper: Shaper) -> None:
    assert shaper.shaped("v0") == 0

    shaper.shape("v0", 8 * MBIT)
    first = shaper.shaped("v0")
    shaper.shape("v0", 2 * MBIT)
    second = shaper.shaped("v0")

    assert (first, second) == (8 * MBIT, 2 * MBIT)
    assert shaper.release("v0")
    assert shaper.shaped("v0") == 0
    assert not shaper.release("v0")


def test_a_queue_of_somebody_else_is_left_alone(shaper: Shaper, space: Namespace) -> None:
    with pytest.raises(ToolFailed, match="left alone") as refused:
        shaper.shape("other0", MBIT)

    assert refused.value.remedy
    assert not shaper.release("other0")
    assert "htb 9:" in space.run("tc", "qdisc", "show", "dev", "other0").stdout


def test_an_interface_that_is_not_there_is_said(shaper: Shaper) -> None:
    with pytest.raises(Unavailable, match="no interface"):
        shaper.shape("absent0", MBIT)

    assert not shaper.release("absent0")


def test_a_rate_that_cannot_be_kept_is_refused(shaper: Shaper) -> None:
    with pytest.raises(ToolFailed):
        shaper.shape("v0", 1)


def test_the_next_process_finds_the_queue_of_the_last(space: Namespace) -> None:
    before = TcShaper()
    before.shape("v0", 8 * MBIT)
    before.close()

    after = TcShaper()
    found = after.shaped("v0")
    after.shape("v0", 4 * MBIT)

    assert found == 8 * MBIT
    assert after.shaped("v0") == 4 * MBIT
    after.close()


def test_datagrams_beyond_the_rate_do_not_leave(space: Namespace) -> None:
    space.ip("addr add 10.97.0.1/24 dev v0", "neigh add 10.97.0.2 lladdr 02:00:00:00:00:02 dev v0")
    shaper = TcShaper()
    shaper.shape("v0", 4 * MBIT)

    before = _sent(space)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        end = time.monotonic() + 1.0
        offered = 0
        while time.monotonic() < end:
            try:
                offered += out.sendto(bytes(1_400), ("10.97.0.2", 9))
            except BlockingIOError:
                pass
            time.sleep(0.0005)
    passed = _sent(space) - before
    shaper.close()

    assert offered > 1_000_000
    assert passed < 4 * MBIT / 8 * 2


def _sent(space: Namespace) -> int:
    """Bytes that left by v0. sysfs would show those of another namespace, procfs of this thread's."""
    with open("/proc/thread-self/net/dev") as table:
        [line] = [line for line in table if line.strip().startswith("v0:")]
    return int(line.partition(":")[2].split()[8])
