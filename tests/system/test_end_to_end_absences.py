"""What is absent turns one cell off or degraded, with a reason; the node starts all the same and does the rest."""

import json
import os
import shutil
import time

import pytest

from tests.support.service import NOBODY, Node, a_node, a_witness, as_user, knocking

pytestmark = [pytest.mark.system, pytest.mark.kernel]
STRANGER = "10.66.0.66"


def drops_the_banned(node: Node, address: str = STRANGER) -> None:
    """A ban by hand takes effect and is proven, on whatever rung this node stands."""
    assert node.cli("block", address, "--for", "5m").returncode == 0
    node.until(lambda: node.is_proven(address), 5)
    with a_witness(node) as witness, knocking(node, address):
        time.sleep(0.4)
        assert witness.counters()["passed"] == 0


def cell(node: Node, name: str) -> dict:
    """The row of a cell that has left ``starting``."""
    node.until(lambda: node.cells()[name]["state"] != "starting", 10)
    return node.cells()[name]


def test_without_redis_kafka_and_postgresql_nothing_is_even_degraded():
    with a_node() as node:
        node.until(lambda: all(row["state"] in ("healthy", "off") for row in node.cells().values()), 5)
        assert node.ask("node")["ready"]
        assert all(row["reason"] for row in node.cells().values() if row["state"] == "off")


def test_where_native_xdp_is_refused_a_lower_rung_protects_and_says_why():
    def giant_frames(net) -> None:
        net.wire.ip("link set p-node mtu 9000")
        net.node.namespace.ip("link set skin0 mtu 9000")

    with a_node(prepare=giant_frames) as node:
        status = json.dumps(node.ask("reflex.status"))
        assert "native" in status
        assert any(rung in status for rung in ('"tcx"', '"generic"'))
        drops_the_banned(node)


def test_where_the_kernel_allows_no_program_at_all_nftables_protects_and_the_reason_is_said():
    with a_node(start=False) as node:
        node.launch("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin")
        node.service.wait_ready(time.monotonic() + 20)

        row = cell(node, "reflex_arc")
        assert row["state"] in ("degraded", "off")
        assert "CAP_BPF" in row["reason"] + row["remedy"]
        drops_the_banned(node)
        drops_the_banned(node, "fd66:0:0:66::66")


def test_an_operator_may_choose_the_nftables_rungs_alone():
    rungs = {"TEGUMENTAR_REFLEX__RUNGS": '["nft_ingress", "nft_prerouting", "observe"]'}
    with a_node(rungs) as node:
        node.until(lambda: node.ask("reflex.status")["rung"] == "nft_ingress", 5)
        drops_the_banned(node)


def test_on_an_interface_that_vanished_the_node_still_starts_and_says_so():
    with a_node({"TEGUMENTAR_INTERFACES": "gone0"}) as node:
        row = cell(node, "reflex_arc")
        assert row["state"] in ("degraded", "off")
        assert "gone0" in row["reason"] + row["remedy"]


def test_without_the_nft_command_the_kernel_program_protects_and_says_what_is_missing(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ip", "tc", "env", "sh", "mount"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    with a_node() as node:
        node.service.stop()
        node.nft("flush ruleset")
        node.launch("env", f"PATH={tools}")
        node.service.wait_ready(time.monotonic() + 20)

        row = cell(node, "keratinocyte")
        assert row["state"] in ("degraded", "off")
        assert "nft" in row["reason"] + row["remedy"]
        assert node.cli("block", STRANGER, "--for", "5m").returncode == 0
        node.until(lambda: STRANGER in node.blocks(), 3)
        with a_witness(node) as witness, knocking(node, STRANGER):
            time.sleep(0.5)
            before = witness.counters()["passed"]
            time.sleep(0.5)
            assert witness.counters()["passed"] == before


def test_without_root_it_starts_observing_and_says_which_capability_is_missing():
    with a_node(start=False) as node:
        for name in ("state", "run", "log"):
            (node.directory / name).mkdir()
            os.chown(node.directory / name, 65534, 65534)
        node.launch(*as_user(NOBODY))

        def told() -> dict[str, dict]:
            done = node.cli("cells", "--json", uid=NOBODY)
            return {row["name"]: row for row in json.loads(done.stdout)["cells"]} if done.returncode == 0 else {}

        node.until(lambda: told() and all(row["state"] != "starting" for row in told().values()), 15, step_s=0.3)
        cells = told()
        for name in ("reflex_arc", "keratinocyte"):
            said = cells[name]["reason"] + cells[name]["remedy"]
            assert cells[name]["state"] in ("degraded", "off")
            assert "CAP_" in said or "root" in said
        assert cells["memory_cell"]["state"] == "healthy"
        assert cells["merkel"]["state"] in ("healthy", "degraded")
        assert "CAP_NET_ADMIN" in node.service.log.read_text()
        assert node.net.node.namespace.run("nft", "list", "tables").stdout.strip() == ""


def test_a_cell_that_shall_not_run_is_off_and_the_rest_is_whole():
    with a_node({"TEGUMENTAR_SUPERVISOR__OFF": '["gateway"]'}) as node:
        assert node.cells()["gateway"]["state"] == "off"
        assert node.ask("node")["ready"]
