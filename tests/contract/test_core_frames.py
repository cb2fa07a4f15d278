"""Frames and who may send what: the pickles of the actor system, read without ever executing anything."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thespian.actors import ActorAddress, ActorExitRequest
from thespian.system.messages.admin import SystemShutdown

from actors.core import frames, reach
from actors.core.capability import Identity
from actors.core.frames import Delivery, FrameRefused, check_header, loader, loads_acknowledgement
from actors.core.sockets import PeerCredentials, UnixAddress, listen, use_directory

OUTSIDER = PeerCredentials(1, 64_321)
ADDRESS = ActorAddress(UnixAddress("abc"))


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> PeerCredentials:
    """This process as the launcher of a system."""
    me = PeerCredentials(os.getpid(), os.geteuid())
    monkeypatch.setattr(frames.family, "launcher", me)
    return me


def test_an_outsider_can_deliver_bytes_and_is_named_by_the_kernel() -> None:
    sender, message = loader(OUTSIDER)(pickle.dumps((ADDRESS, b"payload")))

    assert sender == ADDRESS
    assert isinstance(message, Delivery)
    assert message.peer == OUTSIDER


@pytest.mark.parametrize(
    "message",
    [ActorExitRequest(), SystemShutdown(), "text", ["list"], 7, None],
    ids=lambda message: type(message).__name__,
)
def test_an_outsider_can_deliver_nothing_else(message: object) -> None:
    with pytest.raises(FrameRefused):
        loader(OUTSIDER)(pickle.dumps((ADDRESS, message)))


def test_the_family_can_end_actors(launcher: PeerCredentials) -> None:
    _, message = loader(launcher)(pickle.dumps((ADDRESS, ActorExitRequest())))

    assert isinstance(message, ActorExitRequest)


def test_a_child_that_gave_up_root_is_no_family_any_more(launcher: PeerCredentials) -> None:
    assert frames.family.has(launcher)
    assert not frames.family.has(PeerCredentials(launcher.pid, launcher.uid + 1))
    assert not frames.family.has(PeerCredentials(1, launcher.uid + 1))


def test_not_even_the_family_can_execute_anything(launcher: PeerCredentials, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    bombs = [
        b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(trace),
        b"cbuiltins\neval\n(S'1'\ntR.",
        pickle.dumps((ADDRESS, os.system)),
        pickle.dumps((ADDRESS, Path)),
    ]

    for bomb in bombs:
        with pytest.raises(FrameRefused):
            loader(launcher)(bomb)

    assert not trace.exists()


@given(st.binary(max_size=300))
def test_random_pickles_raise_only_frame_refused(data: bytes) -> None:
    with pytest.raises(FrameRefused):
        loader(OUTSIDER)(data)


@given(st.data())
def test_damaged_frames_raise_only_frame_refused(data: st.DataObject) -> None:
    frame = bytearray(pickle.dumps((ADDRESS, b"payload")))
    for _ in range(data.draw(st.integers(1, 5))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(FrameRefused):
        sender, message = loader(OUTSIDER)(bytes(frame))
        assert type(message) is Delivery
        assert str(sender)
        assert sender == ActorAddress(UnixAddress(sender.addressDetails.name))


def test_a_receipt_may_name_nothing_at_all() -> None:
    assert loads_acknowledgement(pickle.dumps("ACK")) == "ACK"
    with pytest.raises(FrameRefused):
        loads_acknowledgement(pickle.dumps(ADDRESS))


@pytest.mark.parametrize(
    "head", [b"99999999>", b"1048577>", b"x", b"-1>", b">", b"12 >", b"0x1>", b"123456789", b"\xb2>"]
)
def test_a_bad_header_is_refused_before_anything_is_collected(head: bytes) -> None:
    with pytest.raises(FrameRefused):
        check_header(head)


@pytest.mark.parametrize("head", [b"1048576>", b"5>hello", b"12", b"1>"])
def test_a_good_or_unfinished_header_passes(head: bytes) -> None:
    check_header(head)


@pytest.mark.parametrize("name", ["../etc/passwd", "a/b", "", "A", "x" * 33, ".", "a\x00b"])
def test_an_address_cannot_lead_out_of_the_directory(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a socket"):
        UnixAddress(name)


def test_sockets_are_for_owner_and_group_and_replace_what_lies_there(tmp_path: Path) -> None:
    use_directory(tmp_path)
    (tmp_path / "name").write_text("left over")

    with listen("name", gid=12_345 if os.geteuid() == 0 else -1):
        about = (tmp_path / "name").stat()

    assert stat.S_ISSOCK(about.st_mode)
    assert stat.S_IMODE(about.st_mode) == 0o660
    if os.geteuid() == 0:
        assert about.st_gid == 12_345


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give rights to another user")
def test_the_way_is_opened_for_one_user_and_only_to_pass(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    home = closed / "state"
    home.mkdir(parents=True)
    home.chmod(0o755)
    closed.chmod(0o700)
    identity = Identity(64_321, 64_321)
    assert not _can(identity, home, os.X_OK)

    opened = reach.open_the_way(home, identity)

    assert closed in opened
    assert _can(identity, home, os.R_OK | os.X_OK)
    assert not _can(identity, closed, os.R_OK)
    assert not _can(Identity(12_345, 12_345), home, os.X_OK)
    assert reach.open_the_way(home, identity) == []


def _can(identity: Identity, path: Path, right: int) -> bool:
    """Whether that user may; asked in a child that became it."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        os._exit(0 if os.access(path, right) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
