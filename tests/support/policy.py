"""Support for tests of policy: the cell in this process, a host that the test describes, a memory that it plays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from actors.core import packed
from actors.core.messages import (
    Answer,
    Ask,
    Enforce,
    EnforceAll,
    EnforceMany,
    Message,
    Order,
    PostureChanged,
    Proof,
    Proved,
    Record,
    Recorded,
    Release,
    SetTolerance,
)
from actors.hypodermis.hostfacts import FakeHost, HostFacts
from actors.hypodermis.permeability import Permeability
from actors.hypodermis.subjects import parse_prefix
from config.settings import PermeabilitySettings, Settings
from tests.support.core import Dish

ENFORCING = (Enforce, EnforceMany, EnforceAll, Release, SetTolerance, PostureChanged)
RUNGS = {"reflex_arc": "xdp", "keratinocyte": "nft"}


def p(text: str) -> Any:
    return parse_prefix(text)


class Host(FakeHost):
    """192.0.2.10 behind 192.0.2.1, administered from 203.0.113.99."""

    def __init__(self) -> None:
        facts = HostFacts(
            addresses=(p("192.0.2.10"), p("2001:db8::10")),
            networks=(p("192.0.2.0/24"), p("2001:db8::/64")),
            gateways=(p("192.0.2.1"),),
            resolvers=(p("198.51.100.53"),),
        )
        super().__init__(facts, {22: ["203.0.113.99"]})


class Skin:
    """Policy with memory and both enforcing cells beside it, all of them played by the test."""

    def __init__(
        self, directory: Path, *, memory: dict[str, Any] | None = None, rungs: bool = True, **policy: Any
    ) -> None:
        self.settings = Settings(
            state_dir=directory / "state", run_dir=directory / "run", permeability=PermeabilitySettings(**policy)
        )
        self.memory = memory
        self.acknowledges = True
        self.epoch = "first"
        self._acknowledged = 0
        self._answered = 0
        maker = type("Played", (Permeability,), {"make_host": Host, "proof_patience_s": 0.03, "recall_grace_s": 0.5})
        self.dish = Dish(maker, self.settings, name="permeability")
        self.dish.peer("mast_cell")
        if memory is not None:
            self.memory_up()
        if rungs:
            self.rung_up("reflex_arc")
            self.rung_up("keratinocyte")
        if memory is not None:
            self.until(lambda: self.cell.recall.done)
            self.play()

    @property
    def cell(self) -> Any:
        return self.dish.cell

    def memory_up(self, incarnation: int = 1) -> None:
        verbs = ("memory.posture", "memory.tolerance", "memory.bans", "memory.history")
        self.dish.peer("memory_cell", Record, answers=verbs, incarnation=incarnation)

    def rung_up(self, name: str, incarnation: int = 1) -> None:
        self.dish.peer(name, *ENFORCING, incarnation=incarnation)

    def play(self, seconds: float = 0.0) -> None:
        """Let everybody do what is due."""
        self.until(lambda: False, seconds)

    def until(self, done: Any, limit_s: float = 3.0) -> None:
        """Run the cell, with memory answering, until something is so."""
        want = limit_s
        while want >= 0 and not done():
            self.dish.run(0.005)
            self._remember()
            want -= 0.005
        self.dish.run(0.0)
        self._remember()
        self.dish.run(0.0)

    def ask(self, verb: str, by: str = "cli uid 0", **args: Any) -> Any:
        """Put a question; memory acknowledges meanwhile."""
        before = len(self.dish.sent(Answer))
        self.dish._asked += 1
        number = self.dish._asked
        if "gateway" not in self.dish._peers:
            self.dish.peer("gateway")
        self.dish.give(Ask(id=number, verb=verb, args=args, by=by), "gateway")
        self.until(lambda: any(m.id == number for m in self.dish.sent(Answer, "gateway")))
        assert len(self.dish.sent(Answer)) > before
        from actors.core.asks import raise_for

        return raise_for(next(m for m in self.dish.sent(Answer, "gateway") if m.id == number))

    def prove(self, *subjects: str, holds: bool = True, rungs: Any = RUNGS) -> None:
        """The kernel says what it holds."""
        for cell in rungs:
            proofs = [Proof(subject=subject, holds=holds, detail="asked") for subject in subjects]
            self.dish.give(Proved(rung=RUNGS[cell], proofs=proofs), cell)

    def orders(self, to: str = "keratinocyte") -> list[str]:
        """Subjects of all orders so far, in the order in which they were sent."""
        found: list[str] = []
        for message in self.dish.sent(Message, to):
            if isinstance(message, EnforceMany):
                found += packed.unpack(message.subjects)
            elif isinstance(message, Enforce):
                found += [order.subject for order in message.orders]
        return found

    def released(self, to: str = "reflex_arc") -> list[str]:
        return [subject for message in self.dish.sent(Release, to) for subject in message.subjects]

    def whole_state(self, to: str = "keratinocyte") -> list[Order]:
        """What the last file of the whole state holds."""
        message = self.dish.sent(EnforceAll, to)[-1]
        orders = msgspec.msgpack.decode(Path(message.path).read_bytes(), type=list[Order])
        assert len(orders) == message.count
        return orders

    def entries(self, kind: str = "") -> list[Any]:
        """What was written down; an entry about many counts once for each."""
        found = [e for m in self.dish.sent(Record, "memory_cell") for e in m.entries if not kind or e.kind == kind]
        return [
            replace(entry, subject=subject)
            for entry in found
            for subject in (packed.unpack(entry.subjects) if entry.subjects else [entry.subject])
        ]

    def stop(self) -> None:
        self.dish.stop()

    def _remember(self) -> None:
        if self.memory is None:
            return
        records = self.dish.sent(Record, "memory_cell")
        if self.acknowledges:
            for message in records[self._acknowledged :]:
                self.dish.give(Recorded(id=message.id, epoch=self.epoch), "memory_cell")
            self._acknowledged = len(records)
        asks = self.dish.sent(Ask, "memory_cell")
        for message in asks[self._answered :]:
            value = self.memory.get(message.verb)
            if message.verb == "memory.history":
                value = value or {"history": []}
            elif message.verb != "memory.posture":
                value = {message.verb.removeprefix("memory."): value or [], "next": ""}
            self.dish.give(Answer(id=message.id, value=value), "memory_cell")
        self._answered = len(asks)
