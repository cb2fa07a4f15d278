"""The inquiry behind ``why``: asks every cell that knows something of an address, and puts the account together."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.messages import Answer
from actors.hypodermis import explain
from actors.hypodermis.explain import Case
from actors.hypodermis.gate import Gate
from actors.hypodermis.ledger import Ledger
from actors.hypodermis.posture_keeper import PostureKeeper
from actors.hypodermis.remembered import Remembered
from actors.hypodermis.subjects import Prefix, of_source
from actors.hypodermis.tolerance import Tolerance
from actors.hypodermis.vaccines import Vaccines
from actors.hypodermis.witness import Witness

#: A cell that has not answered by then is named as not heard.
LIMIT_S = 1.0


class Inquiry:
    """Belongs to one cell, on its actor thread. ``look_around`` and ``expire`` bring what is known up to date."""

    def __init__(
        self,
        cell: Cell,
        *,
        gate: Gate,
        ledger: Ledger,
        tolerance: Tolerance,
        posture: PostureKeeper,
        witness: Witness,
        vaccines: Vaccines,
        remembered: Remembered,
        up_to_date: Callable[[], None],
    ) -> None:
        self._cell, self._gate, self._ledger, self._tolerance = cell, gate, ledger, tolerance
        self._posture, self._witness, self._vaccines = posture, witness, vaccines
        self._remembered, self._up_to_date = remembered, up_to_date

    def why(self, address: Prefix) -> Deferred:
        """The account of one address; the answer is owed."""
        owed = self._cell.defer()
        told: dict[str, Answer] = {}
        asked: dict[str, dict[str, Any]] = {part: {"address": address.text} for part in explain.PARTS}
        asked["history"] = {"subject": self._named(address).text, "limit": 20}

        def answered(part: str, answer: Answer) -> None:
            told[part] = answer
            if len(told) == len(explain.PARTS):
                self._remembered.then(owed, lambda: self._account(address, told))

        for part, verb in explain.PARTS.items():
            row = self._cell.peers.answering(verb)
            if row is None or not row.up:  # asking would only cost the second
                told[part] = Answer(id=0, code="unavailable", problem="nobody is there to answer")
        if len(told) == len(explain.PARTS):
            self._remembered.then(owed, lambda: self._account(address, told))
        for part in explain.PARTS.keys() - told.keys():
            self._cell.ask(explain.PARTS[part], asked[part], partial(answered, part), timeout_s=LIMIT_S)
        return owed

    def _account(self, address: Prefix, told: dict[str, Answer]) -> dict[str, Any]:
        self._up_to_date()
        now = time.time()
        case = Case(
            address=address,
            ban=self._ledger.covering(address),
            spared=self._tolerance.covering(address, now),
            safety=self._gate.safety,
            objection=self._gate.objection(address, now)[0],
            posture=self._posture.state,
            rungs=self._witness.rungs(),
            told=told,
            now=now,
            stopped=self._vaccines.account(address.text),
        )
        return explain.account(case)

    def _named(self, address: Prefix) -> Prefix:
        """By which name the journal knows this address."""
        ban = self._ledger.covering(address)
        if ban is not None:
            return ban.subject
        wide = of_source(address)
        return wide if address.version == 6 and not self._gate.safety.on_link(wide) else address
