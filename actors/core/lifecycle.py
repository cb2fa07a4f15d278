"""Messages of the tissue itself: birth, introduction, credit, end. Cells never see them."""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from actors.core.messages import CellName, CellReport, CellState, Message, ShortText

#: A socket's file name inside the socket directory; nothing that could lead out of it.
SocketName = Annotated[str, Meta(pattern="^[a-z0-9]{1,32}$")]
Names = Annotated[list[ShortText], Meta(max_length=200)]


@dataclass(frozen=True, kw_only=True)
class Birth(Message):
    """Supervisor → newborn: begin. What the cell is made of it has inherited by the fork."""

    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    """Newborn → supervisor: started, listening there, with these receptors."""

    socket: SocketName
    pid: int
    receives: Names
    answers: Names
    report: CellReport


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """One row of the registry. up False: known, its receptors too, but not there at the moment (``socket`` empty)."""

    cell: CellName
    state: CellState
    incarnation: int
    up: bool = False
    socket: Annotated[str, Meta(pattern="^[a-z0-9]{0,32}$")] = ""
    pid: int = 0
    receives: Names = field(default_factory=list)
    answers: Names = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Introductions(Message):
    """Supervisor → every cell: rows that changed; to a newcomer the whole registry."""

    rows: Annotated[list[Introduction], Meta(max_length=200)]


@dataclass(frozen=True, kw_only=True)
class Credit(Message):
    """Receiver of a streamed batch → its sender: handled, send the next."""

    stream: int


@dataclass(frozen=True, kw_only=True)
class Reload(Message):
    """Supervisor → every cell: the settings may have changed. The base reads them again before a receptor runs."""


@dataclass(frozen=True, kw_only=True)
class Stop(Message):
    """Supervisor → cell: end in order, now."""


@dataclass(frozen=True, kw_only=True)
class StopNode(Message):
    """Launcher → supervisor: end every cell in reverse order of start, then yourself. From nobody else."""
