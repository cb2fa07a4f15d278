"""Langerhans — the threat-intelligence cell: what this node learned becomes antigens; what others learned, vaccines.

A sensor's proposal is remembered for a minute; when policy enforces it, it becomes an antigen: written to the journal
first, then sent from there to the other nodes. What they send is believed as ``immunity.py`` says and proposed to
policy with the name of the node that learned it: tolerance and the node's own safety still have the last word.
It learns sources, payloads that the kernel knows again, and signatures (``antigen_signatures.py``).
Without Kafka the node keeps what it learns to itself; without its key it neither tells nor believes. No privileges.
"""

import asyncio
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from actors.core import packed
from actors.core.capability import service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused
from actors.core.messages import (
    Action,
    Answer,
    Enforce,
    EnforceMany,
    Entry,
    HostilePayload,
    Record,
    Recorded,
    ReflexEvents,
    SetVaccines,
    Verdict,
)
from actors.dermis import antigen, antigen_keys
from actors.dermis.antigen import SIGNATURE_MAX, Antigen, Payload
from actors.dermis.antigen_courier import Courier
from actors.dermis.antigen_keys import KeyRing, KeyRingError, NodeKey
from actors.dermis.antigen_signatures import MACROPHAGE, LearnedSignatures
from actors.dermis.immunity import Immunity, Lesson
from actors.dermis.lymph import KafkaLymph, Lymph, Parcel
from actors.dermis.traces import Trace, Traces

MEMORY = "memory_cell"
#: Entries of one record, and lessons of one turn of the actor: far below what a message carries and a handler may take.
PART = 50
#: A source is told of again after so long at the earliest; alerts of one source and reason likewise. Seconds.
TELL_AGAIN_S, ALERT_AGAIN_S = 300.0, 10.0
ALERTS_A_SECOND = 10
#: The journal is asked for what was missed, also when nothing new was learned. Seconds.
SWEEP_EVERY_S = 60.0
RETRY_S = 2.0
#: So long is waited for memory at the start; then new lessons of others are heard, and older ones wait for it.
RECALL_LIMIT_S = 2.0
RECALL_ROWS = 20_000
#: Lessons from before this life that wait for memory to say whether they were applied already; the oldest go.
HELD_LIMIT = 5_000
#: Judging a signature compiles it. Seconds.
JUDGED_S = 10.0
PAGE_LIMIT = 200
#: Bytes of one answer: a message has 128 kB.
ANSWER_BYTES = 100_000


