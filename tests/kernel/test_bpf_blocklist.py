"""Compiled feeds inside the whole program: both families, tolerance above them, and swaps under traffic."""

import ipaddress
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.epidermis.blocklist import compile4
from actors.epidermis.blocklist6 import compile6
from actors.epidermis.prefixes import from_networks
from bpf import abi
from bpf.blocklist_image import write_image
from bpf.loader import KernelPlane
from bpf.prog_run import Runner
from bpf.program import Build
from tests.support.packets import udp4, udp6

pytestmark = pytest.mark.kernel

LISTED = ("198.51.100.0/24", "203.0.113.7/32", "192.0.2.128/25", "2001:db8:1::/48", "2001:db8:2::9/128")
HITS = ("198.51.100.200", "203.0.113.7", "192.0.2.129", "2001:db8:1:ffff::1", "2001:db8:2::9")
MISSES = ("198.51.101.1", "203.0.113.8", "192.0.2.127", "2001:db8:3::1", "2001:db8:2::a")


def write(directory: Path, name: str, *texts: str, noise: int = 0, seed: int = 1) -> tuple[Path, Path]:
    """Images of both families; noise adds so many random hosts of 11.0.0.0/8 and of 2a00::/16."""
    rng = np.random.default_rng(seed)
    networks = [ipaddress.ip_network(text) for text in texts]
    networks += [ipaddress.ip_network((0x0B000000 + int(n), 32)) for n in rng.integers(0, 1 << 24, noise)]
    networks += [ipaddress.ip_network(((0x2A00 << 112) + int(n), 128)) for n in rng.integers(0, 1 << 60, noise)]
    paths = (directory / f"{name}.4", directory / f"{name}.6")
    for family, path in zip((4, 6), paths, strict=True):
        prefixes = from_networks(family, [n for n in networks if n.version == family])
        classes = np.full(len(prefixes), 5, np.uint8)
        write_image(path, compile4(prefixes, classes) if family == 4 else compile6(prefixes, classes, rng))
    return paths


@pytest.fixture
def plane() -> Iterator[KernelPlane]:
    plane = KernelPlane(None, Build())
    yield plane
    plane.close()


def test_a_published_image_drops_what_it_lists_and_nothing_beside_it(plane: KernelPlane, tmp_path: Path) -> None:
    before = {proof.reason for proof in plane.prove(HITS + MISSES)}

    plane.publish(*write(tmp_path, "a", *LISTED, noise=5_000))
    hits, misses = plane.prove(HITS), plane.prove(MISSES)
    plane.tolerate(["203.0.113.0/24", "2001:db8:1::/48"])
    tolerated = plane.prove(HITS)
    plane.publish(*write(tmp_path, "b"))
    after = {proof.reason for proof in plane.prove(HITS + MISSES)}

    assert before == after == {"clean"}
    assert [proof.reason for proof in hits] == ["blocklist"] * 5
    assert [proof.reason for proof in misses] == ["clean"] * 5
    assert [proof.reason for proof in tolerated] == ["blocklist", "tolerated", "blocklist", "tolerated", "blocklist"]


def test_no_packet_is_judged_by_a_half_written_table(plane: KernelPlane, tmp_path: Path) -> None:
    """Two images that share some entries take turns while a second thread asks without pause."""
    images = [write(tmp_path, name, *LISTED, noise=20_000, seed=seed) for seed, name in enumerate("ab")]
    plane.publish(*images[0])
    stop = threading.Event()
    wrong: list[str] = []
    asked = 0

    def ask() -> None:
        nonlocal asked
        runner = Runner(plane.program.entries["xdp"])
        frames = [(udp6 if ":" in text else udp4)(text) for text in HITS + MISSES]
        while not stop.is_set():
            reasons = [abi.reason_name(runner.run(frame).reason) for frame in frames]
            if reasons != ["blocklist"] * 5 + ["clean"] * 5:
                wrong.append(str(reasons))
            asked += len(frames)

    thread = threading.Thread(target=ask)
    thread.start()
    for turn in range(20):
        plane.publish(*images[turn % 2])
    stop.set()
    thread.join()

    assert wrong == []
    assert asked > 1_000


def test_an_event_of_a_listed_source_names_its_feed_class(tmp_path: Path) -> None:
    plane = KernelPlane(None, Build(live=False))
    plane.publish(*write(tmp_path, "a", *LISTED))
    runner = Runner(plane.program.entries["xdp"])

    for _ in range(100):
        runner.run(udp4("203.0.113.7"))
    events = plane.events.read()
    plane.close()

    assert len(events) == 1
    assert abi.REASONS[int(events[0]["reason"])] == "blocklist"
    assert int(events[0]["detail"]) == 6  # 1 + class
