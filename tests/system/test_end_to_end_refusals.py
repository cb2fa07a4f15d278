"""What would hurt the node itself, or cannot be meant, is refused with a sentence, and nothing is changed."""

import socket

import pytest

from tests.support.service import Node, a_node

pytestmark = [pytest.mark.system, pytest.mark.kernel]


def with_a_gateway(net) -> None:
    net.node.namespace.ip("route add default via 10.77.0.254", "route add default via fd77:7:0:254::254 dev skin0")


@pytest.fixture(scope="module")
def node():
    with a_node(prepare=with_a_gateway) as node:
        yield node


def sentence(text: str) -> bool:
    """Words for a person, and no traceback."""
    return len(text.split()) >= 4 and "Traceback" not in text


def state_of(node: Node) -> tuple:
    return sorted(node.blocks()), node.ask("posture.get")["posture"], str(node.ask("tolerance.list")["tolerance"])


@pytest.mark.parametrize(
    "address",
    ["10.77.0.1", "fd77:7:0:1::1", "10.77.0.0/24", "10.77.0.254", "fd77:7:0:254::254", "127.0.0.1", "::1", "0.0.0.0/0",
     "::/0", "224.0.0.1", "ff02::1", "fe80::1", "255.255.255.255", "::ffff:127.0.0.1"],
)  # fmt: skip
def test_a_ban_that_would_cut_the_node_off_is_refused_and_changes_nothing(node, address):
    before = state_of(node)

    done = node.cli("block", address)

    assert done.returncode != 0
    assert sentence(done.stderr)
    assert state_of(node) == before


@pytest.mark.parametrize("family", [4, 6])
def test_an_established_admin_session_cannot_be_banned(node, family):
    admin = node.net.innocent.address(family)
    with node.net.innocent.namespace.entered():
        session = socket.create_connection((node.net.node.address(family), 22), 2)
    with session:
        before = state_of(node)

        done = node.cli("block", admin)

        assert done.returncode != 0
        assert sentence(done.stderr)
        assert state_of(node) == before
        session.sendall(b"still here?")
        session.settimeout(2)
        assert session.recv(100) == b"still here?"


@pytest.mark.parametrize(
    "argv",
    [["block", "10.0.0"], ["block", "300.1.1.1"], ["block", "example.org"], ["block", "1.2.3.4/33"], ["block", ""],
     ["block", "1.2.3.4; flush ruleset"], ["block", "1.2.3.4\n5.6.7.8"], ["block", "fe80::1%skin0"], ["block"],
     ["block", "10.66.0.1", "--for", "yesterday"], ["block", "10.66.0.1", "--for", "-5"], ["release", "nobody"],
     ["tolerate", "10.0.0.0/99"], ["posture", "paranoid"], ["posture", "lockdown", "--for", "soon"], ["why", "x"]],
    ids=lambda argv: " ".join(argv).replace("\n", "-"),
)  # fmt: skip
def test_what_is_no_address_time_or_posture_is_refused_in_words(node, argv):
    before = state_of(node)

    done = node.cli(*argv)

    assert done.returncode != 0
    assert sentence(done.stderr)
    assert state_of(node) == before


def test_one_wrong_address_among_good_ones_changes_nothing(node):
    before = state_of(node)

    done = node.cli("block", "10.66.0.1", "10.66.0.2", "not-an-address")

    assert done.returncode != 0
    assert state_of(node) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("TEGUMENTAR_PERMEABILITY__POSTURE", "paranoid"), ("TEGUMENTAR_SUPERVISOR__HEARTBEAT_S", "-1"),
     ("TEGUMENTAR_PERMEABILITY__MANAGEMENT_PORTS", "[70000]"), ("TEGUMENTAR_LOG_LEVEL", "loud")],
)  # fmt: skip
def test_a_wrong_core_setting_stops_the_start_with_code_78_field_value_and_reason(node, name, value):
    done = node.cli(env={name: value})

    assert done.returncode == 78
    assert sentence(done.stderr)
    field = name.removeprefix("TEGUMENTAR_").lower().rsplit("__", 1)[-1]
    assert field in done.stderr
    assert node.ask("node")["ready"], "the service that runs is not disturbed"


def test_a_wrong_setting_of_an_optional_part_degrades_that_part_only():
    with a_node({"TEGUMENTAR_GATEWAY__PORT": "99999"}) as other:
        other.until(lambda: other.cells()["gateway"]["state"] in ("degraded", "off"), 10)
        assert "port" in other.cells()["gateway"]["reason"]
        assert other.ask("node")["ready"]
