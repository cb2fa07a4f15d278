"""What people wish of bans and tolerance, and what they are shown of them: the verbs' work.

A wish is checked as a whole before anything is changed, and answered when it is on disk and, for a few subjects, when
the kernel has proved it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from actors.core.cell import Cell, Deferred
from actors.core.errors import Refused
from actors.core.messages import BATCH_LIMIT, Action, Posture
from actors.hypodermis import ledger, wishes
from actors.hypodermis.bulk import BulkBans, ManyWishes
from actors.hypodermis.decisions import Decisions
from actors.hypodermis.diary import Diary
from actors.hypodermis.gate import Gate, Wish
from actors.hypodermis.herald import Herald
from actors.hypodermis.journal_line import JournalLine
from actors.hypodermis.ledger import Ban, Ledger
from actors.hypodermis.long_lists import LongLists, name_of
from actors.hypodermis.posture_keeper import PostureKeeper
from actors.hypodermis.subjects import Prefix, parse_prefix
from actors.hypodermis.tolerance import Tolerance, Toleration
from actors.hypodermis.witness import Witness

#: So many bans in one wish are answered only when the kernel has proved them; their rows fit into one message.
PROVEN_AT_ONCE = 20
#: Subjects of one wish to block, as text; the brief rows of the answer fit into one message.
BULK_LIMIT = 1_000


class People:
    """Belongs to one cell, on its actor thread. ``look_around`` reads who the node is and who administers it."""

    def __init__(
        self,
        cell: Cell,
        *,
        gate: Gate,
        ledger: Ledger,
        tolerance: Tolerance,
        journal: JournalLine,
        diary: Diary,
        herald: Herald,
        witness: Witness,
        posture: PostureKeeper,
        decisions: Decisions,
        look_around: Callable[[bool], None],
    ) -> None:
        self._cell, self._gate, self._ledger, self._tolerance = cell, gate, ledger, tolerance
        self._journal, self._diary, self._herald, self._witness = journal, diary, herald, witness
        self._posture, self._decisions, self._look_around = posture, decisions, look_around
        self._lists = LongLists(ledger.limit)
        self._bulk = BulkBans(cell, ledger, journal, diary, herald, decisions.arm)

    # --- bans ----------------------------------------------------------------------------------------------------

    def block(self, args: dict[str, Any], by: str) -> Any:
        """Ban subjects: all of them or, when one is refused, none."""
        subjects, part_of = wishes.subjects(args, BULK_LIMIT), name_of(args.get("list"))
        wish = Wish(
            subject=subjects[0],
            action=Action.BAN,
            origin="operator",
            reason=wishes.sentence(args, "reason") or "blocked by hand",
            ttl_s=wishes.seconds(args, "ttl_s"),
            by=by or "somebody",
        )
        self._look_around(part_of not in self._lists)
        if part_of:
            kept = self._keep_part(part_of, subjects)
            if args.get("more"):
                return {"kept": kept}
            subjects = self._lists.take(part_of)
            self._gate.make_sure_of_room(subjects, self._bulk.to_come)
        elif len(subjects) > PROVEN_AT_ONCE:
            self._gate.admit_all(subjects, time.time(), self._bulk.to_come)
        else:
            return self._block_few(wish, subjects)
        owed = self._cell.defer()
        brief = partial(self._counted if "rows" in args else self._rows, subjects)
        self._bulk.take(ManyWishes(wish, subjects, owed, brief))
        return owed

    def _block_few(self, wish: Wish, subjects: list[Prefix]) -> Deferred:
        more = "; nothing was changed" if len(subjects) > 1 else ""
        now, monotonic = time.time(), time.monotonic()
        try:
            bans = [self._gate.judge(replace(wish, subject=s), self._posture.posture, now, monotonic) for s in subjects]
        except Refused as refused:
            raise Refused(f"{refused}{more}", remedy=refused.remedy) from refused
        owed, witness = self._cell.defer(), self._witness
        self._cell.counters["bans_by_hand"] += len(bans)
        entries = [self._diary.ban(self._ledger.place(ban)) for ban in bans]
        rows, proved = partial(self._rows, subjects), partial(witness.proven, subjects)
        self._decisions.commit(entries, subjects, lambda: witness.owe(owed, proved, rows))
        return owed

    def _keep_part(self, part_of: str, subjects: list[Prefix]) -> int:
        """A part of a long list: judged at once, carried out with the last one."""
        try:
            self._gate.admit_all(subjects, time.time(), self._bulk.to_come)
            return self._lists.add(part_of, subjects, time.monotonic())
        except Refused:
            self._lists.forget(part_of)
            raise

    def release(self, args: dict[str, Any], by: str) -> Deferred:
        """Take bans back. One that stands for a whole prefix must be named as such."""
        subjects = wishes.subjects(args)
        results: list[dict[str, Any]] = []
        for subject in subjects:
            note = "" if subject in self._ledger.bans else self._not_banned(subject)
            results.append({"subject": subject.text, "released": not note} | ({"note": note} if note else {}))
        released = [subject for subject in subjects if subject in self._ledger.bans]
        if len(subjects) == 1 and not released and (wider := self._ledger.covering(subjects[0])) is not None:
            raise Refused(
                f"{subjects[0].text} is blocked as part of {wider.subject.text}; nothing was released",
                remedy=f"release {wider.subject.text}, or let the one pass with: tolerate {subjects[0].text}",
            )
        owed = self._cell.defer()
        for subject in released:
            self._ledger.offences.forgive(subject)
        self._decisions.release(
            released, "released by hand", by, then=lambda: owed.reply({"results": results}), tell=subjects
        )
        return owed

    def page(self, limit: int, after: str) -> dict[str, Any]:
        """A page of the bans, newest first."""
        if after and not after.isdigit():
            after = self._ledger.cursor_of(parse_prefix(after)) or "0"
        self._decisions.expire()
        bans, following = self._ledger.page(limit, after)
        now, rungs = time.time(), self._witness.rungs()
        rows = wishes.fitting([ledger.row(ban, now, rungs) for ban in bans])
        if len(rows) < len(bans):
            following = str(bans[len(rows) - 1].serial)
        return {"blocks": rows, "total": len(self._ledger), "next": following}

    def _rows(self, subjects: list[Prefix]) -> dict[str, Any]:
        now, rungs = time.time(), self._witness.rungs()
        bans = [ban for subject in subjects if (ban := self._ledger.get(subject)) is not None]
        if len(bans) > PROVEN_AT_ONCE:  # the full rows of many would outgrow the message
            brief = [{"subject": ban.subject.text, "until_unix_s": ban.until_unix_s} for ban in bans]
            return {"results": brief, "total": len(self._ledger)}
        results = [ledger.row(ban, now, rungs) for ban in bans]
        if not rungs:
            results = [result | {"note": "no layer of the kernel is there to enforce it yet"} for result in results]
        elif self._posture.posture is Posture.EXPLORE:
            results = [result | {"note": "the posture explore only observes"} for result in results]
        return {"results": results, "total": len(self._ledger)}

    def _counted(self, subjects: list[Prefix]) -> dict[str, Any]:
        """For who sent rows and knows them himself."""
        ban: Ban | None = self._ledger.get(subjects[-1])
        until = ban.until_unix_s if ban is not None else 0.0
        return {"blocked": len(subjects), "until_unix_s": until, "total": len(self._ledger)}

    def _not_banned(self, subject: Prefix) -> str:
        wider = self._ledger.covering(subject)
        return f"it is blocked as part of {wider.subject.text}" if wider is not None else "it was not blocked"

    # --- tolerance -----------------------------------------------------------------------------------------------

    def tolerate(self, args: dict[str, Any], by: str) -> Deferred:
        """Never block these; ``remove`` takes them off the list. All of them or, when one is refused, none."""
        subjects = wishes.subjects(args)
        for_s, comment = wishes.seconds(args, "for_s"), wishes.sentence(args, "comment")
        now, remove = time.time(), bool(args.get("remove"))
        until = now + for_s if for_s else 0.0
        before = {subject: self._tolerance.get(subject) for subject in subjects}
        try:
            for subject in subjects:
                if remove:
                    self._tolerance.remove(subject)
                else:
                    self._tolerance.add(Toleration(subject, comment, by, now, until))
        except Refused:
            self._put_back(before)
            raise
        entries = [self._diary.tolerance(subject, self._tolerance.get(subject)) for subject in subjects]
        freed = [] if remove else [ban for subject in subjects for ban in self._ledger.bans.within(subject)]
        owed = self._cell.defer()
        results = [{"subject": s.text, "until_unix_s": until} for s in subjects]
        answer = {"results": results, "released": [ban.text for ban in freed[:BATCH_LIMIT]]}
        self._journal.write(entries, self._herald.tolerance)
        self._decisions.release(freed, "tolerated from now on", by, then=lambda: owed.reply(answer))
        self._decisions.arm()
        return owed

    def tolerance_list(self) -> dict[str, Any]:
        """The operators' list, and beside it what the node keeps itself from banning."""
        self._look_around(False)
        self._decisions.expire()
        return {
            "tolerance": [
                {
                    "subject": entry.prefix.text,
                    "comment": entry.comment,
                    "origin": entry.origin,
                    "by": entry.by,
                    "since_unix_s": entry.since_unix_s,
                    "until_unix_s": entry.until_unix_s,
                }
                for entry in sorted(self._tolerance, key=lambda entry: entry.prefix)
            ],
            "never_banned": [{"subject": host.text, "why": what} for host, what in self._gate.safety],
        }

    def _put_back(self, before: dict[Prefix, Toleration | None]) -> None:
        for subject, entry in before.items():
            if entry is not None:
                self._tolerance.add(entry)
            elif self._tolerance.get(subject) is not None:
                self._tolerance.remove(subject)
