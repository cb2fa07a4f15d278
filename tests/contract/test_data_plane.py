"""One contract for the real data plane and for the fake: what the cell above may rely on."""

import os
import select
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpf import abi, libbpf
from bpf.blocklist_image import Image, write_image
from bpf.dataplane import (
    AllRungsRefused,
    BadSubject,
    Ban,
    Budget,
    DataPlane,
    DataPlaneError,
    EgressWay,
    MapFull,
    NoSuchInterface,
    Policy,
    Rung,
    Stance,
    Vaccine,
)
from bpf.fake import FakePlane
from bpf.loader import Build, KernelPlane
from bpf.subjects import parse
from tests.support.bcc import bcc_plane, forget_types, needs_bcc
from tests.support.netns import Namespace, pins, veth

__all__ = ["forget_types"]
SECOND = 1_000_000_000
MAX_BANS = 1_024


@dataclass
class Case:
    plane: DataPlane
    interface: str


@pytest.fixture(
    params=[
        "fake",
        pytest.param("kernel", marks=pytest.mark.kernel),
        pytest.param("bcc", marks=[pytest.mark.kernel, needs_bcc]),
    ]
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    if request.param == "fake":
        fake = FakePlane({"v0": tuple(Rung)}, max_bans=MAX_BANS)
        yield Case(fake, "v0")
        fake.close()
        return
    with Namespace("dp") as here, Namespace("dq") as there, pins() as directory:
        veth(here, there)
        with here.entered():
            build = Build(max_bans=MAX_BANS)
            plane = bcc_plane(directory, build) if request.param == "bcc" else KernelPlane(directory, build)
            yield Case(plane, "v0")
            for attachment in plane.attachments():
                plane.detach(attachment.interface)
            plane.close()


def reasons(plane: DataPlane, *subjects: str) -> list[str]:
    return [proof.reason for proof in plane.prove(subjects)]


def test_a_ban_drops_and_a_release_lets_pass_again_in_both_families(case: Case) -> None:
    subjects = ("203.0.113.7", "2001:db8::7", "2001:db8:1:2::/64", "198.51.100.0/24", "2001:db8:99::/48")
    members = ("203.0.113.7", "2001:db8::7", "2001:db8:1:2::abcd", "198.51.100.200", "2001:db8:99:1::1")
    before = reasons(case.plane, *members)

    stored = case.plane.ban([Ban(subject) for subject in subjects])
    during = case.plane.prove(members)
    released = case.plane.release([*subjects, "192.0.2.1"])

    assert before == ["clean"] * 5
    assert stored == 5
    assert all(proof.drop for proof in during)
    assert [proof.reason for proof in during] == ["ban", "ban", "ban", "ban_prefix", "ban_prefix"]
    assert released == 5
    assert reasons(case.plane, *members) == ["clean"] * 5


def test_a_neighbour_of_a_banned_source_passes(case: Case) -> None:
    case.plane.ban([Ban("203.0.113.7"), Ban("2001:db8:1:2::/64"), Ban("198.51.100.0/24"), Ban("2001:db8:5::")])

    found = reasons(case.plane, "203.0.113.8", "2001:db8:1:3::1", "198.51.101.1", "2001:db8:5::1")

    assert found == ["clean"] * 4


def test_bans_are_read_back_as_they_were_given(case: Case) -> None:
    until = time.monotonic_ns() + 60 * SECOND
    given = [Ban("203.0.113.7", until, "budget_syn"), Ban("2001:db8::/64", 0, "ban"), Ban("198.51.100.0/25", until)]

    case.plane.ban(given)

    assert sorted(case.plane.bans(), key=str) == sorted(given, key=str)


def test_rows_tell_the_same_as_bans_in_an_order_that_stays(case: Case) -> None:
    until = time.monotonic_ns() + 60 * SECOND
    given = [Ban("203.0.113.7", until, "budget_syn", by_kernel=True, packets=3), Ban("2001:db8::/64"),
             Ban("2001:db8::"), Ban("198.51.100.0/25", until), Ban("2001:db8:99::/48")]  # fmt: skip
    empty = case.plane.ban_rows()

    case.plane.ban(given)
    rows = case.plane.ban_rows()

    assert (len(empty), empty.keys.shape) == (0, (0, 3))
    assert sorted((rows.ban(row) for row in range(len(rows))), key=str) == sorted(given, key=str)
    assert len({tuple(key) for key in rows.keys.tolist()}) == len(given)
    assert np.array_equal(case.plane.ban_rows().keys, rows.keys)


def test_the_same_ban_twice_is_one_with_the_later_time(case: Case) -> None:
    until = time.monotonic_ns() + 60 * SECOND
    case.plane.ban([Ban("203.0.113.7", until)])

    case.plane.ban([Ban("203.0.113.7", until + SECOND)])

    assert [ban.until_ns for ban in case.plane.bans()] == [until + SECOND]


def test_an_expired_ban_drops_nothing_and_is_swept(case: Case) -> None:
    case.plane.ban([Ban("203.0.113.7", time.monotonic_ns() - SECOND), Ban("203.0.113.8")])

    before = reasons(case.plane, "203.0.113.7", "203.0.113.8")
    swept = case.plane.sweep(time.monotonic_ns())

    assert before == ["clean", "ban"]
    assert swept == 1
    assert [ban.subject for ban in case.plane.bans()] == ["203.0.113.8"]
    assert reasons(case.plane, "203.0.113.8") == ["ban"]


def test_tolerance_stands_above_a_ban_and_is_replaced_whole(case: Case) -> None:
    case.plane.ban([Ban("203.0.113.7"), Ban("2001:db8:1::9")])

    case.plane.tolerate(["203.0.113.0/24", "2001:db8:1::/48"])
    tolerated = reasons(case.plane, "203.0.113.7", "2001:db8:1::9", "203.0.113.8")
    listed = sorted(case.plane.tolerated())
    case.plane.tolerate([])

    assert tolerated == ["tolerated", "tolerated", "clean"]
    assert listed == ["2001:db8:1::/48", "203.0.113.0/24"]
    assert reasons(case.plane, "203.0.113.7", "2001:db8:1::9") == ["ban", "ban"]


@pytest.mark.parametrize(
    "text", ["", "nobody", "1.2.3", "1.2.3.4/33", "127.0.0.1", "0.0.0.0", "0.0.0.0/0", "224.0.0.1", "::", "::1",
             "ff02::1", "::/0", "1.2.3.4/x", "2001:db8::/129", "255.255.255.255"],
)  # fmt: skip
def test_what_is_nobody_cannot_be_banned_and_changes_nothing(case: Case, text: str) -> None:
    with pytest.raises(BadSubject):
        case.plane.ban([Ban("203.0.113.7"), Ban(text)])

    assert case.plane.bans() == []


def test_a_full_table_says_how_many_stand_and_evicts_none(case: Case) -> None:
    first = [Ban(f"10.1.{i >> 8}.{i & 255}") for i in range(MAX_BANS)]
    case.plane.ban(first)

    with pytest.raises(MapFull):
        case.plane.ban([Ban("203.0.113.7")])

    assert len(case.plane.bans()) == MAX_BANS
    assert all(proof.drop for proof in case.plane.prove([ban.subject for ban in first]))
    assert reasons(case.plane, "203.0.113.7") == ["clean"]


def test_too_many_tolerated_prefixes_are_refused_and_change_nothing(case: Case) -> None:
    case.plane.tolerate(["203.0.113.0/24"])

    with pytest.raises(MapFull):
        case.plane.tolerate([f"10.{i >> 8}.{i & 255}.0/24" for i in range(4097)])

    assert case.plane.tolerated() == ["203.0.113.0/24"]


def test_observing_withholds_the_drop_and_keeps_the_reason(case: Case) -> None:
    case.plane.ban([Ban("203.0.113.7")])

    case.plane.set_policy(Policy(stance=Stance.OBSERVE))
    observed = case.plane.prove(["203.0.113.7"])[0]
    case.plane.set_policy(Policy(stance=Stance.HARDENED))
    hardened = case.plane.prove(["203.0.113.7"])[0]

    assert (observed.drop, observed.reason) == (False, "ban")
    assert (hardened.drop, hardened.reason) == (True, "ban")


def test_a_policy_out_of_range_is_refused(case: Case) -> None:
    with pytest.raises(DataPlaneError):
        case.plane.set_policy(replace(Policy(), syn=Budget(-1, 10)))
    with pytest.raises(DataPlaneError):
        case.plane.set_policy(replace(Policy(), syn=Budget(1, 5_000_000)))


def test_proofs_count_nothing(case: Case) -> None:
    case.plane.ban([Ban("203.0.113.7")])
    before = case.plane.counters()

    case.plane.prove(["203.0.113.7", "203.0.113.8"] * 50)

    assert case.plane.counters() == before
    assert [ban.packets for ban in case.plane.bans()] == [0]
    assert len(case.plane.events.read()) == 0
    assert len(case.plane.flows.read()[0]) == 0


def test_counters_name_every_reason_and_tally(case: Case) -> None:
    counters = case.plane.counters()

    assert set(counters.did_packets) == set(counters.would_bytes) == set(abi.REASONS.values())
    assert set(counters.tally) == set(abi.TALLIES)
    assert counters.frames >= counters.dropped >= 0


def test_an_interface_is_attached_once_and_detached_on_purpose(case: Case) -> None:
    first = case.plane.attach(case.interface)
    second = case.plane.attach(case.interface)
    attached = case.plane.attachments()
    gone = (case.plane.detach(case.interface), case.plane.detach(case.interface))

    assert first.rung is Rung.NATIVE
    assert not first.adopted
    assert second.rung is Rung.NATIVE
    assert second.adopted
    assert [(a.interface, a.rung) for a in attached] == [(case.interface, Rung.NATIVE)]
    assert gone == (True, False)
    assert case.plane.attachments() == []


@pytest.mark.parametrize("rung", list(Rung))
def test_each_rung_can_be_demanded(case: Case, rung: Rung) -> None:
    assert case.plane.attach(case.interface, [rung]).rung is rung


def test_an_unknown_interface_is_refused_in_words(case: Case) -> None:
    with pytest.raises(NoSuchInterface, match="nowhere0"):
        case.plane.attach("nowhere0")
    with pytest.raises(NoSuchInterface, match="nowhere0"):
        case.plane.account_egress("nowhere0")


def test_what_leaves_is_accounted_once_beside_the_program_and_goes_with_it(case: Case) -> None:
    case.plane.attach(case.interface)
    before = case.plane.egress()

    first, second = (case.plane.account_egress(case.interface) for _ in range(2))
    standing = case.plane.egress()
    case.plane.detach(case.interface)

    assert (before, first.way, second.way) == ({}, EgressWay.TCX, EgressWay.TCX)
    assert first.refused == {}
    assert standing == {case.interface: EgressWay.TCX}
    assert case.plane.egress() == {}


def test_what_leaves_is_accounted_no_longer_where_nobody_wants_it(case: Case) -> None:
    case.plane.attach(case.interface)
    case.plane.account_egress(case.interface)

    taken_off = [case.plane.account_egress(case.interface, wanted=False) for _ in range(2)]

    assert [found.way for found in taken_off] == [None, None]
    assert case.plane.egress() == {}
    assert [attachment.interface for attachment in case.plane.attachments()] == [case.interface]


def test_no_rung_allowed_is_refused(case: Case) -> None:
    with pytest.raises(AllRungsRefused):
        case.plane.attach(case.interface, [])


def test_vaccines_are_stored_once_and_swept_when_over(case: Case) -> None:
    lasting = Vaccine(17, 5060, 0x1234, 0, 7)
    passing = Vaccine(6, 80, 0x5678, time.monotonic_ns() - SECOND, 8)

    stored = case.plane.vaccinate([lasting, passing])
    swept = case.plane.sweep(time.monotonic_ns())
    removed = case.plane.unvaccinate([lasting, passing])

    assert (stored, swept, removed) == (2, 1, 1)
    with pytest.raises(BadSubject):
        case.plane.vaccinate([Vaccine(47, 80, 1)])


def test_a_file_that_is_no_image_is_refused(case: Case, tmp_path: Path) -> None:
    bad = tmp_path / "image"
    bad.write_bytes(os.urandom(8192))

    with pytest.raises(DataPlaneError):
        case.plane.publish(bad, None)
    with pytest.raises(DataPlaneError):
        case.plane.publish(None, tmp_path / "absent")


def test_an_empty_image_can_be_published(case: Case, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "image"
    write_image(path, Image(4, 0, np.zeros((0, 4096), np.uint8)))

    case.plane.publish(path, None)

    assert reasons(case.plane, "203.0.113.7") == ["clean"]


def test_streams_have_a_descriptor_to_wait_on_and_never_block(case: Case) -> None:
    readable, _, _ = select.select([case.plane.events.fd, case.plane.samples.fd], [], [], 0)

    assert readable == []
    assert len(case.plane.events.read()) == 0
    assert list(case.plane.samples.read()) == []


def test_many_hosts_go_in_as_rows_and_drop_like_any_other(case: Case) -> None:
    subjects = ["203.0.113.7", "2001:db8::7", "2001:db8:1:2::/64"]
    until = time.monotonic_ns() + 60 * SECOND

    stored = case.plane.ban_many(rows(subjects), until)

    assert stored == 3
    assert reasons(case.plane, "203.0.113.7", "2001:db8::7", "2001:db8:1:2::abcd", "203.0.113.8") == ["ban"] * 3 + [
        "clean"
    ]
    assert sorted((ban.subject, ban.until_ns, ban.by_kernel) for ban in case.plane.bans()) == [
        (subject, until, False) for subject in sorted(subjects)
    ]


@pytest.mark.parametrize(
    "bad", ["127.0.0.1", "224.0.0.1", "0.0.0.0", "ff02::1", "::1", "198.51.100.0/24", "2001:db8::/48"]
)
def test_one_row_that_is_no_host_to_ban_keeps_all_out(case: Case, bad: str) -> None:
    with pytest.raises(BadSubject):
        case.plane.ban_many(rows(["203.0.113.7", bad]), 0)

    assert case.plane.bans() == []


def test_rows_beyond_the_room_say_how_many_stand(case: Case) -> None:
    with pytest.raises(MapFull) as full:
        case.plane.ban_many(rows([f"11.0.{n >> 8}.{n & 255}" for n in range(2 * MAX_BANS)]), 0)

    assert full.value.done == len(case.plane.bans())


@pytest.mark.kernel
def test_prefixes_are_banned_and_released_while_what_is_over_is_swept() -> None:
    over = [f"11.{n >> 8}.{n & 255}.0/25" for n in range(1_500)]
    wanted = [f"13.{n}.0.0/18" for n in range(200)] + [f"2001:db8:{n:x}::/48" for n in range(200)]
    gone = wanted[::4]
    with pins() as directory:
        plane = KernelPlane(directory, Build(max_bans=MAX_BANS))
        plane.ban([Ban(subject, 1) for subject in over])
        done = threading.Event()
        swept: list[int] = []

        def sweep() -> None:
            while not done.is_set():
                swept.append(plane.sweep(time.monotonic_ns()))
                plane.release(gone[:1])  # makes the next round build its filter anew

        worker = threading.Thread(target=sweep)
        worker.start()
        for subject in wanted:
            plane.ban([Ban(subject)])
        plane.release(gone)
        done.set()
        worker.join()
        plane.sweep(time.monotonic_ns())
        drops = {proof.subject: proof.drop for proof in plane.prove(wanted)}
        plane.close()

    assert sum(swept) == len(over)
    assert drops == {subject: subject not in gone for subject in wanted}


@pytest.mark.kernel
def test_a_prefix_that_is_banned_in_the_middle_of_a_sweep_is_dropped_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pins() as directory:
        plane = KernelPlane(directory, Build(max_bans=MAX_BANS))
        plane.ban([Ban("198.51.100.0/24", 1)])
        read_all, late = libbpf.read_all, ["13.0.0.0/9", "13.7.0.0/18", "2001:db8::/32", "2001:db8:7::/48"]

        def read_and_ban(*args: Any) -> Any:
            found = read_all(*args)
            plane.ban([Ban(late.pop())] if late else [])
            return found

        wanted = list(late)
        monkeypatch.setattr(libbpf, "read_all", read_and_ban)
        plane.sweep(time.monotonic_ns())
        monkeypatch.undo()
        drops = [proof.drop for proof in plane.prove(wanted)]
        plane.close()

    assert late == []
    assert drops == [True] * 4


def rows(subjects: list[str]) -> bytes:
    return b"".join(subject.addr + bytes((subject.bits,)) for subject in map(parse, subjects))
