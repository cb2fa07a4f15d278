"""Macrophage — the signature inspection cell: digests payload samples, proposes what to do about their senders.

Opens the kernel's sample ring while it is root, then reads attackers' bytes as nobody: no capability, no other user's
files. What it looks for are YAML signatures (shipped ones in config/signatures, others in ``macrophage.signatures``)
and Suricata rules (``macrophage.rules``); a bad one is reported and skipped. Without the ring it is off and says so;
without hyperscan it is degraded and slow; when the kernel program comes later it has itself started anew.

Only packets that come in are sampled, at most ``Policy.sample_bytes`` of each side of a flow, so nothing here knows
whether the node has answered: a sender who forges addresses and guesses ports can have bytes inspected in another's
name. That is why datagrams never lead to a ban, and why policy's guard and tolerance stand behind every proposal.
Where the signature allows it, the first bytes of the hostile packet are proposed as a vaccine, whoever sends them.
"""

import ctypes
import gc
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.core.capability import service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused
from actors.core.messages import Answer, CellReport, CellState, HostilePayload, Verdict
from actors.dermis.inspection.packets import from_sample
from actors.dermis.inspection.proposals import Proposal, propose
from actors.dermis.inspection.quarantine import Taught, shelve
from actors.dermis.inspection.rulebook import SHIPPED, Rulebook, open_rulebook
from actors.dermis.inspection.samples import open_samples
from actors.dermis.inspection.signatures import Problem, Shelf, read_text
from actors.dermis.inspection.streams import Limits
from actors.dermis.inspection.suricata_rules import read_rules

#: At the first start of a node the kernel program is loaded at the same time; the ring is worth this wait.
PATIENCE_S = 3.0
#: Not before this age the cell has itself started anew for a ring that came late.
AGAIN_AFTER_S = 20.0
#: Samples taken at once, and how long one turn lasts: the heartbeat and other messages come in between.
TURN_SAMPLES, TURN_S = 16, 0.02
EXPIRE_EVERY_S = 5.0
#: Proposals leave at this pace, so that policy hears at most twenty a second.
PROPOSE_EVERY_S, PROPOSALS = 0.25, 5
WAITING = 1_024
#: The same of the same sender is not proposed again for so long.
AGAIN_S = 30.0
REMEMBERED = 4_096
ROWS = 500
CHECK_MAX = 1 << 20
TAUGHT_MAX = 64
REFLEX = "reflex_arc"


