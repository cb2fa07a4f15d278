"""Frames of the actor system: capped, and unpickled through a short list of names that depends on who sent them.

A frame is ``<length>>`` and a pickle of (address of the sender, message). Only the family — this process itself, its
parent, its children and the launcher, all with the launcher's uid — may say what makes and ends actors. Everybody
else that may connect at all (root's command line, cells that gave up root) can deliver application bytes and nothing
more; what those bytes say is the codec's business.
"""

import io
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thespian.actors import ActorAddress

from actors.core.sockets import PeerCredentials, UnixAddress
from actors.core.tally import Tally

FRAME_LIMIT = 1 << 20
_HEADER_DIGITS = 7

#: Refused frames and connections of this process, by cause. A cell's are counted with its own counters.
REFUSED: "Counter[str] | Tally" = Counter()
#: The same of the admin's process, which has nobody to report to but the supervisor, through shared memory.
OF_ADMIN = Tally("refused_frames", "refused_headers", "refused_peers")

_ADDRESS = {("thespian.actors", "ActorAddress"), ("actors.core.sockets", "UnixAddress")}
_FAMILY = _ADDRESS | {
    ("datetime", "timedelta"),
    *(("thespian.actors", name) for name in ("ActorExitRequest", "ChildActorExited", "PoisonMessage", "DeadEnvelope")),
    *(
        ("thespian.system.messages.admin", name)
        for name in (
            "QueryExists",
            "QueryAck",
            "SystemShutdown",
            "SystemShutdownCompleted",
            "PendingActor",
            "PendingActorResponse",
        )
    ),
    ("thespian.system.messages.multiproc", "EndpointConnected"),
}


class FrameRefused(Exception):  # noqa: N818 — read by Thespian, which only wants an exception
    """Not a frame that this process takes from that peer."""


class Delivery(bytes):
    """Application bytes with the kernel's word about who brought them."""

    peer: PeerCredentials


class _Loader(pickle.Unpickler):
    def __init__(self, data: bytes, allowed: set[tuple[str, str]]) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise FrameRefused(f"{module}.{name} is not accepted in this frame")
        return super().find_class(module, name)


class Family:
    """Whose word makes and ends actors. ``launcher`` is remembered by every process that it forks."""

    def __init__(self) -> None:
        self.launcher = PeerCredentials(0, -1)

    def found_here(self) -> None:
        """This process is the launcher."""
        self.launcher = PeerCredentials(os.getpid(), os.geteuid())

    def has(self, peer: PeerCredentials) -> bool:
        """Whether ``peer`` is this process, its parent, its child, or the launcher; and has not given up its uid."""
        if peer.uid != self.launcher.uid:
            return False
        return peer.pid in (os.getpid(), os.getppid(), self.launcher.pid) or _parent_of(peer.pid) == os.getpid()


family = Family()


def _parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return -1


def dumps(message: Any) -> bytes:
    """The pickle of one frame."""
    return pickle.dumps(message, 5)


def loads_acknowledgement(data: bytes) -> Any:
    """What comes back on a connection that we made: the two words of Thespian's receipt, no names at all."""
    return _Loader(data, set()).load()


def loader(peer: PeerCredentials) -> Callable[[bytes], Any]:
    """The function that reads frames of ``peer``. Raises FrameRefused for all that is not one; executes nothing."""
    return lambda data: _open(data, peer)


def _open(data: bytes, peer: PeerCredentials) -> Any:
    try:
        is_family = family.has(peer)
        frame = _Loader(data, _FAMILY if is_family else _ADDRESS).load()
        sender, message = frame if is_family else _outsiders_frame(frame)
        if type(message) is bytes:
            message = Delivery(message)
            message.peer = peer
        return sender, message
    except Exception as exc:  # a hostile pickle can provoke any
        REFUSED["refused_frames"] += 1
        raise FrameRefused(str(exc)[:200]) from exc


def _outsiders_frame(frame: Any) -> tuple[ActorAddress, bytes]:
    """Exactly (address, bytes), made anew: an object with a strange state would break the reader later."""
    if type(frame) is not tuple or len(frame) != 2 or type(frame[1]) is not bytes:
        raise FrameRefused("only application bytes are accepted from this peer")
    address = frame[0]
    details = getattr(address, "addressDetails", None) if type(address) is ActorAddress else None
    if type(details) is not UnixAddress:
        raise FrameRefused("not an address")
    return ActorAddress(UnixAddress(details.name)), frame[1]


def check_header(head: bytes) -> None:
    """Refuse a frame by its first bytes: the length must be digits, end in ``>`` and stay below 1 MB."""
    end = head.find(b">")
    digits = head if end < 0 else head[:end]
    whole = bytes(digits).isdigit() or not digits
    if not whole or len(digits) > _HEADER_DIGITS or (end == 0) or int(digits or b"0") > FRAME_LIMIT:
        REFUSED["refused_headers"] += 1
        raise FrameRefused("not the header of a frame")
