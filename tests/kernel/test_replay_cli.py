"""``run.py replay``: captures through the real program, as a person and as a program would ask for it."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.packets import PEER4, syn4, syn6, udp4
from tests.support.shared import shared_data

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.kernel
PCAP_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
START_S = 1_700_000_000


def replay(*words: str | Path, columns: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", "replay", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "COLUMNS": str(columns)},
    )  # fmt: skip


def pcap(path: Path, frames: Sequence[tuple[float, bytes]]) -> Path:
    """Frames with their seconds after START_S."""
    file = PCAP_HEAD
    for at_s, frame in frames:
        micros = round(at_s * 1e6)
        file += struct.pack("<IIII", START_S + micros // 1_000_000, micros % 1_000_000, len(frame), len(frame)) + frame
    path.write_bytes(file)
    return path


def flood(path: Path) -> Path:
    """Two quiet frames, then 900 SYNs within a second, then one that comes after the ban of a minute has ended."""
    syns = [(1 + i / 1000, syn4(sport=1024 + i)) for i in range(900)]
    return pcap(path, [(0.0, udp4()), (0.5, udp4()), *syns, (70.0, syn4(sport=9))])


def test_a_flood_is_accounted_with_its_ban_when_and_why(tmp_path: Path) -> None:
    done = replay(flood(tmp_path / "flood.pcap"), "--json")

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["frames"] == 903
    assert sum(document["passed"].values()) + sum(document["dropped"].values()) == 903
    [ban] = document["bans"]
    assert ban["subject"] == PEER4
    assert ban["reason"] == "budget_syn"
    assert 1.399 < ban["at_s"] < 1.6, "the burst of 400 and what refills meanwhile pass first"
    assert ban["at"].startswith("2023-11-14T22:13:21")
    assert ban["dropped"] == document["dropped"]["ban"]
    assert document["passed"]["clean"] + document["dropped_frames"] == 903


def test_an_ipv6_flood_bans_the_64_around_the_source(tmp_path: Path) -> None:
    capture = pcap(tmp_path / "six.pcap", [(i / 1000, syn6(sport=1024 + i)) for i in range(900)])

    document = json.loads(replay(capture, "--json").stdout)

    assert [ban["subject"] for ban in document["bans"]] == ["2001:db8:bbbb::/64"]


def test_a_hardened_posture_bans_at_half_the_burst(tmp_path: Path) -> None:
    capture = flood(tmp_path / "flood.pcap")

    balanced = json.loads(replay(capture, "--json").stdout)["bans"][0]["at_s"]
    hardened = json.loads(replay(capture, "--json", "--posture", "hardened").stdout)["bans"][0]["at_s"]

    assert hardened < balanced - 0.1


def test_people_read_reasons_and_bans_on_one_page(tmp_path: Path) -> None:
    done = replay(flood(tmp_path / "flood.pcap"))

    assert done.returncode == 0, done.stderr
    assert "903 frames" in done.stdout
    assert "budget syn" in done.stdout
    assert PEER4 in done.stdout
    assert "\x1b[" not in done.stdout


def test_an_innocent_capture_bans_nobody(tmp_path: Path) -> None:
    document = json.loads(replay(pcap(tmp_path / "quiet.pcap", [(0.0, udp4())]), "--json").stdout)

    assert document["bans"] == []
    assert document["dropped"] == {}


def test_an_empty_capture_is_no_error(tmp_path: Path) -> None:
    done = replay(pcap(tmp_path / "empty.pcap", []), "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 0


@pytest.mark.parametrize(
    "content", [b"", b"no capture at all", struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 9, 1) + b"x"]
)
def test_what_is_no_capture_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.pcap"
    broken.write_bytes(content)

    done = replay(broken, "--json")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["problem"].startswith(str(broken))


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    assert replay(tmp_path / "nowhere.pcap").returncode == 3


@pytest.mark.shared_data
def test_a_pcapng_of_the_benign_set_passes_whole() -> None:
    document = json.loads(replay(shared_data("benign", "ndpi_http.pcapng"), "--json").stdout)

    assert document["dropped"] == {}
    assert document["frames"] == 10