class Langerhans(Cell):
    """Captures, tells, listens and proposes."""

    uses_asyncio = True
    make_lymph: Callable[[Sequence[str], str], Lymph] = KafkaLymph

    def before_drop(self) -> None:
        """Make the key, and give what lies beside it to whoever this cell becomes."""
        directory = self._directory()
        try:
            antigen_keys.make_key(directory / "node.key")
            if os.geteuid() == 0:
                identity = service_identity(self.settings.user)
                for path in (directory, *directory.iterdir()):
                    if not path.is_symlink():
                        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
        except OSError as exc:
            self.log.warning("key_directory", path=str(directory), problem=exc.strerror)

    def on_start(self) -> None:
        lymph = self.settings.lymph
        self.node = antigen.node_name(lymph.node, socket.gethostname())
        self._traces = Traces()
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._alerts = (0.0, 0)
        self._records = 0
        self._courier: Courier | None = None
        self._key: NodeKey | None = None
        self._signatures = LearnedSignatures(self, self._write_down)
        self._born = time.time()
        self._remembered = self._listening = False
        self._applied: set[str] = set()
        self._held: deque[Lesson] = deque(maxlen=HELD_LIMIT)
        servers = self.settings.kafka.bootstrap_servers
        if not servers:
            self.healthy("no Kafka broker is named: what is learned here stays here")
            return
        missing = [name for name in ("aiokafka", "cryptography") if find_spec(name) is None]
        if missing:
            self.off(f"{' and '.join(missing)} cannot be imported", "install the extra `kafka`")
            return
        try:
            self._key = NodeKey(self.node, self._directory() / "node.key")
            self._ring = KeyRing(self._directory() / "keyring", lymph.keys)
        except KeyRingError as problem:
            self.degraded(f"{problem}; nothing is shared", problem.remedy)
            return
        self._ring.add(self.node, self._key.public)
        self._immunity = Immunity(self.node, self._ring, lymph.trusted_nodes, lymph.quorum)
        self._lymph = self.make_lymph(servers, f"tegumentar-{self.node}")
        self.degraded("connecting to Kafka", "wait a moment")
        self._known = 0
        self._recall(before=0)
        self._courier = Courier(self, self._key, self._lymph.send)
        self.every(SWEEP_EVERY_S, self._courier.go)

    # --- what happens here ---------------------------------------------------------------------------------------

    @receives(Verdict)
    def on_verdict(self, message: Verdict, source: str) -> None:
        if source == self.name or message.action is not Action.BAN:
            return
        trace = Trace(source, message.reason, message.evidence, message.score, 0, time.time())
        self._traces.put(message.subject, trace)
        self._alert([(message.subject, trace)])

    @receives(ReflexEvents)
    def on_reflex_events(self, message: ReflexEvents, source: str) -> None:
        felt = []
        for event in message.events:
            evidence = f"{event.packets} packets when the reflex fired"
            reason = f"kernel reflex {event.reflex}"
            trace = Trace(source, reason, evidence, 1.0, event.dest_port, event.seen_unix_s)
            if event.banned:
                self._traces.put(event.subject, trace)
            felt.append((event.subject, trace))
        self._alert(felt)

    @receives(HostilePayload)
    def on_hostile_payload(self, message: HostilePayload, source: str) -> None:
        if source == self.name:
            return
        payload = Payload(proto=message.proto, dest_port=message.dest_port, head=message.head.hex())
        trace = Trace(source, message.reason, message.evidence, message.score, message.dest_port, time.time(), payload)
        self._traces.put(payload.name, trace)

    @receives(SetVaccines)
    def on_vaccines(self, message: SetVaccines, source: str) -> None:
        """Policy has agreed to a vaccine against what a sensor saw a moment ago."""
        self._enforced([order.name for order in message.vaccines])

    @receives(Enforce)
    def on_enforce(self, message: Enforce, source: str) -> None:
        """Policy has agreed: what a sensor saw a moment ago is now something to teach."""
        banned = []
        for order in message.orders:
            if order.action is Action.BAN:
                banned.append(order.subject)
            else:
                self._traces.take(order.subject, time.time())
        self._enforced(banned)

    @receives(EnforceMany)
    def on_enforce_many(self, message: EnforceMany, source: str) -> None:
        """A person's list may name somebody whom a sensor has just seen."""
        if self._traces:
            self._enforced(packed.unpack(message.subjects))

    def _enforced(self, subjects: list[str]) -> None:
        now = time.time()
        learned = []
        for subject in subjects:
            trace = self._traces.take(subject, now)
            if trace is not None and self._due(subject, "", now, TELL_AGAIN_S):
                learned.append(self._made(subject, trace, now))
        if learned:
            self.counters["antigens"] += len(learned)
            self._record("antigen", learned)
            if self._key is not None:
                for one in learned:
                    self._immunity.own(one, now)

    def _alert(self, felt: list[tuple[str, Trace]]) -> None:
        """Tell the others what was felt; of a storm only a part, and the rest is counted."""
        if self._key is None or not self.settings.lymph.share:
            return
        now = time.time()
        fresh = [(subject, trace) for subject, trace in felt if self._due(subject, trace.reason, now, ALERT_AGAIN_S)]
        second, count = self._alerts
        if not 0 <= now - second < 1.0:
            second, count = now, 0
        room = max(0, ALERTS_A_SECOND - count)
        self._alerts = (second, count + len(fresh[:room]))
        self.counters["alerts"] += len(fresh[:room])
        self.counters["alerts_untold"] += len(fresh[room:])
        if fresh[:room]:
            self._record("alert", [self._made(subject, trace, now) for subject, trace in fresh[:room]])

    def _made(self, subject: str, trace: Trace, now: float) -> Antigen:
        return Antigen(
            id=antigen.make_id(self.node, f"{subject}|{trace.reason}", now),
            subject=subject,
            reason=trace.reason,
            evidence=trace.evidence[:600],
            score=trace.score,
            sensor=trace.sensor,
            at_unix_s=now,
            expires_unix_s=now + self.settings.lymph.vaccine_seconds,
            dest_port=trace.dest_port,
            payload=trace.payload,
        )

    def _due(self, subject: str, reason: str, now: float, pause_s: float) -> bool:
        """Whether this was not said a moment ago; notes that it is said now."""
        name = (subject, reason)
        if now - self._told.get(name, 0.0) < pause_s:
            return False
        self._told[name] = now
        self._told.move_to_end(name)
        if len(self._told) > 20_000:
            self._told.popitem(last=False)
        return True

    # --- journal, then the others --------------------------------------------------------------------------------

    def _record(self, kind: str, made: list[Antigen]) -> None:
        entries = [
            Entry(
                key=f"{kind}:{one.id}",
                kind=kind,
                at_unix_s=one.at_unix_s,
                subject=one.subject,
                body=antigen.to_entry_body(one),
            )
            for one in made
        ]
        self._write_down(entries)

    def _write_down(self, entries: list[Entry]) -> None:
        """To the journal; held for a moment while memory is being restarted."""
        for start in range(0, len(entries), PART):
            self._records += 1
            self.publish(Record(id=self._records, entries=entries[start : start + PART]))

    @receives(Recorded)
    def on_recorded(self, message: Recorded, source: str) -> None:
        self.counters["records_late"] += bool(message.problem)
        self._go()

    def on_peer_up(self, name: str) -> None:
        if name == MEMORY:
            self._go()
        elif name == MACROPHAGE:
            self._signatures.macrophage_up()

    def _go(self) -> None:
        if self._courier is not None:
            self._courier.go()

    # --- what others say -----------------------------------------------------------------------------------------

    def _recall(self, before: int) -> None:
        args = {"kind": "vaccine", "limit": 500, "before": before}
        self.ask("memory.history", args, self._recalled, timeout_s=RECALL_LIMIT_S)

    def _recalled(self, answer: Answer) -> None:
        """Lessons that were applied before a restart are not applied again: somebody may have released them since."""
        if answer.problem and MEMORY not in self.settings.supervisor.off:
            self._known = 0
            self._listen()
            self.after(RETRY_S, self._recall, 0)
            return
        rows, now = [] if answer.problem else answer.value["history"], time.time()
        for row in rows:
            self._applied.add(str(row["body"].get("id", "")))
            self._signatures.remember(row, now)
        self._known += len(rows)
        if rows and rows[-1]["at_unix_s"] > now - antigen.MAX_LIFE_S and self._known < RECALL_ROWS:
            self._recall(before=rows[-1]["seq"])
            return
        for identity in self._applied:
            self._immunity.recall(identity)
        held, self._held = [one for one in self._held if one.antigen.id not in self._applied], deque()
        self._remembered, self._applied = True, set()
        self._signatures.remembered()
        self._write_down([entry for lesson in held if (entry := self._vaccinate(lesson, now)) is not None])
        self._listen()

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self.call(self._lymph.run, self._hand_over, partial(self.post, self._mode), then=self._ended)

    async def _hand_over(self, parcels: list[Parcel]) -> None:
        """In the loop: give the actor thread one part after the other, so that a flood of lessons stops nobody."""
        for start in range(0, len(parcels), PART):
            taken: Future[None] = Future()
            self.post(self._heard, parcels[start : start + PART], taken)
            await asyncio.wrap_future(taken)

    def _ended(self, future: "Future[Any]") -> None:
        """The listener never ends by itself: what ends it is a defect, and the cell starts anew."""
        if not future.cancelled():
            future.result()

    def _mode(self, reason: str, remedy: str) -> None:
        self.gauges["connected"] = float(not reason)
        if self._courier is not None:
            self._courier.connected = not reason
        if reason:
            self.degraded(reason, remedy)
        elif self._ring.problem:
            self.degraded(self._ring.problem, "see docs/IMMUNITY.md for its form")
        else:
            known = len(self._ring.nodes) - 1
            self.healthy("" if known else "no other node's key is known: what others tell is refused")
        self._go()

    def _heard(self, parcels: list[Parcel], taken: "Future[None]") -> None:
        now = time.time()
        vaccines: list[Entry] = []
        for parcel in parcels:
            lesson = self._immunity.take(parcel.topic, parcel.payload, now)
            if lesson is not None:
                self.counters["antigens_heard"] += 1
                if lesson.applies and not self._remembered and lesson.antigen.at_unix_s < self._born:
                    self._held.append(lesson)
                elif lesson.applies and (entry := self._vaccinate(lesson, now)) is not None:
                    vaccines.append(entry)
        for reason, count in self._refused().items():
            self.counters[f"refused_{reason}"] = count
        self.gauges["subjects_heard_of"] = self._immunity.waiting
        self._write_down(vaccines)
        taken.set_result(None)

    def _vaccinate(self, lesson: Lesson, now: float) -> Entry | None:
        """Propose to policy what another node has learned, in that node's name. None: it is written down later."""
        learned = lesson.antigen
        body = antigen.to_entry_body(learned) | {"node": lesson.node, "nodes": list(lesson.nodes)}
        entry = Entry(key=f"vaccine:{learned.id}", kind="vaccine", at_unix_s=now, subject=learned.subject, body=body)
        if learned.signature:
            self._signatures.learn(learned, lesson.node, entry, now)
            return None
        self.counters["vaccines"] += 1
        others = [name for name in lesson.nodes if name != lesson.node]
        said = f"; {', '.join(others)} said so too" if others else ""
        why: dict[str, Any] = {
            "reason": f"learned from node {lesson.node}: {learned.reason}"[:200],
            "evidence": f"{learned.evidence}; antigen {learned.id} by its {learned.sensor or 'sensor'}{said}"[:2000],
            "ttl_s": max(1.0, learned.expires_unix_s - now),
            "seen_unix_s": learned.at_unix_s,
        }
        if (payload := learned.payload) is not None:
            head = bytes.fromhex(payload.head)
            self.publish(HostilePayload(proto=payload.proto, dest_port=payload.dest_port, head=head, **why))
        else:
            self.publish(Verdict(subject=learned.subject, action=Action.BAN, origin=self.name, **why))
        return entry

    # --- signatures ----------------------------------------------------------------------------------------------

    @answers("signatures.share")
    def share(self, args: dict[str, Any], by: str) -> Any:
        """Teach the other nodes one signature: ``text`` as in a file, for ``for_s`` seconds, one day at most."""
        text, for_s = args.get("text"), args.get("for_s") or antigen.MAX_LIFE_S
        if not isinstance(text, str) or not 0 < len(text.encode(errors="replace")) <= SIGNATURE_MAX:
            raise Refused(f"a signature that is shared has at most {SIGNATURE_MAX} bytes")
        if isinstance(for_s, bool) or not isinstance(for_s, int | float) or not 10 <= for_s <= antigen.MAX_LIFE_S:
            raise Refused("for_s must be 10 to 86400 seconds: nothing is believed for longer than a day")
        if self._key is None or not self.settings.lymph.share:
            raise Refused("this node shares nothing", remedy="name Kafka brokers, and do not set lymph.share to false")
        owed = self.defer()

        def judged(answer: Answer) -> None:
            problems = [] if answer.problem else answer.value["problems"]
            if answer.problem or problems or answer.value["signatures"] != 1:
                why = answer.problem or (problems[0]["reason"] if problems else "it must be exactly one")
                owed.refuse(Refused(f"the signature is not shared: {why}", remedy="`rules check FILE` tells more"))
                return
            owed.reply(self._shared(text, answer.value["names"][0], for_s, by))

        args = {"text": text, "format": "yaml", "for_others": True}
        self.ask("rules.check", args, judged, timeout_s=JUDGED_S)
        return owed

    def _shared(self, text: str, name: str, for_s: float, by: str) -> dict[str, Any]:
        now, subject = time.time(), antigen.signature_name(text)
        made = Antigen(
            id=antigen.make_id(self.node, subject, now),
            subject=subject,
            reason=f"signature {name}",
            evidence=f"shared by {by}"[:600],
            sensor="operator",
            at_unix_s=now,
            expires_unix_s=now + for_s,
            signature=text,
        )
        self.counters["antigens"] += 1
        self._record("antigen", [made])
        return {"subject": subject, "name": name, "expires_unix_s": made.expires_unix_s}

    @answers("signatures.release")
    def signatures_release(self, args: dict[str, Any], by: str) -> Any:
        """Let go of signatures that other nodes taught, by ``names``."""
        names = args.get("names")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise Refused("names must be a list of signatures", remedy="`antigens` lists them")
        return {"released": [self._signatures.release(name, by, time.time()) for name in names]}

    # --- telling -------------------------------------------------------------------------------------------------

    @answers("antigens.list")
    def antigens(self, args: dict[str, Any], by: str) -> Any:
        """Who this node is, whom it believes, and what was learned lately here and elsewhere, newest first."""
        limit = args.get("limit", 50)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= PAGE_LIMIT:
            raise Refused(f"limit must be a whole number from 1 to {PAGE_LIMIT}")
        owed = self.defer()
        found: dict[str, Any] = {}

        def told(kind: str, answer: Answer) -> None:
            rows = [] if answer.problem else answer.value["history"]
            found[kind] = _fitting([row["body"] | _of_journal(row) for row in rows])
            if len(found) == 2:
                owed.reply(self._shown() | {"antigens": found["antigen"], "vaccines": found["vaccine"]})

        for kind in ("antigen", "vaccine"):
            self.ask("memory.history", {"kind": kind, "limit": limit}, partial(told, kind), timeout_s=1.0)
        return owed

    def _shown(self) -> dict[str, Any]:
        lymph = self.settings.lymph
        shown: dict[str, Any] = {
            "node": self.node,
            "public_key": self._key.public if self._key is not None else "",
            "brokers": list(self.settings.kafka.bootstrap_servers),
            "connected": self._courier is not None and self._courier.connected,
            "trusted_nodes": list(lymph.trusted_nodes),
            "quorum": lymph.quorum,
            "known_nodes": [],
            "refused": {},
            "alerts": [],
            "signatures": self._signatures.rows(),
        }
        if self._key is not None:
            heard = list(self._immunity.alerts)[-20:]
            alerts = [{"node": node, **antigen.to_entry_body(one)} for node, one in reversed(heard)]
            others = [name for name in self._ring.nodes if name != self.node]
            shown |= {"known_nodes": others, "refused": self._refused(), "alerts": alerts}
        return shown

    def _refused(self) -> dict[str, int]:
        """What was not believed, by reason."""
        mine = {"signature": self._signatures.refused} if self._signatures.refused else {}
        return dict(self._immunity.refused) | mine

    def _directory(self) -> Path:
        return Path(self.settings.state_dir) / "lymph"


def _of_journal(row: dict[str, Any]) -> dict[str, Any]:
    return {"subject": row["subject"], "learned_unix_s": row["at_unix_s"]}


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the first rows as half of an answer carries."""
    room = ANSWER_BYTES // 2
    for count, row in enumerate(rows):
        room -= len(msgspec.msgpack.encode(row))
        if room < 0:
            return rows[:count]
    return rows
