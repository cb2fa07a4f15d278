"""What protects lies in the kernel: it outlives its loader, is adopted, replaced and moved without one packet's gap."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bpf import abi, bpffs, libbpf
from bpf.dataplane import AllRungsRefused, Attachment, Ban, Budget, Policy, Rung, Stance
from bpf.loader import Build, KernelPlane
from bpf.stats import StatsReader
from tests.support.netns import Namespace, pins, veth
from tests.support.packets import UDP, ethernet, ip4, ip6, tcp, udp

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]
BANNED4, BANNED6, FREE4 = "10.9.0.66", "fd09::66", "10.9.0.1"
NODE4, NODE6 = "10.9.0.2", "fd09::2"
PORT = 5_555
#: As little memory as the tables allow: several versions stand beside each other here.
SMALL = Build(max_bans=4_096, source_sets=1_024, flow_sets=1_024, meters=1_024)

LOADER = """
import sys, time
from pathlib import Path
from bpf.dataplane import Ban
from bpf.loader import KernelPlane
from bpf.program import Build
plane = KernelPlane(Path(sys.argv[1]), Build(max_bans=4096, source_sets=1024, flow_sets=1024, meters=1024))
plane.ban([Ban(subject) for subject in sys.argv[2:]])
plane.tolerate(["192.0.2.0/24"])
print(plane.attach("v0").rung, flush=True)
time.sleep(60)
"""


@dataclass
class Wire:
    """An attacker and a node on one veth pair; ``directory`` is the node's own place on the BPF file system."""

    attacker: Namespace
    node: Namespace
    directory: Path

    def send(self, source: str, count: int = 20, payload: bytes = b"x") -> None:
        """Frames of any source, straight onto the wire."""
        if ":" in source:
            frame = ethernet(ip6(udp(payload, dport=PORT), UDP, source, NODE6), 0x86DD)
        else:
            frame = ethernet(ip4(udp(payload, dport=PORT), UDP, source, NODE4))
        self.put(frame, count)

    def put(self, frame: bytes, count: int = 1) -> None:
        frame = bytes.fromhex(self.node.mac("v0").replace(":", "")) + frame[6:]
        with self.attacker.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("v0", 0))
            for _ in range(count):
                out.send(frame)

    def reached(self) -> int:
        """IP packets that ever came up to the node's stack, both families."""
        with self.node.entered():
            rows = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            names, values = (row.split() for row in rows if row.startswith("Ip:"))
            rows6 = dict(row.split() for row in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
            return int(values[names.index("InReceives")]) + int(rows6["Ip6InReceives"])

    def passes(self, source: str) -> bool:
        """Does a packet of this source reach the stack?"""
        before = self.reached()
        self.send(source)
        deadline = time.monotonic() + 0.2  # the wire is a function call: what has not come by then was dropped
        while self.reached() < before + 20 and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.reached() >= before + 20


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Namespace("sa") as attacker, Namespace("sn") as node, pins() as directory:
        attacker.sysctl(ipv6__conf__default__disable_ipv6=1)  # nothing but what a test sends shall arrive
        veth(attacker, node)
        yield Wire(attacker, node, directory)


@contextmanager
def open_in(wire: Wire, build: Build = SMALL, policy: Policy | None = None) -> Iterator[KernelPlane]:
    with wire.node.entered():
        plane = KernelPlane(wire.directory, build, policy)
        try:
            yield plane
        finally:
            plane.close()


@contextmanager
def loader_process(wire: Wire, *bans: str) -> Iterator[subprocess.Popen[str]]:
    with wire.node.entered():
        process = subprocess.Popen(
            [sys.executable, "-c", LOADER, str(wire.directory), *bans], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "native"
        yield process
    finally:
        process.kill()
        process.wait()


def test_bans_hold_and_counters_stay_true_after_the_loader_is_killed(wire: Wire) -> None:
    with loader_process(wire, BANNED4, BANNED6) as process:
        before = (wire.passes(FREE4), wire.passes(BANNED4), wire.passes(BANNED6))

        process.send_signal(signal.SIGKILL)
        process.wait()

    after = (wire.passes(FREE4), wire.passes(BANNED4), wire.passes(BANNED6))
    (version,) = wire.directory.glob("v*")
    counters = StatsReader(version / "stats").read()
    wire.send(BANNED4, 7)
    assert before == after == (True, False, False)
    assert counters.did_packets["ban"] == 80
    assert StatsReader(version / "stats").read().did_packets["ban"] == 87


def test_a_second_start_adopts_link_tables_and_program(wire: Wire) -> None:
    with loader_process(wire, BANNED4, "2001:db8:5::/48", "2001:db8:6:7::/64"):
        pass

    with open_in(wire) as plane:
        attachment = plane.attach("v0")

        assert plane.program.adopted
        assert (attachment.rung, attachment.adopted) == (Rung.NATIVE, True)
        assert sorted(ban.subject for ban in plane.bans()) == ["10.9.0.66", "2001:db8:5::/48", "2001:db8:6:7::/64"]
        assert plane.tolerated() == ["192.0.2.0/24"]
        assert [proof.drop for proof in plane.prove([BANNED4, "2001:db8:5:1::1", "2001:db8:6:7::1", FREE4])] == [
            True, True, True, False,
        ]  # fmt: skip
        assert not wire.passes(BANNED4)


def test_a_ban_whose_filter_was_never_written_is_healed_at_the_next_start(wire: Wire) -> None:
    """A death between storing a ban and marking it in the filter leaves a ban that drops nothing."""
    with open_in(wire) as plane:
        plane.ban([Ban(BANNED4), Ban("198.51.100.0/24")])
        plane._bans._filters[:] = 0
        plane._bans._prefix_filter[:] = 0
        crippled = [proof.drop for proof in plane.prove([BANNED4, "198.51.100.1"])]

    with open_in(wire) as plane:
        healed = [proof.drop for proof in plane.prove([BANNED4, "198.51.100.1"])]

    assert crippled == [False, False]
    assert healed == [True, True]


def test_the_program_is_replaced_under_a_flood_and_not_one_packet_gets_through(wire: Wire) -> None:
    stop = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not stop.is_set():
            wire.send(BANNED4, 200)
            wire.send(BANNED6, 200)
            sent += 400

    with open_in(wire) as old, open_in(wire, replace(SMALL, sampling=False)) as new:
        old.ban([Ban(BANNED4), Ban(BANNED6)])
        old.attach("v0")
        before = wire.reached()
        thread = threading.Thread(target=flood)
        thread.start()

        replaced = 0
        for _round in range(20):
            for plane in (new, old):
                attachment = plane.attach("v0")
                assert attachment.adopted
                replaced += 1

        stop.set()
        thread.join()
        assert replaced == 40
        assert sent > 2_000
        assert wire.reached() == before
        assert old.counters().did_packets["ban"] == sent


def test_a_change_between_the_two_xdp_modes_lets_nothing_through(wire: Wire) -> None:
    stop = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not stop.is_set():
            wire.send(BANNED4, 200)
            sent += 200

    with open_in(wire) as plane:
        plane.ban([Ban(BANNED4)])
        plane.attach("v0", [Rung.NATIVE])
        before = wire.reached()
        thread = threading.Thread(target=flood)
        thread.start()

        rungs = [plane.attach("v0", [rung]).rung for _round in range(5) for rung in (Rung.GENERIC, Rung.NATIVE)]
        plane.attach("v0", [Rung.GENERIC])
        climbed = plane.attach("v0", climb=True)

        stop.set()
        thread.join()
        assert rungs == [Rung.GENERIC, Rung.NATIVE] * 5
        assert climbed.rung is Rung.NATIVE
        assert sent > 1_000
        assert wire.reached() == before


def test_another_version_of_the_program_takes_over_and_old_pins_go(wire: Wire) -> None:
    with open_in(wire) as old:
        old.attach("v0")
        old_pins = {path.name for path in wire.directory.glob("v*/prog_*")}

    with open_in(wire, replace(SMALL, sampling=False)) as new:
        loaded = not new.program.adopted
        attachment = new.attach("v0")

    new_pins = {path.name for path in wire.directory.glob("v*/prog_*")}
    assert loaded
    assert attachment.adopted
    assert len(old_pins) == len(new_pins) == 4
    assert not old_pins & new_pins


def test_tables_of_another_shape_hand_over_bans_tolerance_policy_and_link(wire: Wire) -> None:
    until = time.monotonic_ns() + 10**12
    policy = Policy(stance=Stance.HARDENED, syn=Budget(77, 88))
    with open_in(wire, policy=policy) as old:
        old.ban([Ban(BANNED4, until, "budget_udp"), Ban(BANNED6), Ban("198.51.100.0/24")])
        old.tolerate(["192.0.2.0/24"])
        old.attach("v0")
        expected = sorted(old.bans(), key=str)

    with open_in(wire, replace(SMALL, max_bans=8_192)) as new:
        before = (wire.passes(BANNED4), wire.passes(BANNED6))
        attachment = new.attach("v0")
        after = (wire.passes(BANNED4), wire.passes(BANNED6), wire.passes(FREE4))

        assert before == (False, False)
        assert attachment.adopted
        assert after == (False, False, True)
        assert [replace(b, packets=0) for b in sorted(new.bans(), key=str)] == expected
        assert new.tolerated() == ["192.0.2.0/24"]
        assert [proof.drop for proof in new.prove(["198.51.100.9", "198.51.101.9"])] == [True, False]
        assert new.knobs["posture"] == 2
        assert int(new.knobs.page["budget"]["burst"][0, 0]) == 88_000
        assert len(list(wire.directory.glob("v*"))) == 1


def test_pins_that_were_removed_from_outside_come_back_and_are_adopted(wire: Wire) -> None:
    with open_in(wire) as plane:
        plane.ban([Ban(BANNED4)])
        plane.attach("v0")
        pins = sorted(path.name for path in wire.directory.glob("v*/*"))
        for directory in wire.directory.glob("v*"):
            bpffs.remove_directory(directory)

        assert plane.keep_pins() == len(pins)
        assert plane.keep_pins() == 0
        assert sorted(path.name for path in wire.directory.glob("v*/*")) == pins

    with open_in(wire) as again:
        assert again.program.adopted
        assert [ban.subject for ban in again.bans()] == [BANNED4]


def test_strange_objects_among_the_pins_are_no_error(wire: Wire) -> None:
    with open_in(wire) as old:
        old.ban([Ban(BANNED4)])
        old.attach("v0")
    [directory] = wire.directory.glob("v*")
    strange = libbpf.create_array("strange", 8, 1)
    try:
        libbpf.pin(strange, wire.directory / "links" / "other_v0")
        for path in [directory / "tolerance", *directory.glob("prog_*")]:
            path.unlink()
        libbpf.pin(strange, directory / "tolerance")
    finally:
        os.close(strange)

    with open_in(wire) as new:
        attachment = new.attach("v0")

        assert [ban.subject for ban in new.bans()] == [BANNED4]
        assert attachment.adopted
        assert [found.interface for found in new.attachments()] == ["v0"]
        assert len(list(wire.directory.glob("v*"))) == 1
        assert not wire.passes(BANNED4)


def test_a_device_that_went_and_came_back_is_attached_again(wire: Wire) -> None:
    with open_in(wire) as plane:
        plane.ban([Ban(BANNED4)])
        first = plane.attach("v0")
        wire.node.ip("link del v0")
        severed = plane.attachments()
        veth(wire.attacker, wire.node)

        second = plane.attach("v0")

        assert not first.adopted
        assert severed == []
        assert not second.adopted
        with wire.node.entered():
            assert second.ifindex == socket.if_nametoindex("v0")
        assert [a.interface for a in plane.attachments()] == ["v0"]


@pytest.mark.parametrize("rung", list(Rung))
def test_each_rung_drops_a_banned_source_and_passes_another(wire: Wire, rung: Rung) -> None:
    with open_in(wire) as plane:
        plane.ban([Ban(BANNED4), Ban(BANNED6)])
        before = (wire.passes(BANNED4), wire.passes(BANNED6))

        plane.attach("v0", [rung])
        during = (wire.passes(BANNED4), wire.passes(BANNED6), wire.passes(FREE4))
        plane.detach("v0")

        assert before == (True, True)
        assert during == (False, False, True)
        assert wire.passes(BANNED4)


@pytest.mark.parametrize("rung", list(Rung))
def test_an_innocent_connection_carries_its_data_whole_at_each_rung(wire: Wire, rung: Rung) -> None:
    """Offloads make frames that no table of hand-made packets holds: large ones, without checksums."""
    wire.attacker.ip("addr add 10.9.0.1/24 dev v0")
    wire.node.ip("addr add 10.9.0.2/24 dev v0")
    payload = os.urandom(4_000_000)
    received = bytearray()

    with open_in(wire) as plane:
        plane.attach("v0", [rung])
        with wire.node.entered(), socket.create_server((NODE4, 0)) as server:
            server.settimeout(10)

            def serve() -> None:
                connection, _peer = server.accept()
                with connection:
                    connection.settimeout(10)
                    while chunk := connection.recv(1 << 16):
                        received.extend(chunk)
                    connection.sendall(b"thank you")

            thread = threading.Thread(target=serve)
            thread.start()
            with wire.attacker.entered():
                client = socket.create_connection((NODE4, server.getsockname()[1]), timeout=10)
            with client:
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(100)
            thread.join()
        dropped = {k: v for k, v in plane.counters().did_packets.items() if v and k in abi.DROP_REASONS}
        (flow,) = [f for f in plane.flows.read()[1] if int(f["key"]["proto"]) == 6]

    assert bytes(received) == payload
    assert answer == b"thank you"
    assert dropped == {}
    assert int(flow["side"]["payload_bytes"][0]) >= len(payload)


def test_a_taken_hook_leads_to_the_next_rung_with_the_reason_in_words(wire: Wire) -> None:
    with wire.node.entered():
        other = KernelPlane(None, SMALL)
        other.attach("v0", [Rung.NATIVE])

    with open_in(wire) as plane:
        fallen = plane.attach("v0")
        other.detach("v0")
        other.close()
        climbed = plane.attach("v0", climb=True)

        assert fallen.rung is Rung.TCX
        assert "another XDP program holds the interface" in fallen.refused["native"]
        assert climbed.rung is Rung.NATIVE
        assert [a.rung for a in plane.attachments()] == [Rung.NATIVE]


def test_a_large_mtu_refuses_the_native_rung_in_words(wire: Wire) -> None:
    wire.attacker.ip("link set v0 mtu 9000")
    wire.node.ip("link set v0 mtu 9000")

    with open_in(wire) as plane, pytest.raises(AllRungsRefused, match="MTU is too large") as refusal:
        plane.attach("v0", [Rung.NATIVE])

    assert "ERANGE" in refusal.value.refused["native"]


def test_loopback_is_never_attached(wire: Wire) -> None:
    with open_in(wire) as plane, pytest.raises(AllRungsRefused, match="proofs come from"):
        plane.attach("lo")


@pytest.mark.parametrize(
    ("refused", "path"),
    [(frozenset(), "RING"), (frozenset({"events"}), "PERF"), (frozenset({"events", "events_perf"}), "POLL")],
)
def test_where_a_map_type_is_refused_the_next_way_up_is_taken(wire: Wire, refused: frozenset[str], path: str) -> None:
    with open_in(wire, replace(SMALL, refuse_maps=refused)) as plane:
        plane.attach("v0")
        wire.passes(FREE4)
        null = ethernet(ip4(tcp(0), source=FREE4, dest=NODE4))
        wire.put(null)
        deadline = time.monotonic() + 2
        events = plane.events.read()
        while not len(events) and path != "POLL" and time.monotonic() < deadline:
            time.sleep(0.01)
            events = plane.events.read()

        assert plane.program.event_path.name == path
        assert list(plane.program.refused) == ["ring", "perf"][: len(refused)]
        assert len(events) == (0 if path == "POLL" else 1)
        assert plane.counters().did_packets["tcp_null"] == 1


def test_where_the_ring_of_samples_is_refused_everything_else_goes_on(wire: Wire) -> None:
    with open_in(wire, replace(SMALL, refuse_maps=frozenset({"samples"}))) as plane:
        plane.ban([Ban(BANNED4)])
        plane.attach("v0")

        assert list(plane.program.refused) == ["samples"]
        assert plane.program.event_path.name == "RING"
        assert (wire.passes(BANNED4), wire.passes(FREE4)) == (False, True)
        assert plane.samples.read() == []


def test_a_program_without_the_right_to_load_says_which_right(wire: Wire) -> None:
    code = (
        "import os, sys; os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from bpf.loader import KernelPlane\n"
        "try: KernelPlane(None)\n"
        "except Exception as error: print(type(error).__name__, error.errno, error)\n"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout

    assert said.startswith(f"KernelRefused {errno.EPERM}")
    assert "CAP_BPF" in said


def test_counters_can_be_read_after_all_privileges_are_gone(wire: Wire) -> None:
    with open_in(wire) as plane:
        plane.attach("v0")
        wire.passes(FREE4)
    (version,) = wire.directory.glob("v*")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom bpf.stats import StatsReader\n"
        "reader = StatsReader(Path(sys.argv[1]))\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "print(reader.read().did_packets['clean'])\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", code, str(version / "stats")], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout

    assert int(said) >= 20


def test_the_link_of_a_severed_device_answers_enolink(wire: Wire) -> None:
    with wire.node.entered():
        plane = KernelPlane(None, SMALL)
        link = libbpf.link_create(plane.program.entries["xdp"], socket.if_nametoindex("v0"), libbpf.ATTACH_XDP, 4)
        wire.node.ip("link del v0")

        with pytest.raises(libbpf.KernelRefused, match="device of this link is gone") as refusal:
            libbpf.link_replace(link, plane.program.entries["xdp"])

        assert refusal.value.errno == errno.ENOLINK
        os.close(link)
        plane.close()
        veth(wire.attacker, wire.node)


def test_an_attachment_shows_where_it_hangs(wire: Wire) -> None:
    with open_in(wire) as plane:
        plane.attach("v0")
        with wire.node.entered():
            index = socket.if_nametoindex("v0")

        assert plane.attachments() == [Attachment("v0", index, Rung.NATIVE, adopted=True)]
