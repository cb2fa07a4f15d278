"""Signatures that other nodes taught, from the lesson to the macrophage's rulebook and out of it again.

They stand in quarantine: under the name of their node, beside the node's own, never instead of one; what they find is
no more than a suspicion, and none of them makes a vaccine. The macrophage judges each as it judges files, samples and
all, and only what it accepts is written down. It is told the whole list, repeatably: after each change, when it comes
up, and when one has expired. Few stand at once; what somebody has released is not learned again for a day.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.core.cell import Cell
from actors.core.errors import Refused
from actors.core.messages import Answer, Entry
from actors.dermis.antigen import MAX_LIFE_S, SIGNATURE_MAX, Antigen, signature_name

MACROPHAGE = "macrophage"
#: Signatures of others at once: their texts fit into one message.
LIMIT = 20
#: The rulebook is made anew for each change, so changes wait for each other this long; and compiling may take so long.
SETTLE_S, PATIENCE_S, AGAIN_S = 0.2, 30.0, 5.0
SPARED_LIMIT = 1_000
#: A newcomer under which the macrophage has ended so often is not tried again.
TRIES = 2


@dataclass(slots=True)
class Learned:
    """One signature. entry: what is written down once the macrophage has accepted it; None: it was, in truth."""

    subject: str
    node: str
    text: str
    until_unix_s: float
    name: str
    entry: Entry | None = field(default=None)
    tries: int = 0


class LearnedSignatures:
    """Belongs to one cell, on its actor thread. ``write`` puts entries into the journal."""

    def __init__(self, cell: Cell, write: Callable[[list[Entry]], None]) -> None:
        self._cell, self._write = cell, write
        self._learned: OrderedDict[str, Learned] = OrderedDict()
        self._spared: OrderedDict[str, float] = OrderedDict()
        self._remembered = self._asking = False
        self._timer = 0
        self._was_up = False
        self.refused = 0

    def learn(self, antigen: Antigen, node: str, entry: Entry, now: float) -> None:
        """A believed lesson. The longer of two lives of one signature counts; with no room it is refused."""
        standing = self._learned.get(antigen.subject)
        if standing is not None:
            standing.until_unix_s = max(standing.until_unix_s, antigen.expires_unix_s)
        elif self._full(node) or self._spared.get(antigen.subject, 0.0) > now:
            self.refused += 1
        else:
            self._learned[antigen.subject] = Learned(
                antigen.subject, node, antigen.signature, antigen.expires_unix_s, antigen.reason, entry
            )
        self._soon()

    def _full(self, node: str) -> bool:
        """One node may have half of the places, so that it cannot keep the others from teaching."""
        return len(self._learned) >= LIMIT or sum(o.node == node for o in self._learned.values()) >= LIMIT // 2

    def remember(self, row: dict[str, Any], now: float) -> None:
        """A row of the journal, the newest first: one that was accepted, or one that somebody released."""
        body, subject = row["body"], row["subject"]
        if body.get("released"):
            self.spare(subject, row["at_unix_s"] + MAX_LIFE_S)
        text, until = body.get("signature"), body.get("expires_unix_s", 0.0)
        if not isinstance(text, str) or not text or len(text) > SIGNATURE_MAX or signature_name(text) != subject:
            return
        if until > now and self._spared.get(subject, 0.0) <= now and len(self._learned) < LIMIT:
            known = Learned(subject, str(body.get("node", "")), text, until, str(body.get("reason", "")))
            self._learned.setdefault(subject, known)

    def remembered(self) -> None:
        """The journal has told all: from now on the list is whole."""
        self._remembered = True
        if self._learned:
            self._soon()

    def spare(self, subject: str, until_unix_s: float) -> None:
        self._spared.setdefault(subject, until_unix_s)
        if len(self._spared) > SPARED_LIMIT:
            self._spared.popitem(last=False)

    def release(self, name: str, by: str, now: float) -> str:
        """Let go of one, by its subject or the name of the signature. Returns the subject. Raises Refused."""
        found = next((one for one in self._learned.values() if name in (one.subject, _title(one.text))), None)
        if found is None:
            raise Refused(f"no signature {name[:64]} was learned from another node", remedy="`antigens` lists them")
        del self._learned[found.subject]
        self.spare(found.subject, now + MAX_LIFE_S)
        body = {"id": "", "released": True, "by": by, "node": found.node, "reason": found.name}
        key = f"vaccine-release:{found.subject}:{now!r}"
        self._write([Entry(key=key[:120], kind="vaccine", at_unix_s=now, subject=found.subject, body=body)])
        self._soon()
        return found.subject

    def rows(self) -> list[dict[str, Any]]:
        """As ``antigens.list`` shows them."""
        return [
            {
                "subject": one.subject,
                "name": _title(one.text),
                "node": one.node,
                "reason": one.name,
                "until_unix_s": one.until_unix_s,
                "in_use": one.entry is None,
            }
            for one in self._learned.values()
        ]

    def macrophage_up(self) -> None:
        if self._learned:
            self._soon()

    # --- telling the macrophage ----------------------------------------------------------------------------------

    def _soon(self, wait_s: float = SETTLE_S) -> None:
        if not self._timer:
            self._timer = self._cell.after(wait_s, self._tell)

    def _tell(self) -> None:
        self._timer = 0
        if not self._remembered or self._asking:
            self._soon(AGAIN_S)
            return
        now = time.time()
        for subject in [one.subject for one in self._learned.values() if one.until_unix_s <= now]:
            del self._learned[subject]
        told = list(self._learned)
        rows = [
            {"subject": one.subject, "node": one.node, "text": one.text, "until_unix_s": one.until_unix_s}
            for one in self._learned.values()
        ]
        self._asking = True
        self._was_up = self._cell.peers.living(MACROPHAGE) is not None
        self._cell.ask(
            "rules.learned", {"signatures": rows}, lambda answer: self._told(told, answer), timeout_s=PATIENCE_S
        )

    def _told(self, told: list[str], answer: Answer) -> None:
        self._asking = False
        if answer.problem:
            self._tried(told)
            if self._learned:
                self._soon(AGAIN_S)
            return
        for subject in told:
            one = self._learned.get(subject)
            if one is None:
                continue
            if problem := answer.value["problems"].get(subject, ""):
                self.refused += 1
                self._cell.log.warning("signature_refused", node=one.node, subject=subject, problem=problem)
                del self._learned[subject]
                self.spare(subject, one.until_unix_s)
            elif one.entry is not None:
                self._write([one.entry])
                self._cell.counters["vaccines"] += 1
                one.entry = None

    def _tried(self, told: list[str]) -> None:
        """No answer: the macrophage is away, or one of the newcomers is more than it can bear."""
        if not self._was_up:
            return
        for subject in told:
            one = self._learned.get(subject)
            if one is not None and one.entry is not None:
                one.tries += 1
                if one.tries >= TRIES:
                    self.refused += 1
                    del self._learned[subject]
                    self.spare(subject, one.until_unix_s)


def _title(text: str) -> str:
    """The name that the signature gives itself, for people; the subject is what counts."""
    for line in text.splitlines():
        key, _, value = line.strip().removeprefix("- ").partition(":")
        if key == "name":
            return "".join(char for char in value if char.isprintable()).strip()[:64]
    return ""
