"""Who is called a scanner or a guesser of passwords, with which words, and who is not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dermis.scans import SOURCES, SUSPECTS, TARGETS, Watchlist
from actors.dermis.sessions import Acts, Conduct, Host
from ml.own import parse_own
from ml.records import ACK, KEY, RST, SYN
from tests.support.mast import HOST, NODE, NODE6, Table, watch

SCANNER, SCANNER6, INNOCENT = "198.51.100.7", "2001:db8:66::7", "203.0.113.5"


def subjects(found):
    return {finding.subject for _, finding in found}


def test_a_quick_scan_is_told_within_two_seconds_with_figures_that_a_person_understands():
    table = Table()
    for port in range(1, 144):
        table.knock(SCANNER, port, 1000 + port / 143)

    found = watch(table, 1003)

    at_s, finding = found[0]
    assert at_s <= 1002
    assert (finding.subject, finding.reason) == (SCANNER, "port scan")
    assert f"ports of {NODE} (1, 2, 3, 4, 5, 6 and " in finding.evidence
    assert finding.evidence.endswith("100 % led to no connection")
    assert finding.score >= 0.8


def test_a_scan_that_takes_a_quarter_of_an_hour_is_found():
    table = Table()
    for index in range(18):
        table.knock(SCANNER, 2000 + index, 1000 + 50 * index)

    ((at_s, finding),) = [row for row in watch(table, 1900) if row[1].kind == "scan"][:1]

    assert finding.reason == "slow port scan"
    assert "touched 15 ports" in finding.evidence
    assert "in 12 min" in finding.evidence
    assert at_s < 1000 + 50 * 17


def test_a_scan_of_many_addresses_for_one_port_is_named_so():
    table = Table()
    for index in range(1, 30):
        table.knock(SCANNER, 445, 1000 + index / 20, dest=f"192.0.2.{index + 100}")

    found = watch(table, 1003)

    assert found[0][1].reason == "address scan"
    assert "touched port 445 of" in found[0][1].evidence


def test_ipv6_sources_are_one_by_their_64_however_often_they_change_the_rest():
    table = Table()
    for index in range(20):
        table.knock(f"2001:db8:66::{index + 1:x}", 3000 + index, 1000 + index / 10, dest=NODE6)

    found = watch(table, 1004)

    assert subjects(found) == {"2001:db8:66::/64"}


def test_neighbours_in_the_nodes_own_64_are_told_apart():
    host = Host(parse_own([NODE, "2001:db8:66::10"]))
    table = Table()
    for index in range(20):
        table.knock("2001:db8:66::bad", 3000 + index, 1000 + index / 10, dest=NODE6)
    for index in range(9):
        table.knock("2001:db8:66::900d", 3000 + index, 1000 + index / 10, dest=NODE6)

    found = watch(table, 1004, host=host)

    assert subjects(found) == {"2001:db8:66::bad"}


def test_udp_doors_are_counted_where_no_client_of_this_node_listens():
    table = Table()
    for index in range(30):
        table.datagram(SCANNER, 100 + index, 1000 + index / 20)
        table.datagram("192.0.2.53", 40_000 + index, 1000 + index / 20, sport=53)  # answers to our own questions

    found = watch(table, 1003)

    assert subjects(found) == {SCANNER}


def test_sources_that_share_the_doors_among_them_are_each_told_with_the_whole_picture():
    table = Table()
    for index in range(48):
        table.knock(f"198.51.100.{index % 8 + 1}", 2000 + index, 1000 + index / 12)

    found = watch(table, 1006)

    assert subjects(found) == {f"198.51.100.{index}" for index in range(1, 9)}
    assert {finding.kind for _, finding in found} == {"distributed"}
    assert "one of 8 sources that together touched" in found[-1][1].evidence


def test_forged_sources_that_knock_once_are_nobody():
    table = Table()
    for index in range(2_000):
        table.knock(f"10.{index // 250}.{index % 250}.9", index % 500 + 1, 1000 + index / 2000)

    assert watch(table, 1004) == []


def test_guessed_passwords_are_told_by_number_time_and_sameness():
    table = Table()
    for index in range(40):
        table.session(SCANNER, 22, 1000 + index * 0.3, payload=1500 + index % 3)

    found = watch(table, 1014)

    assert [finding.reason for _, finding in found][:2] == ["brute force against ssh"] * 2
    assert [finding.score for _, finding in found][:2] == [0.7, 0.9]
    assert f"short sessions to ssh (22/tcp) of {NODE} in" in found[0][1].evidence
    assert "100 % of them of the same size" in found[0][1].evidence


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("a client with a connection per request", lambda t, i: t.session(INNOCENT, 80, 1000 + i * 0.03)),
        ("a monitor that looks whether ssh is up", lambda t, i: t.session(INNOCENT, 22, 1000 + i * 0.3, payload=0)),
        ("somebody at work", lambda t, i: t.session(INNOCENT, 22, 1000 + i * 0.3, payload=20_000 * (i + 1))),
        ("a client whose server is down", lambda t, i: t.refused(INNOCENT, 8080, 1000 + i * 0.1)),
        ("the node itself", lambda t, i: t.knock(NODE, 5000 + i, 1000 + i * 0.1, dest="203.0.113.9")),
        ("a neighbour that announces itself", lambda t, i: t.datagram(INNOCENT, 100 + i, 1000 + i * 0.1)),
    ],
)  # fmt: skip
def test_the_innocent_are_not_told_of(what, make):
    table = Table()
    for index in range(9 if "announces" in what else 60):
        make(table, index)

    assert watch(table, 1020) == []


def test_a_browser_that_finds_some_ports_closed_among_many_open_is_no_scanner():
    table = Table()
    for index in range(12):
        table.knock(INNOCENT, 9000 + index, 1000 + index)
    for index in range(40):
        table.session(INNOCENT, 443, 1000 + index * 0.3)

    assert watch(table, 1020) == []


def test_a_syn_scan_that_aborts_what_is_open_is_a_scan_all_the_same():
    table = Table()
    for port in range(1, 30):
        table.add(SCANNER, port, 1000 + port / 20, packets=2, flags=(SYN, RST), answer=(SYN, ACK))

    assert subjects(watch(table, 1004)) == {SCANNER}


def test_who_goes_on_is_told_again_only_after_a_while():
    table = Table()
    for index in range(240):
        table.knock(SCANNER, 1 + index, 1000 + index / 10)

    found = watch(table, 1026)

    assert 2 <= len(found) <= 3
    assert all(later - earlier >= 10 for (earlier, _), (later, _) in pairwise(found))


def acts(sources, ports, at_s):
    """Probes from numbered sources, as one batch."""
    key = np.zeros(len(sources), KEY)
    key["family"] = 4
    key["addr"][:, 0, 10:12] = 255
    key["addr"][:, 0, 12:] = np.asarray(sources, ">u4").view("u1").reshape(-1, 4)
    key["port"][:, 1] = ports
    return Acts(
        np.asarray(sources, "u8"),
        np.zeros(len(sources), "?"),
        key,
        np.full(len(sources), at_s),
        np.zeros(len(sources), "i8"),
    )


NONE = acts([], [], 0.0)


def test_a_million_forged_sources_leave_memory_bounded_and_the_patient_scanner_known():
    watchlist, found = Watchlist(), []
    rng = np.random.default_rng(7)

    for look in range(20):
        forged = rng.integers(1 << 24, 1 << 31, 50_000)
        ports = rng.integers(1, 65536, 50_000)
        mine = [3, 3] if look % 2 else [3]
        probes = acts([*mine, *forged], [*range(100 + 2 * look, 100 + 2 * look + len(mine)), *ports], 1000 + look * 0.5)
        found += watchlist.observe(1000 + look * 0.5, Conduct(probes, NONE, NONE))

    assert len(watchlist.suspects) <= SUSPECTS
    assert max(len(suspect.targets) for suspect in watchlist.suspects.values()) <= TARGETS
    assert watchlist.evicted > 1_000_000 - 20 * SOURCES
    assert "0.0.0.3" in {finding.subject for finding in found}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 65535), st.floats(0, 2000), st.booleans()), max_size=120))
def test_whatever_is_seen_the_rules_answer_and_stay_within_bounds(rows):
    watchlist = Watchlist()

    for at_s in (1000.0, 999.0, 1000.5, 1900.0):
        probes = acts([row[0] for row in rows if row[3]], [row[1] for row in rows if row[3]], at_s)
        logins = acts([row[0] for row in rows if not row[3]], [row[1] for row in rows if not row[3]], at_s)
        found = watchlist.observe(at_s, Conduct(probes, logins, logins))

        assert all(0 < finding.score <= 1 and finding.reason and finding.evidence for finding in found)


def test_the_answer_of_the_node_to_a_scan_does_not_change_who_is_blamed():
    table = Table()
    for port in range(1, 30):
        table.add(SCANNER, port, 1000 + port / 20, flags=(SYN,), answer=(RST, ACK))

    assert HOST.client_ports[0] > 30
    assert subjects(watch(table, 1004)) == {SCANNER}