class Macrophage(Cell):
    """Turns payload into verdicts."""

    section = "macrophage"

    def before_drop(self) -> None:
        self._ring = open_samples(Path(self.settings.bpf_dir), PATIENCE_S)
        self._cache = Path(self.settings.state_dir) / "inspection"
        identity = service_identity(self.settings.user)
        with suppress(OSError):  # without it every start compiles again
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(self._cache, identity.uid, identity.gid, follow_symlinks=False)

    def on_start(self) -> None:
        self._began = time.monotonic()
        self._book: Rulebook | None = None
        self._loading = False
        self._waiting: OrderedDict[tuple[str, str], Proposal] = OrderedDict()
        self._proposed: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._found: dict[str, int] = {}
        self._taught: list[Taught] = []
        self._timer = 0
        self._samples_then = 0
        self._restarting = False
        self.healthy("the signatures are being read; samples wait in the kernel meanwhile")
        self._load(self._begin)

    def on_stop(self) -> None:
        if not isinstance(self._ring, str):
            if self._book is not None:
                self.unwatch(self._ring.fd)
            self._ring.close()

    @receives(CellReport)
    def on_cell_report(self, message: CellReport, source: str) -> None:
        """The kernel program is there after all: only a new start may open its ring."""
        late = isinstance(self._ring, str) and time.monotonic() - self._began >= AGAIN_AFTER_S
        if late and source == REFLEX and message.state is CellState.HEALTHY and not self._restarting:
            self._restarting = True
            self.ask("cell.restart", {"name": self.name}, self._restart_answered)

    def _restart_answered(self, answer: Answer) -> None:
        self._restarting = not answer.problem

    # --- rules --------------------------------------------------------------------------------------------------

    def _load(self, then: Callable[[Rulebook], object]) -> None:
        """Read and compile beside the actor thread; ``then(rulebook)`` follows on it."""
        self._loading = True

        def work() -> None:
            try:
                self.post(loaded, self._read())
            except Exception as error:
                self.post(self._broken, error)

        def loaded(book: Rulebook) -> None:
            self._loading = False
            _give_memory_back()
            then(book)

        threading.Thread(target=work, name="rulebook", daemon=True).start()

    def _broken(self, error: Exception) -> None:
        """What is wrong in the files never raises; this is a fault of ours, and the cell begins anew."""
        raise RuntimeError("the rules could not be read") from error

    def _read(self) -> Rulebook:
        mine = self.settings.macrophage
        return open_rulebook(
            [SHIPPED, *([mine.signatures] if mine.signatures else [])],
            [mine.rules] if mine.rules else [],
            mine.home_net,
            Limits(flows=mine.max_flows, total_bytes=mine.max_megabytes << 20),
            self._cache if self._cache.is_dir() else None,
            self._taught,
        )

    def _begin(self, book: Rulebook) -> None:
        self._use(book)
        if not isinstance(self._ring, str):
            self.watch(self._ring.fd, self._drain)
            self.every(EXPIRE_EVERY_S, self._expire)
            self._drain()

    def _use(self, book: Rulebook) -> None:
        """From now on this book; flows begin anew, and what was half seen of a pattern is forgotten."""
        before = self._book
        self._book = book
        if before is not None:
            self._take(list(before.detector.finish()) + before.watch.take())
        self.gauges["signatures"] = len(book.signatures)
        self.gauges["rules"] = len(book.rules)
        self.gauges["rule_problems"] = len(book.problems)
        for problem in book.problems[:20]:
            self.log.warning("rule_skipped", file=problem.file, name=problem.name, reason=problem.reason)
        if isinstance(self._ring, str):
            self.off(f"{self._ring}: no payload is inspected", "make `doctor` content with XDP, then restart")
        elif book.engine != "hyperscan":
            self.degraded("hyperscan is not installed: patterns are tried one by one", "install the extra `dpi`")
        else:
            skipped = f"{len(book.problems)} bad rules are skipped (rules.list names them)" if book.problems else ""
            self.healthy(skipped)

    # --- payload ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        book = self._book
        if book is None or isinstance(self._ring, str):
            return
        until = time.monotonic() + TURN_S
        while samples := self._ring.read(TURN_SAMPLES):
            found: list[Any] = []
            for head, payload in samples:
                found += book.detector.see(from_sample(head, payload))
            self._take(found + book.watch.take())
            self.counters["samples"] += len(samples)
            if time.monotonic() >= until:
                break  # the ring stays readable: we are called again after others had their turn
        self._count(book)

    def _expire(self) -> None:
        if self.counters["samples"] == self._samples_then and not isinstance(self._ring, str):
            self._ring.rest()
        self._samples_then = self.counters["samples"]
        if not self._loading and any(one.until_unix_s <= time.time() for one in self._taught):
            self._taught = [one for one in self._taught if one.until_unix_s > time.time()]
            self._load(self._use)
        if self._book is not None and len(self._book.detector.flows):
            self._take(self._book.detector.expire(time.monotonic()) + self._book.watch.take())
            self._count(self._book)

    def _count(self, book: Rulebook) -> None:
        counts = book.detector.counts
        self.gauges["flows"] = len(book.detector.flows)
        self.gauges["stream_bytes"] = book.detector.flows.bytes
        self.gauges["flows_evicted"] = counts.evicted_flows
        self.gauges["overlap_conflicts"] = counts.conflicts
        self.gauges["bytes_beyond_limit"] = counts.beyond_side
        self.gauges["segments_beyond_gaps"] = counts.too_many_gaps

    def _take(self, found: list[Any]) -> None:
        """Remember what was found; what is new leaves at once, the rest at its pace."""
        now = time.monotonic()
        for one in found:
            proposal = propose(one)
            self.counters["found"] += 1
            if proposal.name in self._found or len(self._found) < REMEMBERED:
                self._found[proposal.name] = self._found.get(proposal.name, 0) + 1
            key = (proposal.subject, proposal.name)
            if now - self._proposed.get(key, float("-inf")) < AGAIN_S or key in self._waiting:
                continue
            self._waiting[key] = proposal
            if len(self._waiting) > WAITING:
                self._waiting.popitem(last=False)
                self.counters["proposals_dropped"] += 1
        if self._waiting and not self._timer:
            self._propose()

    def _propose(self) -> None:
        self._timer = 0
        now, unix = time.monotonic(), time.time()
        for key in list(self._waiting)[:PROPOSALS]:
            proposal = self._waiting.pop(key)
            self._proposed[key] = now
            self._proposed.move_to_end(key)
            if len(self._proposed) > REMEMBERED:
                self._proposed.popitem(last=False)
            self.publish(
                Verdict(
                    subject=proposal.subject,
                    action=proposal.action,
                    reason=proposal.reason,
                    evidence=proposal.evidence,
                    score=proposal.score,
                    origin=self.name,
                    seen_unix_s=unix,
                )
            )
            self.counters["proposed"] += 1
            if proposal.head:
                self._propose_vaccine(proposal, unix)
            self._timer = self._timer or self.after(PROPOSE_EVERY_S, self._propose)

    def _propose_vaccine(self, proposal: Proposal, unix: float) -> None:
        """Such packets may be dropped from everybody. Policy asks again what may never be (payloads.py)."""
        self.counters["vaccines_proposed"] += 1
        self.publish(
            HostilePayload(
                proto=proposal.proto,
                dest_port=proposal.dest_port,
                head=proposal.head,
                reason=proposal.reason,
                evidence=proposal.evidence,
                score=proposal.score,
                seen_from=proposal.subject,
                seen_unix_s=unix,
            )
        )

    # --- telling ------------------------------------------------------------------------------------------------

    @answers("rules.list")
    def rules_list(self, args: dict[str, Any], by: str) -> Any:
        """What is looked for, how often it was found in this life of the cell, and what was skipped and why."""
        book = self._ready()
        limit = _limit(args)
        return {
            "engine": book.engine,
            "signatures": [
                {
                    "name": one.name, "severity": one.severity, "action": one.action, "file": one.file,
                    "ports": sorted(one.ports), "vaccinate": one.vaccinate, "learned_from": one.node,
                    "found": self._found.get(one.name, 0),
                }
                for one in book.signatures[:limit]
            ],
            "rules": [
                {"sid": one.sid, "rev": one.rev, "action": one.action, "msg": one.msg,
                 "found": self._found.get(f"sid {one.sid}", 0)}
                for one in book.rules[:limit]
            ],
            "problems": _problem_rows(book.problems[:limit]),
            "total": {
                "signatures": len(book.signatures), "rules": len(book.rules), "problems": len(book.problems),
            },
        }  # fmt: skip

    @answers("rules.reload")
    def rules_reload(self, args: dict[str, Any], by: str) -> Any:
        """Read all files again; the old rules serve until the new ones stand."""
        self._ready()
        if self._loading:
            raise Refused("the rules are being read already", remedy="wait a moment")
        answer = self.defer()

        def swap(book: Rulebook) -> None:
            self._use(book)
            answer.reply(_summary(book))

        self._load(swap)
        return answer

    @answers("rules.check")
    def rules_check(self, args: dict[str, Any], by: str) -> Any:
        """Read and judge, change nothing: ``text`` in the format ``yaml`` or ``suricata``, or, without a text, all
        files as ``rules.reload`` would. for_others: one signature, as strictly as other nodes will judge it."""
        text = args.get("text")
        if args.get("for_others"):
            return _check_for_others(text, self._ready())
        if text is not None:
            return _check_text(text, args.get("format") or "yaml")
        if self._loading:
            raise Refused("the rules are being read already", remedy="wait a moment")
        answer = self.defer()
        self._load(lambda book: answer.reply(_summary(book)))
        return answer

    @answers("rules.learned")
    def rules_learned(self, args: dict[str, Any], by: str) -> Any:
        """The signatures that other nodes taught, all of them (``quarantine.py``). Answers which were not taken."""
        taught = [_taught(row) for row in _rows(args.get("signatures"))]
        self._ready()
        if self._loading:
            raise Refused("the rules are being read already", remedy="wait a moment")
        if taught == self._taught:
            return {"problems": {}}
        self._taught = taught
        answer = self.defer()

        def swap(book: Rulebook) -> None:
            subjects = {one.subject for one in taught}
            problems = {one.file: one.reason for one in book.problems if one.file in subjects}
            book.problems = [one for one in book.problems if one.file not in problems]
            self._taught = [one for one in taught if one.subject not in problems]
            self._use(book)
            answer.reply({"problems": problems})

        self._load(swap)
        return answer

    def _ready(self) -> Rulebook:
        if self._book is None:
            raise Refused("the rules are being read for the first time", remedy="wait a moment")
        return self._book


