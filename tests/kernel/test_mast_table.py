"""The mast cell's hold on the kernel's flow table: pins that come one by one, and a table where nobody speaks."""

import errno
import threading
import time

import pytest

from actors.dermis.sessions_table import OVER_NS, LiveFlows, NoTable, open_live_flows
from bpf import libbpf
from bpf.dataplane import Policy, Stance
from bpf.pcap import Frame
from bpf.replay import Replayer, replay_plane
from ml import meter
from tests.support.netns import pins
from tests.support.packets import ICMP6, NODE4, PEER4, TCP, ethernet, ip4, ip6, tcp

pytestmark = pytest.mark.kernel
S = 1_000_000_000
#: A replay does not begin before this.
T = 1 << 41


@pytest.fixture
def plane():
    plane = replay_plane(Policy(stance=Stance.OBSERVE), flow_sets=1024)
    yield plane
    plane.close()


def test_an_index_whose_records_are_not_pinned_yet_is_waited_for(plane):
    with pins() as directory:
        version = directory / "v1"
        version.mkdir()
        libbpf.pin(plane.program.maps["flow_index"], version / "flow_index")

        early = open_live_flows(directory, 0.0)
        late = threading.Timer(0.4, libbpf.pin, (plane.program.maps["flows"], version / "flows"))
        late.start()
        began = time.monotonic()
        found = open_live_flows(directory, 10.0)
        waited = time.monotonic() - began
        late.join()

    assert isinstance(early, NoTable)
    assert early.absent, "it may still come, so the cell asks again when the program reports"
    assert isinstance(found, LiveFlows)
    assert 0.3 < waited < 5


def test_a_table_is_quiet_when_nothing_came_and_nobody_lives(plane):
    replayer = Replayer(plane)
    flows = LiveFlows(plane.program.maps["flow_index"], plane.program.maps["flows"])
    knock = ethernet(ip4(tcp(dport=80), TCP, PEER4, NODE4))

    at_first = flows.quiet()
    empty = flows.tick(T + 5 * S)
    after_an_empty_look = flows.quiet()
    replayer.feed([Frame(T + 6 * S, len(knock), knock)])
    after_a_packet = flows.quiet()
    alive = flows.tick(T + 7 * S)
    while_he_lives = flows.quiet()
    over = flows.tick(T + 6 * S + OVER_NS + 2 * S)
    when_he_has_gone = flows.quiet()
    replayer.feed([Frame(T + 60 * S, len(knock), knock)])
    when_he_is_back = flows.quiet()

    assert [len(empty.slots), len(alive.slots), len(over.slots)] == [0, 1, 0]
    assert [at_first, after_an_empty_look, after_a_packet] == [False, True, False]
    assert [while_he_lives, when_he_has_gone, when_he_is_back] == [False, True, False]


def test_neighbours_who_announce_themselves_wake_nobody(plane):
    replayer = Replayer(plane)
    flows = LiveFlows(plane.program.maps["flow_index"], plane.program.maps["flows"])
    solicitation = ethernet(ip6(b"\x87\0\0\0" + bytes(20), ICMP6, "fe80::1", "ff02::1:ff00:1"), 0x86DD)
    knock = ethernet(ip4(tcp(dport=80), TCP, PEER4, NODE4))

    replayer.feed([Frame(T + 5 * S, len(solicitation), solicitation)])
    among_neighbours = flows.spoken(T + 6 * S), len(flows.tick(T + 6 * S).slots)
    replayer.feed([Frame(T + 6 * S, len(knock), knock)])
    with_a_caller = flows.spoken(T + 7 * S), len(flows.tick(T + 7 * S).slots)

    assert among_neighbours == (False, 1)
    assert with_a_caller == (True, 2)


def test_a_flow_is_over_here_when_it_is_over_for_the_meter():
    assert OVER_NS == meter.IDLE_NS


def test_the_absence_of_a_pin_keeps_its_number():
    with pins() as directory, pytest.raises(libbpf.KernelRefused) as refused:
        libbpf.get_pinned(directory / "flows")

    assert refused.value.errno == errno.ENOENT
