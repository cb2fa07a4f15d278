"""What the host is on the net: the real reader inside a namespace of its own, and the fake beside it."""

import multiprocessing
import socket
import subprocess
import time
from pathlib import Path

import pytest

from actors.hypodermis.hostfacts import FakeHost, HostFacts, LinuxHost, _peers, _resolvers
from actors.hypodermis.subjects import parse_prefix

TCP_TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0A0200C0:0016 637100CB:C001 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0A0200C0:0050 077100CB:C002 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0A0200C0:0016 087100CB:C003 06 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
"""


def p(text):
    return parse_prefix(text)


def dual():
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def no_sock_diag(ports):
    raise OSError("no sock_diag in this kernel")


def as_in_a_node(answers, resolv_conf):
    """Runs in a process of its own: makes a namespace that nobody else sees, and reads it."""
    import ctypes

    assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
    ip("link", "set", "lo", "up")
    ip("link", "add", "skin0", "type", "veth", "peer", "name", "out0")
    ip("addr", "add", "192.0.2.10/24", "broadcast", "+", "dev", "skin0")
    ip("-6", "addr", "add", "2001:db8::10/64", "dev", "skin0", "nodad")
    ip("link", "set", "skin0", "up")
    ip("link", "set", "out0", "up")
    ip("route", "add", "default", "via", "192.0.2.1")
    ip("-6", "route", "add", "default", "via", "2001:db8::1", "dev", "skin0")
    ip("route", "add", "198.51.100.0/24", "nexthop", "via", "192.0.2.2", "nexthop", "via", "192.0.2.3")
    with socket.create_server(("127.0.0.1", 0)) as server, dual() as six:
        port, port6 = server.getsockname()[1], six.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("::1", port6)) as two:
            mapped = socket.create_connection(("127.0.0.1", port6))
            host = LinuxHost(Path(resolv_conf))
            changed = {"before the first reading": host.changed()}
            facts = host.facts()
            as_text = LinuxHost(Path(resolv_conf), ask=no_sock_diag)
            changed["after it"] = host.changed()
            for words in (
                ("addr", "add", "192.0.2.11/24", "dev", "skin0"),
                ("route", "add", "203.0.113.0/24", "via", "192.0.2.9"),
                ("-6", "addr", "add", "2001:db8::11/64", "dev", "skin0", "nodad"),
                ("-6", "route", "add", "2001:db8:9::/48", "via", "2001:db8::9", "dev", "skin0"),
                ("link", "set", "out0", "down"),
            ):
                ip(*words)
                changed[" ".join(words)] = host.changed()
                while host.changed():  # a link that goes down has more to say for a moment
                    time.sleep(0.01)
            Path(resolv_conf).write_text("nameserver 198.51.100.54\n")
            changed["other resolvers"] = host.changed()
            answers.put(
                {
                    "facts": facts,
                    "changed": changed,
                    "sessions": host.admin_sessions([port]),
                    "sessions6": host.admin_sessions([port6]),
                    "as text": (as_text.admin_sessions([port]), as_text.admin_sessions([port6])),
                    "none": host.admin_sessions([one.getsockname()[1] ^ 1]) if two else None,
                }
            )
            mapped.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    resolv_conf = tmp_path_factory.mktemp("etc") / "resolv.conf"
    resolv_conf.write_text("# resolvers\nsearch example.org\nnameserver 198.51.100.53\nnameserver fe80::1%skin0\n")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=as_in_a_node, args=(answers, str(resolv_conf)), daemon=True)
    process.start()
    found = answers.get(timeout=30)
    process.join(10)
    return found


@pytest.mark.kernel
def test_own_addresses_and_their_broadcast_are_known(node):
    addresses = set(node["facts"].addresses)

    assert {p("192.0.2.10"), p("192.0.2.255"), p("2001:db8::10"), p("127.0.0.1"), p("::1")} <= addresses


@pytest.mark.kernel
def test_a_change_of_the_facts_is_noticed_and_silence_means_that_there_is_none(node):
    quiet = [what for what, changed in node["changed"].items() if not changed]

    assert quiet == ["after it"]


@pytest.mark.kernel
def test_the_networks_on_the_link_are_known(node):
    assert {p("192.0.2.0/24"), p("2001:db8::/64")} <= set(node["facts"].networks)


@pytest.mark.kernel
def test_gateways_of_both_families_and_of_every_path_are_known(node):
    assert {p("192.0.2.1"), p("2001:db8::1"), p("192.0.2.2"), p("192.0.2.3")} <= set(node["facts"].gateways)


@pytest.mark.kernel
def test_resolvers_are_known_without_their_zone(node):
    assert set(node["facts"].resolvers) == {p("198.51.100.53"), p("fe80::1")}
    assert node["facts"].unread == ()


@pytest.mark.kernel
def test_an_established_admin_session_is_seen_in_both_families(node):
    assert node["sessions"] == {p("127.0.0.1")}
    assert node["sessions6"] == {p("::1"), p("127.0.0.1")}
    assert node["none"] == frozenset()
    assert node["as text"] == (node["sessions"], node["sessions6"]), "both ways of asking agree"


def test_the_fake_folds_as_the_real_one_does():
    host = FakeHost(HostFacts(gateways=(p("192.0.2.1"),)), {22: ["::ffff:203.0.113.99"], 80: ["203.0.113.7"]})

    assert host.admin_sessions([22]) == {p("203.0.113.99")}
    assert host.admin_sessions([23]) == frozenset()
    assert host.facts().gateways == (p("192.0.2.1"),)


def test_only_established_rows_of_wanted_ports_are_sessions():
    assert _peers(TCP_TABLE, {"0016"}) == {p("203.0.113.99")}
    assert _peers(TCP_TABLE, set()) == set()


@pytest.mark.parametrize("junk", ["", "x", "a\nb c d e", "h\n0: X:0016 ZZ:1 01 x\n1: Y:0016 AB:1 01 x"])
def test_a_table_of_nonsense_holds_no_session(junk):
    assert _peers(junk, {"0016"}) == set()


def test_a_resolv_conf_of_nonsense_names_nobody():
    assert _resolvers("nameserver\nnameserver example.org\noptions x\n\0") == []


def test_what_cannot_be_read_is_left_out_and_said(tmp_path):
    host = LinuxHost(tmp_path, tmp_path / "absent", no_sock_diag)

    facts = host.facts()

    assert any("could not be read" in sentence for sentence in facts.unread)
    assert facts.resolvers == ()
    assert host.admin_sessions([22]) == frozenset()


def test_a_missing_resolv_conf_is_nothing_to_speak_of(tmp_path):
    assert LinuxHost(tmp_path / "absent").facts().unread == ()
