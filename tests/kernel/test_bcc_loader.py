"""The second loader: what BCC compiles from source judges as the object does, and protects as lastingly."""

import ipaddress
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.epidermis import prefixes
from actors.epidermis.blocklist import compile4
from actors.epidermis.blocklist6 import compile6
from bpf import abi, bcc_loader, choice, libbpf
from bpf.bcc_loader import BccUnusable
from bpf.blocklist_image import write_image
from bpf.dataplane import Ban, Budget, DataPlaneError, NotMade, Policy, Rung, Vaccine
from bpf.hashes import fingerprint
from bpf.loader import KernelPlane
from bpf.prog_run import Runner
from bpf.program import Build, EventPath
from bpf.replay import EPOCH_NS
from tests.kernel.test_bpf_survival import BANNED4, BANNED6, FREE4, PORT, SMALL, Wire, wire
from tests.kernel.test_bpf_verdicts import TABLE, UNLIMITED
from tests.support.bcc import bcc_plane, forget_types, needs_bcc
from tests.support.packets import UDP, ethernet, ip4, udp

__all__ = ["forget_types", "wire"]
pytestmark = [pytest.mark.kernel, needs_bcc]

ROOT = Path(__file__).resolve().parents[2]
REPLAY = Build(live=False, replay=True)
#: A node without the compiled object: open as the cell does, compile where that is needed, and protect.
NODE = """
import sys, time
from pathlib import Path
from bpf.choice import open_plane
from bpf.dataplane import Ban, NotMade
from bpf.program import Build
build = Build(max_bans=4096, source_sets=1024, flow_sets=1024, meters=1024)
try:
    plane = open_plane(Path(sys.argv[1]), build)
except NotMade as needed:
    needed.make()
    plane = open_plane(Path(sys.argv[1]), build)
plane.ban([Ban(subject) for subject in sys.argv[2:]])
print(plane.loaded.loader, plane.attach("v0").rung, plane.loaded.why, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def replayed() -> Iterator[KernelPlane]:
    plane = bcc_plane(None, REPLAY, UNLIMITED)
    plane.knobs["replay_now_ns"] = EPOCH_NS
    yield plane
    plane.close()


@pytest.mark.parametrize("kind", ["xdp", "tc"])
def test_every_frame_of_the_table_gets_the_same_verdict_and_one_counter(replayed: KernelPlane, kind: str) -> None:
    runner = Runner(replayed.program.entries[kind], kind)
    before = replayed.counters().frames

    told = {name: runner.run(frame) for name, (frame, _reason) in TABLE.items()}

    assert {name: abi.reason_name(result.reason) for name, result in told.items()} == {
        name: reason for name, (_frame, reason) in TABLE.items()
    }
    assert all(result.drop == (abi.reason_name(result.reason) in abi.DROP_REASONS) for result in told.values())
    assert replayed.counters().frames == before + len(TABLE)


def test_flows_samples_and_vaccines_are_there_too(replayed: KernelPlane) -> None:
    replayed.set_policy(UNLIMITED)
    runner = Runner(replayed.program.entries["xdp"])
    frame = ethernet(ip4(udp(b"known to be hostile", dport=PORT), UDP))

    passed = runner.run(frame).drop
    flows = replayed.flows.read()[1]
    samples = replayed.samples.read()
    replayed.vaccinate([Vaccine(17, PORT, fingerprint(b"known to be hostile"))])
    dropped = runner.run(frame)

    assert not passed
    assert PORT in {int(flow["key"]["port"][1]) for flow in flows}
    assert b"known to be hostile" in [payload for _head, payload in samples]
    assert (dropped.drop, abi.reason_name(dropped.reason)) == (True, "vaccine")


def test_tables_are_those_of_the_object_in_name_and_size(replayed: KernelPlane) -> None:
    theirs = KernelPlane(None, REPLAY)
    try:
        shapes = [
            {name: libbpf.map_info(fd)[2:5] for name, fd in plane.program.maps.items()} for plane in (theirs, replayed)
        ]
    finally:
        theirs.close()
        abi.learn(None)

    ours = {name: shape for name, shape in shapes[1].items() if name not in (abi.TYPES, "reflex_rooms")}
    shapes[0].pop("reflex_rooms")  # where a packet lies while it is judged: each program's own
    assert ours == shapes[0]


def test_listed_addresses_are_dropped_in_both_families(tmp_path: Path) -> None:
    networks4 = [ipaddress.ip_network(text) for text in ("203.0.113.0/24", "198.51.100.7")]
    listed4 = prefixes.from_networks(4, networks4)
    listed6 = prefixes.from_networks(6, [ipaddress.ip_network("2001:db8:7::/48")])
    write_image(tmp_path / "four", compile4(listed4, np.zeros(len(listed4), np.uint8)))
    write_image(tmp_path / "six", compile6(listed6, np.zeros(len(listed6), np.uint8), np.random.default_rng(7)))
    plane = bcc_plane(None, SMALL)

    plane.publish(tmp_path / "four", tmp_path / "six")
    told = plane.prove(["203.0.113.9", "198.51.100.7", "198.51.100.8", "2001:db8:7::1", "2001:db8:8::1"])
    plane.close()

    assert [proof.reason for proof in told] == ["blocklist", "blocklist", "clean", "blocklist", "clean"]


@pytest.mark.parametrize("path", [EventPath.RING, EventPath.PERF])
def test_a_source_over_its_budget_is_banned_and_told(wire: Wire, path: EventPath) -> None:
    build = replace(SMALL, event_paths=(path,), sampling=path is EventPath.RING)
    with wire.node.entered():
        plane = bcc_plane(wire.directory, build, Policy(udp=Budget(1, 30)))
        plane.attach("v0")

        wire.send(BANNED4, 50)
        readable, _, _ = select.select([plane.events.fd], [], [], 5)
        events = plane.events.read()

        assert readable
        assert [(abi.reason_name(int(event["reason"])), int(event["flags"])) for event in events][:1] == [
            ("budget_udp", abi.EVENT_BANNED)
        ]
        assert [ban.subject for ban in plane.bans()] == [BANNED4]
        assert not wire.passes(BANNED4)
        assert wire.passes(FREE4)
        plane.detach("v0")
        plane.close()


def test_without_the_object_a_node_compiles_protects_and_keeps_protecting_when_its_process_is_killed(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = os.environ | {"TEGUMENTAR_BPF_OBJECT": "/nonexistent/reflex_arc.bpf.o"}
    with wire.node.entered():
        node = subprocess.Popen(
            [sys.executable, "-c", NODE, str(wire.directory), BANNED4, BANNED6],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=absent,
        )  # fmt: skip
    try:
        assert node.stdout is not None
        said = node.stdout.readline()
        before = (wire.passes(FREE4), wire.passes(BANNED4), wire.passes(BANNED6))
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
    after = (wire.passes(FREE4), wire.passes(BANNED4), wire.passes(BANNED6))

    monkeypatch.setattr(bcc_loader, "compile_apart", lambda build: pytest.fail("it was compiled again"))
    monkeypatch.setenv("TEGUMENTAR_BPF_OBJECT", absent["TEGUMENTAR_BPF_OBJECT"])
    with wire.node.entered():
        began = time.monotonic()
        again = choice.open_plane(wire.directory, SMALL)
        took_s = time.monotonic() - began
        attachment = again.attach("v0")
        held = sorted(ban.subject for ban in again.bans())
        again.detach("v0")
        again.close()

    assert said.startswith("bcc native the compiled kernel program is not at /nonexistent")
    assert before == after == (True, False, False)
    assert (attachment.rung, attachment.adopted) == (Rung.NATIVE, True)
    assert held == [BANNED4, BANNED6]
    assert took_s < 2


def test_one_loader_takes_over_from_the_other_under_a_flood_and_not_one_packet_gets_through(wire: Wire) -> None:
    stop = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not stop.is_set():
            wire.send(BANNED4, 200)
            sent += 200

    with wire.node.entered():
        one = KernelPlane(wire.directory, SMALL)
        one.ban([Ban(BANNED4)])
        one.attach("v0")
        other = bcc_plane(wire.directory, SMALL)
        before = wire.reached()
        thread = threading.Thread(target=flood)
        thread.start()

        taken = [plane.attach("v0").adopted for _round in range(10) for plane in (other, one)]

        stop.set()
        thread.join()
        carried = [ban.subject for ban in other.bans()]
        reached = wire.reached()
        for plane in (one, other):
            plane.detach("v0")
            plane.close()
    assert taken == [True] * 20
    assert carried == [BANNED4]
    assert sent > 1_000
    assert reached == before


def test_what_leaves_is_accounted(wire: Wire) -> None:
    with wire.node.entered():
        plane = bcc_plane(wire.directory, SMALL)

        hung = plane.account_egress("v0")

        assert hung.way is not None
        assert plane.egress() == {"v0": hung.way}
        plane.detach("v0")
        plane.close()


def test_what_this_kernel_refuses_is_left_out_and_named(wire: Wire) -> None:
    with wire.node.entered():
        program = bcc_loader.open_program(replace(SMALL, refuse_maps=frozenset({"samples"})), wire.directory)

        assert list(program.refused) == ["samples"]
        assert "samples" not in program.maps
        assert program.event_path is EventPath.RING
        program.close()


def test_pins_that_are_not_whole_are_taken_for_none_and_lose_no_ban(wire: Wire) -> None:
    with wire.node.entered():
        first = KernelPlane(wire.directory, SMALL, made=(bcc_loader.open_program(SMALL, wire.directory), "a test"))
        first.ban([Ban(BANNED4), Ban("198.51.100.0/24")])
        first.attach("v0")
        first.close()
        [directory] = wire.directory.glob("v*")
        (directory / f"prog_xdp_{directory.name[1:]}").unlink()

        again = KernelPlane(wire.directory, SMALL, made=(bcc_loader.open_program(SMALL, wire.directory), "a test"))
        attachment = again.attach("v0")

        assert not again.program.adopted
        assert attachment.adopted
        assert sorted(ban.subject for ban in again.bans()) == [BANNED4, "198.51.100.0/24"]
        assert [path.name for path in wire.directory.glob("v*")] == [directory.name]
        assert not wire.passes(BANNED4)
        again.detach("v0")
        again.close()


def test_a_source_that_does_not_compile_is_told_in_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bcc_loader, "_flags", lambda build: ["-Dtg_live=no_such_name"])
    open_before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(BccUnusable, match=r"error: .*") as refused:
        bcc_loader.open_program(SMALL)

    assert len(os.listdir("/proc/self/fd")) == open_before
    assert "BCC did not bring the program into the kernel" in str(refused.value)
    assert len(str(refused.value)) < 700


def test_without_bcc_the_objects_own_trouble_is_told(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcc_loader, "DISTRIBUTION", Path("/nonexistent"))
    monkeypatch.setenv("TEGUMENTAR_BPF_OBJECT", "/nonexistent/object")

    with pytest.raises(DataPlaneError, match="the compiled kernel program is not at /nonexistent/object") as refused:
        choice.open_plane(wire.directory, SMALL)
    with pytest.raises(BccUnusable, match="BCC is not installed"):
        bcc_loader.open_program(SMALL)

    assert not isinstance(refused.value, NotMade)


def test_a_setting_chooses_and_a_missing_right_is_no_reason_to_compile(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotMade, match=r"because the setting reflex.loader wants it"):
        choice.open_plane(wire.directory, SMALL, loader="bcc")
    plane = choice.open_plane(wire.directory, SMALL, loader="auto")
    plane.close()

    def forbidden(*_arguments: object) -> KernelPlane:
        raise libbpf.KernelRefused("load", "tegumentar", 1)

    monkeypatch.setattr(choice, "KernelPlane", forbidden)
    with pytest.raises(libbpf.KernelRefused, match="CAP_BPF"):
        choice.open_plane(wire.directory, SMALL)

    assert (plane.loaded.loader, plane.loaded.why) == ("libbpf", "")
