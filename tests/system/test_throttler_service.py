"""The throttler in the real service, beside a Redis that is killed and comes back."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors.hypodermis.redis_bucket import RedisBuckets
from tests.support.redis import RedisServer, redis_server
from tests.support.service import Node, a_node, knocking

pytestmark = pytest.mark.system

HEAVY = "10.66.7.7"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(scope="module")
def node(server: RedisServer) -> Iterator[Node]:
    settings = {
        "TEGUMENTAR_REDIS__URL": server.url,
        "TEGUMENTAR_THROTTLER__SHAPE_EGRESS_MBIT": "500",
        "TEGUMENTAR_REFLEX__UDP_RATE": "5000",
        "TEGUMENTAR_REFLEX__UDP_BURST": "10000",
        "TEGUMENTAR_THROTTLER__ADAPT": "false",  # the machine that tests is strained all the time
    }
    with a_node(settings, echo=False) as made:
        made.until(lambda: made.cells()["throttler"]["state"] == "healthy", 15)
        yield made


def ask(node: Node, **form: Any) -> tuple[int, dict[str, Any]]:
    """One question over HTTP by a program of the node."""
    done = node.net.node.namespace.run(
        "curl", "-s", "-m", "10", "-w", "\n%{http_code}", "-H", "Content-Type: application/json",
        "-d", json.dumps(form), "http://127.0.0.1:8085/api/tegumentar/ratelimit",
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_it_keeps_one_privilege_and_its_queue_stands(node: Node) -> None:
    pid = node.cells()["throttler"]["pid"]
    with open(f"/proc/{pid}/status") as status:
        [effective] = [line.split()[1] for line in status if line.startswith("CapEff")]

    shaped = node.net.node.namespace.run("tc", "qdisc", "show", "dev", node.net.node.interface).stdout

    assert int(effective, 16) == 1 << 12  # CAP_NET_ADMIN
    assert "tbf 7e6: root" in shaped
    assert node.ask("throttle.status")["shaper"]["bits_per_s"] == {node.net.node.interface: 500_000_000}


def test_a_source_that_spreads_over_nodes_meets_one_budget_in_the_kernel(node: Node, server: RedisServer) -> None:
    elsewhere = RedisBuckets(server.url, "another node")
    with knocking(node, HEAVY, rate=500, kind="udp"):
        node.until(lambda: node.ask("throttle.status")["heavy_sources"] > 0, 10)
        time.sleep(1.5)
        before = node.ask("reflex.status")["counters"]["packets"].get("budget_udp", 0)

        def banned() -> bool:
            elsewhere.spend({f"udp {HEAVY}": 20_000})
            time.sleep(0.5)
            return node.ask("reflex.status")["counters"]["packets"].get("budget_udp", 0) > 0

        node.until(banned, 15)

    assert before == 0
    assert node.ask("throttle.status")["charged"] > 0
    assert node.ask("reflex.explain", address=HEAVY)["drop"]


def test_redis_killed_in_the_middle_stops_no_decision_and_its_return_is_noticed(
    node: Node, server: RedisServer
) -> None:
    together = ask(node, key="a", limit=5, per="1h")
    server.kill()
    node.until(lambda: node.cells()["throttler"]["state"] == "degraded", 10)
    reason = node.cells()["throttler"]["reason"]
    alone = [ask(node, key="b", limit=5, per="1h") for _ in range(7)]
    others = {name: cell["state"] for name, cell in node.cells().items() if name != "throttler"}
    server.start()
    node.until(lambda: node.cells()["throttler"]["state"] == "healthy", 15)
    node.until(lambda: ask(node, key=f"c{time.monotonic()}", limit=5, per="1h")[1]["shared"], 10, step_s=0.2)

    assert together == (200, together[1])
    assert together[1]["shared"]
    assert "on this node alone" in reason
    assert {status for status, _ in alone} <= {200, 429}
    assert 1 <= sum(status == 200 for status, _ in alone) <= 5
    assert not any(body["shared"] for _, body in alone)
    assert "degraded" not in {others["permeability"], others["gateway"], others["keratinocyte"]}
    assert node.cells()["throttler"]["restarts"] == 0


def test_killed_it_comes_back_and_finds_its_queue(node: Node) -> None:
    before = node.cells()["throttler"]
    node.net.node.namespace.run("kill", "-9", str(before["pid"]))

    node.until(lambda: node.cells()["throttler"]["restarts"] == before["restarts"] + 1, 10)
    node.until(lambda: node.cells()["throttler"]["state"] == "healthy", 10)

    assert "tbf 7e6: dev" in node.net.node.namespace.run("tc", "qdisc", "show").stdout
