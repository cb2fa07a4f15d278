"""A node without the compiled kernel program: nftables protects at once, and BCC's program after some seconds."""

import pytest

from tests.support.bcc import needs_bcc
from tests.support.service import a_node, knocking

pytestmark = [pytest.mark.system, pytest.mark.kernel, needs_bcc]
BANNED = "10.66.0.9"


def test_a_node_without_the_object_is_protected_throughout_and_by_its_own_program_in_the_end() -> None:
    with a_node({"TEGUMENTAR_BPF_OBJECT": "/nonexistent/reflex_arc.bpf.o"}) as node:
        blocked = node.cli("block", BANNED)

        node.until(lambda: node.ask("reflex.status")["loader"], 90)
        status = node.ask("reflex.status")
        node.until(lambda: node.ask("reflex.explain", address=BANNED)["drop"], 10)
        with knocking(node, BANNED):
            node.until(lambda: node.ask("reflex.status")["counters"]["packets"].get("ban"), 10)
        cells = node.cells()

        assert blocked.returncode == 0
        assert status["loader"] == "bcc"
        assert "/nonexistent/reflex_arc.bpf.o" in status["loader_reason"]
        assert status["rung"] == "native"
        assert cells["reflex_arc"]["state"] == "healthy"
        assert cells["keratinocyte"]["state"] == "healthy"
