"""Every ban is proved in the kernel; what is deleted from outside is noticed, repaired and shown in 5 s."""

import ipaddress
import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.service import Node, a_node, a_witness, knocking

pytestmark = [pytest.mark.system, pytest.mark.kernel]
LIMIT_S = 5.0
TABLE = "tegumentar_epiderme"


@pytest.fixture(scope="module")
def node():
    with a_node() as node:
        yield node


def ban(node: Node, address: str) -> None:
    assert node.cli("block", address, "--for", "10m").returncode == 0
    node.until(lambda: node.is_proven(address), 5)


def bpftool(*argv: str) -> str:
    return subprocess.run(["bpftool", *argv], capture_output=True, text=True, check=True).stdout


def bans_map(node: Node) -> Path:
    found = [path for path in node.bpf_dir.rglob("bans") if path.is_file()]
    assert found, f"no pinned map of bans below {node.bpf_dir}"
    return found[0]


def key_of(address: str) -> list[str]:
    """The ban table's key: 16 bytes of address (IPv4 mapped), then the length in bits."""
    parsed = ipaddress.ip_address(address)
    raw = parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed
    return ["hex", *(f"{byte:02x}" for byte in raw + (128).to_bytes(4, "little"))]


def in_map(node: Node, address: str) -> bool:
    done = subprocess.run(
        ["bpftool", "map", "lookup", "pinned", str(bans_map(node)), "key", *key_of(address)],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


def in_nft(node: Node, address: str) -> bool:
    listed = node.net.node.namespace.run("nft", "list", "table", "inet", TABLE).stdout
    return address in listed


def repairs(node: Node) -> str:
    """Everything the node shows about itself, as one text."""
    return json.dumps([node.ask("reflex.status"), node.ask("nft.status"), node.ask("cells")])


@pytest.mark.parametrize("address", ["10.66.1.1", "fd66:0:0:101::1"])
def test_a_ban_is_listed_as_proven_and_why_says_so_too(node, address):
    done = node.cli("block", address, "--for", "10m", "--reason", "seen at the fence")
    assert done.returncode == 0
    node.until(lambda: node.is_proven(address), 5)

    row = next(row for row in node.json("blocks")["blocks"] if row["subject"] == address)
    told = json.dumps(node.json("why", address))

    assert row["proven"] is True
    assert 590 < row["until_unix_s"] - time.time() <= 601
    assert "seen at the fence" in told
    assert "proven" in told
    assert in_map(node, address)
    assert in_nft(node, address)


@pytest.mark.parametrize("address", ["10.66.1.2", "fd66:0:0:102::1"])
def test_a_map_entry_deleted_from_outside_is_back_within_five_seconds(node, address):
    ban(node, address)
    before = repairs(node)

    bpftool("map", "delete", "pinned", str(bans_map(node)), "key", *key_of(address))
    assert not in_map(node, address)

    node.until(lambda: in_map(node, address), LIMIT_S)
    node.until(lambda: node.is_proven(address), LIMIT_S)
    assert "repair" in repairs(node)
    assert repairs(node) != before


@pytest.mark.parametrize("address", ["10.66.1.3", "fd66:0:0:103::1"])
def test_an_nft_element_deleted_from_outside_is_back_within_five_seconds(node, address):
    ban(node, address)
    name = "bans6" if ":" in address else "bans4"

    node.nft(f"delete element inet {TABLE} {name} {{ {address} }}")
    assert not in_nft(node, address)

    node.until(lambda: in_nft(node, address), LIMIT_S)
    node.until(lambda: node.is_proven(address), LIMIT_S)
    assert "repair" in repairs(node)


def test_the_whole_table_deleted_from_outside_is_back_within_five_seconds(node):
    ban(node, "10.66.1.4")

    node.nft(f"delete table inet {TABLE}")

    node.until(lambda: in_nft(node, "10.66.1.4"), LIMIT_S)


def test_a_posture_is_proved_and_its_rules_come_back_when_flushed_from_outside(node):
    assert node.cli("posture", "hardened").returncode == 0
    try:
        node.until(lambda: node.ask("posture.get")["proven"], 5)
        with a_witness(node) as witness, knocking(node, "10.66.1.5", port=8081):
            time.sleep(0.3)
            assert witness.counters()["passed"] == 0
            node.nft(f"flush table inet {TABLE}")
            time.sleep(LIMIT_S)
            before = witness.counters()["passed"]
            time.sleep(0.5)
            assert witness.counters()["passed"] == before
    finally:
        node.cli("posture", "balanced")


def test_a_released_source_passes_again(node):
    ban(node, "10.66.1.6")

    assert node.cli("release", "10.66.1.6").returncode == 0

    node.until(lambda: not in_map(node, "10.66.1.6") and not in_nft(node, "10.66.1.6"), 2)
    with a_witness(node) as witness, knocking(node, "10.66.1.6"):
        node.until(lambda: witness.counters()["passed"] > 0, 2)


def test_a_tolerated_source_is_spared_what_would_drop_it(node):
    assert node.cli("tolerate", "10.66.1.7").returncode == 0

    done = node.cli("block", "10.66.1.7")

    assert done.returncode != 0
    assert "tolerate" in done.stderr
    with a_witness(node) as witness, knocking(node, "10.66.1.7", rate=20_000, kind="syn"):
        time.sleep(0.5)
        assert witness.counters()["passed"] > 5_000, "a flood of a tolerated source passes"
    assert node.cli("tolerate", "10.66.1.7", "--remove").returncode == 0
