"""The places of the kernel program: where it hangs and on which rung, what leaves there, and the filter's hooks below.

Belongs to the reflex arc, on its actor thread; slow calls on the data plane go to the cell's worker. Nothing here takes
the program away, except the operator's explicit choice of rungs without it.
"""

import time
from collections.abc import Callable, Iterable

from actors.core.cell import Cell
from actors.core.messages import HookAnswered, HookWanted
from actors.epidermis import reflex_work
from actors.epidermis.egress_sight import EgressSight
from actors.epidermis.interfaces import existing, protected_interfaces
from actors.epidermis.ladder import Ladder
from actors.epidermis.plane_desk import PlaneDesk
from bpf.dataplane import DataPlane, DataPlaneError, Egress


class Places:
    """``stood`` is called when packets begin to meet the program somewhere, ``changed`` when the state may read
    otherwise."""

    def __init__(self, cell: Cell, desk: PlaneDesk, *, stood: Callable[[], None], changed: Callable[[], None]) -> None:
        self._cell, self._desk, self._stood, self._changed = cell, desk, stood, changed
        self.ladders: dict[str, Ladder] = {}
        self.sight = EgressSight()
        self._hooks_asked: list[str] = []
        self._hooks_answered = True

    @property
    def on_program(self) -> bool:
        """Whether packets meet the kernel program anywhere."""
        return any(ladder.on_program for ladder in self.ladders.values())

    def find(self) -> None:
        """Which interfaces face the outside. Raises Unavailable and OSError."""
        settings = self._cell.settings
        self.ladders = {name: Ladder(name, settings.reflex.rungs) for name in protected_interfaces(settings.interfaces)}

    def hang(self, plane: DataPlane) -> None:
        """Everywhere, at once: for the start. Adopting costs a few milliseconds."""
        self.sight.wanted = self._cell.settings.reflex.egress_flows
        self._take_hung(reflex_work.hang_all(plane, self._wishes()), look_out=False)
        self._take_egress(reflex_work.account_all(plane, self._egress_due(), wanted=self.sight.wanted))

    def fall(self, why: str) -> None:
        """There is no kernel program to hang."""
        for ladder in self.ladders.values():
            ladder.falls(dict.fromkeys(ladder.kernel_rungs, why), time.monotonic())
        self.ask_hooks()

    def check(self) -> None:
        """Does the program still hang where it should? Devices go and come back, and others may detach it."""
        plane = self._desk.plane
        if plane is None:
            return
        self.sight.wanted = self._cell.settings.reflex.egress_flows
        present = set(existing(tuple(self.ladders)))
        try:
            missing = plane.keep_pins()
            hanging, leaving = reflex_work.standing(plane.attachments()), plane.egress()
        except DataPlaneError as error:
            self._cell.log.warning("attachments_unknown", problem=str(error))
            return
        if missing:
            self._repair(f"{missing} pins were removed from outside; they are back")
        for name, ladder in self.ladders.items():
            if name not in present:
                if not ladder.gone:
                    self._cell.log.warning("interface_gone", interface=name)
                    ladder.vanished()
                    self.sight.lost(name)
                continue
            ladder.returned()
            if ladder.on_program and name not in hanging:
                self._repair(f"the kernel program was taken off {name}; it is being hung in again")
                ladder.lost()
                self._changed()
            if self.sight.sees(name) and name not in leaving:
                self._repair(f"the program that accounts what leaves {name} was taken off; it is being hung in again")
                self.sight.lost(name)
        self._hang_due(plane)

    def _repair(self, what: str) -> None:
        self._cell.counters["repairs"] += 1
        self._cell.log.warning("repair", what=what)

    # --- what comes -------------------------------------------------------------------------------------------------

    def _wishes(self) -> dict[str, reflex_work.Wish]:
        now = time.monotonic()
        due = {name: ladder for name, ladder in self.ladders.items() if ladder.due(now)}
        return {name: reflex_work.Wish(ladder.kernel_rungs, climb=ladder.on_program) for name, ladder in due.items()}

    def _hang_due(self, plane: DataPlane) -> None:
        wishes = self._wishes()
        if wishes:
            self._desk.lend(lambda future: self._take_hung(future.result()), reflex_work.hang_all, wishes)
        else:
            self._leave_unwanted(plane)
            self._leave_alone(plane)
            self._look_out()
            self._changed()

    def _take_hung(self, results: list[reflex_work.Hung], *, look_out: bool = True) -> None:
        now = time.monotonic()
        for result in results:
            ladder = self.ladders[result.interface]
            if result.gone:
                ladder.vanished()
            elif result.rung:
                if ladder.stands(result.rung, result.refused, now):
                    self._cell.log.info("rung", interface=result.interface, rung=result.rung, refused=result.refused)
                    self._stood()
            else:
                ladder.falls(result.refused, now)
                self._cell.counters["falls"] += 1
        self.ask_hooks()
        if look_out:
            self._look_out()
        self._changed()

    def _leave_unwanted(self, plane: DataPlane) -> None:
        """The operator chose rungs without the program: take it off once another rung carries."""
        for name, ladder in self.ladders.items():
            if not ladder.kernel_rungs and not ladder.gone:
                if not ladder.standing:
                    ladder.falls({}, time.monotonic())
                    self.ask_hooks()
                elif plane.detach(name):
                    self._cell.log.warning("detached", interface=name, rung=ladder.standing)

    # --- what leaves ------------------------------------------------------------------------------------------------

    def _egress_due(self) -> list[str]:
        """Only beside the program: records of what leaves alone would be as one-sided."""
        carrying = [name for name, ladder in self.ladders.items() if ladder.on_program]
        return self.sight.due(carrying, time.monotonic())

    def _leave_alone(self, plane: DataPlane) -> None:
        """Where the program hangs no more, what leaves would be the one side that is seen."""
        for name, ladder in self.ladders.items():
            if self.sight.sees(name) and ladder.standing and not ladder.on_program:
                reflex_work.account_all(plane, [name], wanted=False)
                self.sight.lost(name)

    def _look_out(self) -> None:
        due = self._egress_due()
        if due:
            wanted = self.sight.wanted
            self._desk.lend(
                lambda future: self._take_egress(future.result()), reflex_work.account_all, due, wanted=wanted
            )

    def _take_egress(self, results: Iterable[Egress]) -> None:
        for found in results:
            if self.sight.took(found, time.monotonic()):
                sides = "both" if found.way else "one"
                self._cell.log.info("flow_records", interface=found.interface, sides=sides, refused=found.refused)
        self._changed()

    # --- the hooks of the filter below ------------------------------------------------------------------------------

    def ask_hooks(self, *, again: bool = False) -> None:
        """Have the keratinocyte hold the nftables hooks where no rung of the program holds."""
        wanted = sorted(name for name, ladder in self.ladders.items() if ladder.wants_hook)
        if wanted != self._hooks_asked or (again and wanted):
            self._hooks_asked, self._hooks_answered = wanted, not wanted
            self._cell.publish(HookWanted(interfaces=wanted))

    def ask_hooks_again(self) -> None:
        """For as long as nobody has answered."""
        if not self._hooks_answered:
            self.ask_hooks(again=True)

    def hook_answered(self, message: HookAnswered) -> None:
        self._hooks_answered = True
        for name, ladder in self.ladders.items():
            if ladder.hook(name in message.interfaces, message.prerouting, message.refused.get(name, "")):
                self._cell.log.warning("rung", interface=name, rung=ladder.standing, refused=ladder.refused)
        self._changed()
