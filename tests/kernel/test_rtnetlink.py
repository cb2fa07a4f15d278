"""Addresses and routes as we read them equal those that a general netlink library reads in the same namespace."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core import rtnetlink
from actors.core.netlink import attribute
from actors.epidermis.interfaces import protected_interfaces
from tests.support.netns import Namespace


@pytest.fixture(scope="module")
def space():
    with Namespace("rtnl") as made:
        made.ip(
            "link add a0 type veth peer name a1",
            "link add b0 type veth peer name b1",
            *(f"link set {name} up" for name in ("a0", "a1", "b0", "b1")),
            "addr add 192.0.2.10/24 broadcast + dev a0",
            "addr add 198.51.100.10/25 dev b0",
            "addr add 203.0.113.1 peer 203.0.113.2/32 dev b0",
            "addr add 2001:db8::10/64 dev a0 nodad",
            "route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1",
            "route add 10.1.0.0/16 via 192.0.2.7 table 1000",
            "route add 10.2.0.0/16 via inet6 2001:db8::7 dev a0",
            "route add default via 2001:db8::1 dev a0",
            "route add 2001:db8:1::/48 nexthop via 2001:db8::2 dev a0 nexthop via 2001:db8::3 dev a0",
            "nexthop add id 7 via 192.0.2.9 dev a0",
            "route add 10.3.0.0/16 nhid 7",
            "route add blackhole 10.4.0.0/16",
        )
        yield made


@pytest.mark.kernel
def test_addresses_are_those_that_the_library_finds(space):
    from pyroute2 import IPRoute

    with space.entered():
        ours = {(str(own.address), own.length, own.broadcast and str(own.broadcast)) for own in rtnetlink.addresses()}
        with IPRoute() as library:
            theirs = {
                (
                    entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"),
                    entry["prefixlen"],
                    entry.get_attr("IFA_BROADCAST"),
                )
                for entry in library.get_addr()
            }

    assert ours == theirs
    assert {("192.0.2.10", 24, "192.0.2.255"), ("203.0.113.1", 32, None), ("2001:db8::10", 64, None)} <= ours


@pytest.mark.kernel
def test_routes_are_those_that_the_library_finds(space):
    from pyroute2 import IPRoute

    with space.entered():
        ours = {
            (route.family, route.table, route.length, frozenset(map(str, route.gateways)), frozenset(route.interfaces))
            for route in rtnetlink.routes()
        }
        with IPRoute() as library:
            theirs = {_as_ours(route) for route in library.get_routes()}

    assert ours == theirs
    gateways = {gateway for *_, found, _ in ours for gateway in found}
    assert {"192.0.2.1", "198.51.100.1", "192.0.2.7", "2001:db8::7", "2001:db8::3", "192.0.2.9"} <= gateways


def _as_ours(route):
    hops = route.get_attr("RTA_MULTIPATH") or []
    gateways = [hop.get_attr("RTA_GATEWAY") or (hop.get_attr("RTA_VIA") or {}).get("addr") for hop in (route, *hops)]
    interfaces = [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]
    return (
        route["family"],
        route.get_attr("RTA_TABLE") or route["table"],
        route["dst_len"],
        frozenset(filter(None, gateways)),
        frozenset(filter(None, interfaces)),
    )


@pytest.mark.kernel
def test_the_interfaces_of_every_default_route_face_the_outside(space):
    with space.entered():
        assert set(protected_interfaces(())) == {"a0", "b0"}


@given(st.binary(max_size=200))
def test_any_bytes_make_an_address_a_route_or_nothing(body):
    own, route = rtnetlink.read_address(body), rtnetlink.read_route(body)

    assert own is None or own.length <= own.address.max_prefixlen
    assert route is None or all(index > 0 for index in route.interfaces)


@given(st.binary(min_size=4, max_size=120), st.sampled_from([4, 5, 9, 15, 18]))
def test_any_attribute_of_a_route_is_read_or_passed_over(value, kind):
    body = bytes([socket.AF_INET, *bytes(11)]) + attribute(kind, value)

    assert rtnetlink.read_route(body) is not None
