"""One name for a conversation, as other tools write it: published reference values, both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dermis.community_id import community_id

#: protocol, source, port (ICMP: type), destination, port (ICMP: code), name; from the specification's reference data.
KNOWN = [
    (6, "128.232.110.120", 34855, "66.35.250.204", 80, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (6, "2001:470:e5bf:dead:4957:2174:e82c:4887", 63943, "2607:f8b0:400c:c03::1a", 25,
     "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4="),
    (17, "192.168.1.52", 54585, "8.8.8.8", 53, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    (132, "192.168.170.8", 7, "192.168.170.56", 7, "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
    (46, "10.1.12.1", 0, "10.1.12.2", 0, "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw="),
    (1, "192.168.0.89", 8, "192.168.0.1", 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (58, "3ffe:507:0:1:200:86ff:fe05:80da", 128, "3ffe:501:0:1001::2", 0, "1:+TW+HtLHvV1xnGhV1lv7XoJrqQg="),
    (58, "fe80::200:86ff:fe05:80da", 135, "fe80::260:97ff:fe07:69ea", 0, "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="),
]  # fmt: skip
ONE_WAY = [
    (1, "10.0.0.1", 11, "10.0.0.2", 0, "1:YHxtAirCG//0OzkcVAukqKQN9xM="),
    (58, "3ffe:501:1800:2345::2", 3, "3ffe:507:0:1:200:86ff:fe05:80da", 0, "1:2ObVBgIn28oZvibYZhZMBgh7WdQ="),
    (58, "3ffe:501:410:0:2c0:dfff:fe47:33e", 1, "3ffe:507:0:1:200:86ff:fe05:80da", 4, "1:hLZd0XGWojozrvxqE0dWB1iM6R0="),
]  # fmt: skip


@pytest.mark.parametrize(("proto", "source", "source_port", "dest", "dest_port", "name"), KNOWN + ONE_WAY)
def test_the_name_is_the_published_one(proto, source, source_port, dest, dest_port, name):
    assert community_id(proto, source, source_port, dest, dest_port) == name


def test_the_answer_to_a_ping_belongs_to_the_same_conversation():
    there = community_id(1, "192.168.0.89", 8, "192.168.0.1", 0)

    assert community_id(1, "192.168.0.1", 0, "192.168.0.89", 0) == there


addresses = st.ip_addresses(v=4).map(str)
ports = st.integers(0, 65535)


@given(st.sampled_from([6, 17, 132]), addresses, ports, addresses, ports)
def test_both_directions_have_one_name(proto, left, left_port, right, right_port):
    assert community_id(proto, left, left_port, right, right_port) == community_id(
        proto, right, right_port, left, left_port
    )


def test_another_seed_is_another_name():
    assert community_id(6, "10.0.0.1", 1, "10.0.0.2", 2, seed=1) != community_id(6, "10.0.0.1", 1, "10.0.0.2", 2)