def _give_memory_back() -> None:
    """Compiling takes some twenty megabytes for a moment, which the allocator would keep for ever."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _check_text(text: Any, form: Any) -> Any:
    if not isinstance(text, str) or len(text) > CHECK_MAX:
        raise Refused(f"the text to check must be at most {CHECK_MAX} characters")
    if form == "suricata":
        book = read_rules(text.splitlines())
        problems = [Problem("", f"line {one.line}, sid {one.sid}", one.reason) for one in book.refusals]
        return {"signatures": 0, "rules": len(book.rules), "problems": _problem_rows(problems[:ROWS])}
    if form == "yaml":
        from actors.dermis.inspection.rulebook import compiled

        shelf = Shelf()
        read_text(text, "", shelf)
        return _summary(compiled(shelf, [], Limits()))
    raise Refused(f"the format must be yaml or suricata, not {str(form)[:40]!r}")


def _check_for_others(text: Any, own: Rulebook) -> Any:
    from actors.dermis.inspection.rulebook import compiled

    if not isinstance(text, str) or len(text) > CHECK_MAX:
        raise Refused(f"the text to check must be at most {CHECK_MAX} characters")
    shelf = Shelf()
    shelve([Taught("", "this node", text, 0.0)], shelf)
    innocent = [miss for signature in own.signatures for miss in signature.miss]
    book = compiled(shelf, [], Limits(), innocent=innocent)
    return _summary(book) | {"names": [signature.name for signature in book.signatures]}


def _rows(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > TAUGHT_MAX or not all(isinstance(row, dict) for row in value):
        raise Refused(f"signatures must be a list of at most {TAUGHT_MAX}")
    return value


def _taught(row: dict[str, Any]) -> Taught:
    return Taught(str(row["subject"]), str(row["node"]), str(row["text"]), float(row["until_unix_s"]))


def _summary(book: Rulebook) -> dict[str, Any]:
    return {
        "signatures": len(book.signatures),
        "rules": len(book.rules),
        "engine": book.engine,
        "problems": _problem_rows(book.problems[:ROWS]),
    }


def _problem_rows(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"file": one.file, "name": one.name, "reason": one.reason} for one in problems]


def _limit(args: dict[str, Any]) -> int:
    limit = args.get("limit") or ROWS
    if type(limit) is not int or not 0 < limit <= ROWS:
        raise Refused(f"limit must be a number from 1 to {ROWS}")
    return limit
