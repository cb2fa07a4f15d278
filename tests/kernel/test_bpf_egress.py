"""What leaves the node fills the other side of the flow records, drops nothing, and outlives the service."""

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from actors.admin.doctor import bpf_calls
from bpf import abi, libbpf
from bpf.dataplane import Ban, EgressWay, NoSuchInterface, Rung
from bpf.egress import HANDLE
from tests.support.egress import NODE4, NODE6, PEER4, SMALL, Street, flow_of, street
from tests.support.netns import Namespace, veth

pytestmark = pytest.mark.kernel

#: Larger than any frame: the stack hands such answers down in joined segments.
MUCH = b"0123456789abcdef" * 20_000


@pytest.fixture
def road() -> Iterator[Street]:
    with street() as made:
        yield made


@pytest.fixture(params=list(EgressWay))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EgressWay:
    """Both ways the kernel offers; the second as on a kernel before 6.6."""
    if request.param is EgressWay.CLSACT:
        forbid_tcx(monkeypatch)
    return request.param


def forbid_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    create = libbpf.link_create

    def refuse(program: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
        if attach_type == libbpf.ATTACH_TCX_EGRESS:
            raise libbpf.KernelRefused("egress attach", f"interface {ifindex}", errno.EINVAL)
        return create(program, ifindex, attach_type, flags)

    monkeypatch.setattr(libbpf, "link_create", refuse)


@pytest.mark.parametrize("host", [NODE4, NODE6])
def test_a_real_conversation_shows_both_sides_and_its_true_end(road: Street, way: EgressWay, host: str) -> None:
    port = road.serve(MUCH, 10 if host == NODE6 else 2)
    with road.plane() as plane:
        plane.attach("v0")
        egress = plane.account_egress("v0")

        heard = road.fetch(port, host)

        flow = flow_of(plane, port)
        first, second = flow["side"]
        assert (egress.way, heard) == (way, MUCH)
        assert flow["key"]["port"].tolist()[1] == port
        assert abi.FLOW_STATES[int(flow["state"])] == "closed"
        assert (int(first["payload_bytes"]), int(second["payload_bytes"])) == (7, len(MUCH))
        assert (int(second["flags"][1]), int(second["flags"][0])) == (1, 1)  # one SYN, one FIN
        assert int(second["mss"]) > 1_000


def test_joined_segments_are_counted_as_the_packets_that_they_become(road: Street, way: EgressWay) -> None:
    port = road.serve(MUCH)
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")

        road.fetch(port)

        side = flow_of(plane, port)["side"][1]
        packets, size = int(side["packets"]), int(side["payload_max"])
        least = len(MUCH) // size
        assert 1_300 <= size <= 1_460
        assert least <= packets <= least + 60
        headers = (int(side["wire_bytes"]) - len(MUCH)) / packets
        assert 54 <= headers <= 14 + 20 + 60
        assert int(side["sizes"].sum()) == packets
        assert int(side["flags"][4]) == packets  # every segment acknowledges


def test_a_connection_in_progress_is_established_and_a_refused_one_is_refused(road: Street) -> None:
    port = road.serve(b"")
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")
        with road.peer.entered():
            standing = socket.create_connection((NODE4, port), timeout=5)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((NODE4, 9), timeout=5)

        with standing:
            states = [abi.FLOW_STATES[int(flow_of(plane, one)["state"])] for one in (port, 9)]

        assert states == ["established", "refused"]
        assert flow_of(plane, 9)["side"]["packets"].tolist() == [1, 1]


def test_what_the_node_begins_is_its_own_conversation(road: Street, way: EgressWay) -> None:
    with road.peer.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((PEER4, 0))
        there.settimeout(5)
        port = there.getsockname()[1]
        with road.plane() as plane, road.node.entered():
            plane.attach("v0")
            plane.account_egress("v0")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.settimeout(5)
                ours.sendto(b"question", (PEER4, port))
                _, back = there.recvfrom(100)
                there.sendto(b"an answer", back)
                ours.recv(100)

            flow = flow_of(plane, port, 17)

        assert flow["key"]["port"].tolist() == [back[1], port]
        assert flow["side"]["payload_bytes"].tolist() == [8, 9]


def test_a_dead_service_leaves_it_hanging_and_the_next_one_adopts_it(road: Street, way: EgressWay) -> None:
    port = road.serve(b"hello")
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")

    road.fetch(port)

    with road.plane() as plane:
        before = flow_of(plane, port)["side"]["packets"].tolist()
        standing = road.tc("filter", "show", "dev", "v0", "egress")
        adopted = plane.account_egress("v0")
        assert before[1] > 0
        assert (adopted.way, plane.egress()) == (way, {"v0": way})
        assert road.tc("filter", "show", "dev", "v0", "egress") == standing


def test_another_version_takes_its_place_without_a_second_one_beside_it(road: Street, way: EgressWay) -> None:
    port = road.serve(b"hello")
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")
    with road.plane(replace(SMALL, flow_sets=2_048)) as plane:
        plane.attach("v0")
        plane.account_egress("v0")

        road.fetch(port)

        assert flow_of(plane, port)["side"]["packets"][1] > 0
        assert plane.egress() == {"v0": way}
        assert road.ours_on_the_way_out() == 1


def test_it_goes_with_the_program_and_nothing_of_ours_stays(road: Street, way: EgressWay) -> None:
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")

        assert plane.detach("v0")

        assert plane.egress() == {}
        assert road.ours_on_the_way_out() == 0
        assert not plane.detach("v0")


def test_it_can_be_taken_off_alone(road: Street, way: EgressWay) -> None:
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")

        plane.account_egress("v0", wanted=False)

        assert road.ours_on_the_way_out() == 0
        assert [one.interface for one in plane.attachments()] == ["v0"]


def their_filter(road: Street, handle: int) -> str:
    """Somebody else's program, whose verdict "ok" ends the search; as tc shows it."""
    with road.node.entered():
        program = bpf_calls.load_program(bpf_calls.ProgramType.SCHED_CLS, 0)
        libbpf.EgressFilter(socket.if_nametoindex("v0"), 1, handle).put(program)
    os.close(program)
    return road.tc("filter", "show", "dev", "v0", "egress")


def test_filters_of_somebody_else_are_left_alone_and_do_not_blind_ours(road: Street, way: EgressWay) -> None:
    port = road.serve(b"hello")
    theirs = their_filter(road, 1)
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")

        heard = road.fetch(port)

        answered = int(flow_of(plane, port)["side"]["packets"][1])
        plane.detach("v0")
    assert (heard, answered > 2) == (b"hello", True)
    assert "handle 0x1" in theirs
    assert road.tc("filter", "show", "dev", "v0", "egress") == theirs


def test_a_link_of_somebody_else_that_ends_the_search_stays_and_does_not_blind_ours(road: Street) -> None:
    port = road.serve(b"hello")
    with road.node.entered():
        program = bpf_calls.load_program(bpf_calls.ProgramType.SCHED_CLS, 0)  # "ok": nobody behind it is asked
        theirs = bpf_calls.link(program, socket.if_nametoindex("v0"), bpf_calls.ATTACH_TCX_EGRESS)
    try:
        with road.plane() as plane:
            plane.attach("v0")
            plane.account_egress("v0")
            road.fetch(port)

            assert int(flow_of(plane, port)["side"]["packets"][1]) > 2
            plane.detach("v0")
        assert libbpf.link_info(theirs).ifindex != 0
    finally:
        os.close(theirs)
        os.close(program)


def test_a_place_that_somebody_else_holds_is_told_and_not_taken(road: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_tcx(monkeypatch)
    theirs = their_filter(road, HANDLE)
    with road.plane() as plane:
        plane.attach("v0")

        egress = plane.account_egress("v0")
        plane.detach("v0")

    assert egress.way is None
    assert "somebody else" in egress.refused["clsact"]
    assert road.tc("filter", "show", "dev", "v0", "egress") == theirs


def test_where_both_ways_are_refused_the_reasons_are_told_and_the_rung_stays(
    road: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_tcx(monkeypatch)

    def refuse(place: libbpf.EgressFilter, program: int) -> None:
        raise libbpf.KernelRefused("egress attach", "interface 2", errno.ENOENT)

    monkeypatch.setattr(libbpf.EgressFilter, "put", refuse)
    with road.plane() as plane:
        rung = plane.attach("v0").rung
        egress = plane.account_egress("v0")

        assert rung == "native"
        assert egress.way is None
        assert "TCX came with kernel 6.6" in egress.refused["tcx"]
        assert "clsact" in egress.refused["clsact"]
        assert "sch_ingress" in egress.remedy
        assert plane.egress() == {}


def test_a_kernel_without_such_a_program_is_a_reason_and_no_error(road: Street) -> None:
    with road.plane(replace(SMALL, egress=False)) as plane:
        plane.attach("v0")

        assert plane.account_egress("v0").way is None
        assert "program" in plane.account_egress("v0").refused


def test_an_interface_that_is_not_there_is_refused_in_words(road: Street) -> None:
    with road.plane() as plane, pytest.raises(NoSuchInterface, match="nowhere0"):
        plane.account_egress("nowhere0")


def test_a_device_that_returns_gets_it_again(road: Street, way: EgressWay) -> None:
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")
        road.node.ip("link del v0")
        assert plane.egress() == {}

        veth(road.peer, road.node)

        assert plane.account_egress("v0").way is way
        assert plane.egress() == {"v0": way}


def test_another_object_under_our_name_among_the_pins_is_no_error(road: Street) -> None:
    with road.plane() as plane:
        plane.attach("v0")
        (road.directory / "egress").mkdir()
        libbpf.pin(plane.program.maps["bans"], road.directory / "egress" / "v0")

        assert plane.account_egress("v0").way is EgressWay.TCX


def test_a_pin_removed_from_outside_comes_back(road: Street) -> None:
    with road.plane() as plane:
        plane.attach("v0")
        plane.account_egress("v0")
        (road.directory / "egress" / "v0").unlink()

        assert plane.keep_pins() == 1

    with road.plane() as plane:
        plane.account_egress("v0")
        assert road.ours_on_the_way_out() == 1


def test_a_banned_peer_still_gets_what_the_node_sends_and_nothing_is_counted_as_judged(road: Street) -> None:
    with road.peer.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((PEER4, 0))
        there.settimeout(5)
        with road.plane() as plane, road.node.entered():
            plane.attach("v0")
            plane.account_egress("v0")
            plane.ban([Ban(PEER4)])
            before = plane.counters()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.sendto(b"news", there.getsockname())
            assert there.recv(100) == b"news"

            after = plane.counters()
            assert {k: after.did_packets[k] - before.did_packets[k] for k in ("clean", "ban")} == {"clean": 0, "ban": 0}
            assert plane.samples.read() == []


@pytest.mark.parametrize("protected", [("v0",), ("v0", "v1")])
def test_what_the_node_only_passes_on_is_counted_once(road: Street, way: EgressWay, protected: tuple[str, ...]) -> None:
    """The peer talks through the node to somebody behind it; one or both of the node's interfaces carry the program."""
    with Namespace("ei") as behind:
        veth(behind, road.node, "v0", "v1")
        road.node.ip("addr add 10.8.1.2/24 dev v1")
        behind.ip("addr add 10.8.1.1/24 dev v0", "route add default via 10.8.1.2")
        road.peer.ip(f"route add default via {NODE4}")
        road.node.sysctl(ipv4__ip_forward=1)
        with behind.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("10.8.1.1", 0))
            far.settimeout(5)
            port = far.getsockname()[1]
            with road.plane() as plane:
                for interface in protected:
                    plane.attach(interface)
                    plane.account_egress(interface)
                with road.peer.entered():
                    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                with near:
                    near.settimeout(5)
                    for _ in range(10):
                        near.sendto(b"question", ("10.8.1.1", port))
                        _, back = far.recvfrom(100)
                        far.sendto(b"an answer", back)
                        near.recv(100)

                assert flow_of(plane, port, 17)["side"]["packets"].tolist() == [10, 10]


def test_segments_that_come_in_joined_are_counted_as_packets_on_the_traffic_control_rung(road: Street) -> None:
    with road.node.entered():
        listener = socket.create_server(("0.0.0.0", 0))
    road.listeners.append(listener)
    with road.plane() as plane:
        plane.attach("v0", [Rung.TCX])
        plane.account_egress("v0")
        with road.peer.entered():
            wire = socket.create_connection((NODE4, listener.getsockname()[1]), timeout=5)
        with wire, listener.accept()[0] as ours:
            wire.sendall(MUCH[:200_000])
            heard = 0
            while heard < 200_000:
                heard += len(ours.recv(1 << 16))

        side = flow_of(plane, listener.getsockname()[1])["side"][0]
        assert int(side["payload_bytes"]) == 200_000
        assert int(side["payload_max"]) <= 1_460
        assert int(side["packets"]) >= 200_000 // 1_460
