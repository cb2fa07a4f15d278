"""What the node must never block, read from the kernel of a namespace made for it."""

import ipaddress
from pathlib import Path

import pytest

from actors.epidermis import own_networks
from actors.epidermis.feed_health import OwnNetworks
from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel


def test_addresses_networks_gateways_and_resolvers_are_found(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "search example.net\nnameserver 198.51.100.53\nnameserver fe80::1%v0\nnonsense\n"
    )
    with Namespace("feeds") as space:
        space.ip(
            "link add v0 type veth peer name v1",
            "link set v1 up",
            "link set v0 up",
            "addr add 203.0.113.10/28 dev v0",
            "addr add 2001:db8:5::10/64 dev v0",
            "route add default via 203.0.113.1",
            "route add 198.51.100.0/24 via 203.0.113.5",
        )
        with space.entered():
            found = own_networks.read(tmp_path / "resolv.conf")

    texts = {str(host) for host in found.hosts}
    assert {"203.0.113.10", "2001:db8:5::10", "203.0.113.1", "198.51.100.53", "fe80::1", "127.0.0.1"} <= texts
    assert "203.0.113.5" not in texts, "who routes for one network only may be an attacker"
    assert ipaddress.ip_network("203.0.113.0/28") in found.networks
    assert ipaddress.ip_network("2001:db8:5::/64") in found.networks


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    with Namespace("feeds") as space, space.entered():
        found = own_networks.read(tmp_path / "absent")

    assert isinstance(found, OwnNetworks)
    assert all(host.is_loopback for host in found.hosts)
