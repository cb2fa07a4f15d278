"""Vaccines: what becomes of proposals to drop a payload from everybody, from the first word to the last.

A proposal passes the gate (``gate_vaccines.py``), is written down, and only then told to the reflex arc, which has the
kernel drop such packets. What was placed, and what somebody released, is remembered over restarts by the journal; as
long as that has not answered, new vaccines are told as additions, so that none in the kernel is lost.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.errors import Refused
from actors.core.messages import Answer, Entry, HostilePayload, Posture, ReflexEvent, SetVaccines
from actors.core.payloads import LONGEST_S, PROTOCOLS, name_of
from actors.hypodermis.gate_vaccines import Inoculation, VaccineBook, VaccineGate, from_body, to_body
from actors.hypodermis.guard import AutoimmuneGuard

KIND = "fingerprint"
#: Rows of one page of the journal, pages of one recall, and the pause before a memory is asked again. Seconds.
PAGE, PAGES, ASK_AGAIN_S, ANSWER_S = 300, 20, 2.0, 2.0
#: How long the reflex arc may take to tell what the kernel holds. Seconds.
HELD_S = 1.0
#: The same refusal is written down once in so many seconds; so many are remembered.
SAY_AGAIN_S, SAID_LIMIT = 60.0, 1_000
#: Sources whose packets were dropped by a vaccine of late, for ``why``.
STOPPED_LIMIT = 1_000

Commit = Callable[[list[Entry], Callable[[], object] | None], None]


class Vaccines:
    """Belongs to one cell, on its actor thread. ``write(entries, then)`` writes down and then goes on."""

    def __init__(
        self,
        cell: Cell,
        guard: AutoimmuneGuard,
        *,
        write: Commit,
        posture: Callable[[], Posture],
        alarm: Callable[[], None],
    ) -> None:
        self._cell, self._guard, self._write, self._posture, self._alarm = cell, guard, write, posture, alarm
        policy = cell.settings.permeability
        self.book = VaccineBook()
        self.gate = VaccineGate(self.book, guard, policy.vaccine_seconds, policy.management_ports)
        self._recalled = False
        self._timer = 0
        self._life, self._made = f"vaccines:{os.getpid()}:{time.time_ns()}", 0
        self._said: OrderedDict[str, float] = OrderedDict()
        self._stopped: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._seen: set[str] = set()

    # --- proposals -----------------------------------------------------------------------------------------------

    def proposed(self, wish: HostilePayload, source: str) -> None:
        """The macrophage has found, or the Langerhans cell was taught, that such packets are hostile."""
        now, monotonic = time.time(), time.monotonic()
        rested = self._guard.resting(monotonic)
        try:
            vaccine = self.gate.judge(wish, source, self._posture(), now, monotonic)
        except Refused as refused:
            self._cell.counters["vaccines_refused"] += 1
            if self._guard.resting(monotonic) and not rested:
                self._alarm()
            self._refused(wish, source, str(refused))
            return
        standing = self.book.get(vaccine.name)
        if standing is not None and vaccine.until_unix_s < standing.until_unix_s + 1.0:
            return
        self._cell.counters["vaccines"] += standing is None
        self.book.place(vaccine)
        self._write([self._entry(vaccine.name, to_body(vaccine))], self.tell)
        self._arm()

    def stopped(self, event: ReflexEvent) -> None:
        """The kernel program has dropped a packet by a vaccine."""
        self._stopped[event.subject] = (event.detail, event.seen_unix_s)
        self._stopped.move_to_end(event.subject)
        if len(self._stopped) > STOPPED_LIMIT:
            self._stopped.popitem(last=False)

    def _refused(self, wish: HostilePayload, source: str, problem: str) -> None:
        """Into the journal, once a minute for the same head."""
        name, now = name_of(wish.proto, wish.dest_port, wish.head), time.monotonic()
        if now - self._said.get(name, float("-inf")) < SAY_AGAIN_S:
            return
        self._said[name] = now
        self._said.move_to_end(name)
        if len(self._said) > SAID_LIMIT:
            self._said.popitem(last=False)
        body = {"refused": problem, "origin": source, "reason": wish.reason, "evidence": wish.evidence, "vaccine": name}
        self._write([self._entry(wish.seen_from, body, kind="verdict")], None)

    # --- people --------------------------------------------------------------------------------------------------

    def listed(self, owed: Deferred) -> None:
        """Answer with every vaccine, and with what the kernel says of each where the reflex arc is there."""

        def held(answer: Answer) -> None:
            rows = {} if answer.problem else {row["name"]: row for row in answer.value["vaccines"]}
            now = time.time()
            owed.reply(
                {
                    "vaccines": [_row(one, now, rows.get(one.name)) for one in self.book],
                    "total": len(self.book),
                    "limit": self.book.limit,
                }
            )

        self._cell.ask("reflex.vaccines", {}, held, timeout_s=HELD_S)

    def release(self, names: Any, by: str, owed: Deferred) -> None:
        """Take vaccines back, all that are named, and leave them out for a day."""
        if not isinstance(names, list) or not 1 <= len(names) <= self.book.limit:
            raise Refused("names must be a list of vaccines", remedy="`vaccines` lists them")
        if missing := [str(name)[:64] for name in names if not isinstance(name, str) or self.book.get(name) is None]:
            raise Refused(f"there is no vaccine {missing[0]}; nothing was released", remedy="`vaccines` lists them")
        now = time.time()
        gone = [one for name in names if (one := self.book.release(name, now)) is not None]
        self._cell.counters["vaccines_released"] += len(gone)

        def written() -> None:
            self.tell()
            owed.reply({"released": [one.name for one in gone]})

        body = {"released": True, "by": by}
        self._write([self._entry(one.name, to_body(one) | body) for one in gone], written)
        self._arm()

    def entries(self) -> list[Entry]:
        """All that stand, for a journal that begins anew."""
        return [self._entry(one.name, to_body(one)) for one in self.book]

    def account(self, address: str) -> list[str]:
        """What ``why`` says of a source whose packets were dropped by a vaccine of late."""
        number, at = self._stopped.get(address, (0, 0.0))
        vaccine = self.book.by_number(number) if number else None
        if vaccine is None:
            return []
        what = f"{PROTOCOLS[vaccine.proto]} port {vaccine.dest_port}"
        ago = max(0, round(time.time() - at))
        return [
            f"A packet of it to {what} was dropped {ago} s ago by the vaccine {vaccine.name}, "
            f"whoever sends such: {vaccine.reason}."
        ]

    # --- the kernel's side ---------------------------------------------------------------------------------------

    def tell(self, to: str = "") -> None:
        """All vaccines to the reflex arc and the Langerhans cell, or to one that has just started."""
        message = SetVaccines(vaccines=[one.order() for one in self.book], whole=self._recalled)
        self._cell.gauges["vaccines"] = len(self.book)
        if not to:
            self._cell.publish(message)
            return
        row = self._cell.peers.living(to)
        if row is not None and SetVaccines.__name__ in row.receives and (len(self.book) or self._recalled):
            self._cell.tell(to, message)

    def _arm(self) -> None:
        self._cell.cancel(self._timer)
        self._timer = 0
        if end := self.book.next_end():
            self._timer = self._cell.after(max(1.0, end - time.time()), self._expire)

    def _expire(self) -> None:
        """The kernel forgets by itself; the others are told."""
        if self.book.expire(time.time()):
            self.tell()
        self._arm()

    # --- memory --------------------------------------------------------------------------------------------------

    def recall(self, *, memory_expected: bool) -> None:
        """Ask the journal what stood before this life, until it answers."""
        if memory_expected:
            self._ask(before=0, page=1)
        else:
            self._recalled = True

    def _ask(self, before: int, page: int) -> None:
        args = {"kind": KIND, "limit": PAGE, "before": before}
        self._cell.ask("memory.history", args, partial(self._answered, page), timeout_s=ANSWER_S)

    def _answered(self, page: int, answer: Answer) -> None:
        if answer.problem:
            self._cell.after(ASK_AGAIN_S, self._recall_again)
            return
        rows, now = answer.value["history"], time.time()
        for row in rows:
            self._remember(row, now)
        if rows and page < PAGES and rows[-1]["at_unix_s"] > now - LONGEST_S:
            self._ask(rows[-1]["seq"], page + 1)
            return
        self._recalled = True
        self._seen.clear()
        self._arm()
        self.tell()

    def _recall_again(self) -> None:
        self._seen.clear()
        self._ask(before=0, page=1)

    def _remember(self, row: dict[str, Any], now: float) -> None:
        """One entry, the newest first: only the last word about a vaccine counts."""
        try:
            vaccine = from_body(row["body"])
        except (ValueError, KeyError):
            self._cell.counters["bad_memories"] += 1
            return
        name = vaccine.name
        if name in self._seen:
            return
        self._seen.add(name)
        if row["body"].get("released"):
            self.book.spare(name, row["at_unix_s"] + LONGEST_S)
            return
        unwanted = self.gate.objection(vaccine.proto, vaccine.dest_port, vaccine.head) or name in self.book
        if vaccine.until_unix_s > now and not unwanted and len(self.book) < self.book.limit:
            self.book.place(vaccine)

    def _entry(self, subject: str, body: dict[str, Any], kind: str = KIND) -> Entry:
        self._made += 1
        return Entry(key=f"{self._life}:{self._made}", kind=kind, at_unix_s=time.time(), subject=subject, body=body)


def _row(vaccine: Inoculation, now: float, held: dict[str, Any] | None) -> dict[str, Any]:
    """A vaccine as ``vaccines.list`` shows it. proven: the very program drops such a packet; None: nobody could say."""
    return {
        "name": vaccine.name,
        "protocol": PROTOCOLS[vaccine.proto],
        "dest_port": vaccine.dest_port,
        "head": vaccine.head.hex(),
        "begins_with": "".join(chr(byte) if 32 <= byte < 127 else "." for byte in vaccine.head),
        "origin": vaccine.origin,
        "reason": vaccine.reason,
        "evidence": vaccine.evidence,
        "seen_from": vaccine.seen_from,
        "since_unix_s": vaccine.since_unix_s,
        "until_unix_s": vaccine.until_unix_s,
        "left_s": round(max(0.0, vaccine.until_unix_s - now), 1),
        "hits": held["packets"] if held is not None else 0,
        "proven": held["proven"] if held is not None else None,
        "proof": held["detail"] if held is not None else "the reflex arc was not there to tell",
    }
