"""Nurse: the Thespian actor around the supervisor. It can fork, and the launcher may call it into life."""

import os
from pathlib import Path
from typing import Any

from thespian.actors import Actor

from actors.core import frames
from actors.core.cell import Cell
from actors.core.frames import family
from actors.core.host import CellActor, Nursery, Seed
from actors.core.membrane import Self
from actors.core.sockets import SUPERVISOR_SOCKET, UnixAddress
from actors.core.supervisor import BasalLayer
from actors.core.system import single_threaded


class SupervisorActor(CellActor):
    """``CellActor`` with children."""

    def parents(self) -> tuple[int, ...]:
        return (*super().parents(), family.launcher.pid)

    def make_cell(self, me: Self) -> Cell:
        cell = BasalLayer(me, self)
        frames.OF_ADMIN.keep_from_forks()
        if self._seed.anatomy is not None:
            cell.anatomy = self._seed.anatomy
        self._hang_out_sign()
        return cell

    def _hang_out_sign(self) -> None:
        """A link of a fixed name to our socket: how clients find the supervisor that lives."""
        sign = Path(UnixAddress(SUPERVISOR_SOCKET).path)
        draft = sign.with_name(f"{self.socket}_sign")
        draft.unlink(missing_ok=True)
        draft.symlink_to(self.socket)
        draft.replace(sign)

    def asked_to_exit(self) -> None:
        """SIGTERM from outside. The cells die with us and the launcher starts everything anew: nothing to wait for."""
        os._exit(0)

    def child_ended(self) -> None:
        if isinstance(self._cell, BasalLayer):
            self._cell.look_for_dead()

    def fork(self, seed: Seed, first_frame: bytes) -> Any:
        """A new cell's process. Raises RuntimeError when this one has several threads: a fork copies their locks."""
        if not single_threaded():
            raise RuntimeError("the supervisor must have one thread when it forks")
        Nursery.seed = seed
        try:
            address = self.createActor(CellActor)
        finally:
            Nursery.seed = None
        Actor.send(self, address, first_frame)
        return self._myRef._child_procs[-1].childProc
