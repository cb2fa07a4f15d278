"""Membrane: what a cell needs of the process around it. The real one is ``host.CellActor``, tests bring their own."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Frame:
    """Application bytes as they came in. pid and uid: the kernel's word about the sender; ``reply_to``: its own."""

    data: bytes
    pid: int
    uid: int
    reply_to: str


class Membrane(Protocol):
    """Sending, and ending. All of it on the actor thread."""

    @property
    def socket(self) -> str:
        """The name of the socket that this process listens on."""
        ...

    @property
    def supervisor_pid(self) -> int:
        """Whose frames are the supervisor's."""
        ...

    def send(self, socket: str, frame: bytes) -> None:
        """Hand a frame to the transport; never raises, may be lost when the peer dies."""
        ...

    def forget(self, socket: str) -> None:
        """The process behind ``socket`` is gone: release what was queued for it."""
        ...

    def queued(self) -> int:
        """Frames not yet acknowledged by their receivers."""
        ...

    def beat(self) -> None:
        """The actor thread is alive."""
        ...

    def beat_loop(self) -> None:
        """The asyncio loop is alive; called in its thread."""
        ...

    def crash(self, cause: str) -> None:
        """Leave the cause where the supervisor finds it and end this process at once."""
        ...

    def leave(self) -> None:
        """End this process in order, after what is queued has been sent."""
        ...


@dataclass(frozen=True)
class Self:
    """What a cell is told about itself before it starts. ``heartbeat_s``: how often its threads show life."""

    name: str
    layer: str
    settings: Any
    incarnation: int
    heartbeat_s: float = 1.0
