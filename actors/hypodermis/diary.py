"""The diary: what policy writes into the journal, one entry for each decision. Keys are never used twice."""

import os
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from actors.core.messages import Action, Entry
from actors.hypodermis import ledger, posture
from actors.hypodermis.gate import Wish
from actors.hypodermis.ledger import Ban
from actors.hypodermis.posture import PostureState
from actors.hypodermis.subjects import Prefix
from actors.hypodermis.tolerance import Toleration

#: The same refusal of the same source is written once in so many seconds; and how many of them are remembered.
SAY_AGAIN_S, SAID_LIMIT = 60.0, 10_000


class Diary:
    """Makes entries for one life of a cell."""

    def __init__(self, author: str) -> None:
        self._life = f"{author}:{os.getpid()}:{time.time_ns()}"
        self._made = 0
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()

    def ban(self, ban: Ban) -> Entry:
        """A ban; one that is only noted is a verdict, so that nobody recalls it as a ban."""
        return self._entry("verdict" if ban.action is Action.OBSERVE else "ban", ban.subject, ledger.to_body(ban))

    def ban_of_many(self, ban: Ban, rows: bytes) -> Entry:
        """The same ban of each subject in ``rows`` (``core.packed``)."""
        return replace(self._entry("ban", None, ledger.to_body(ban)), subjects=rows)

    def release(self, subject: Prefix, reason: str, by: str) -> Entry:
        return self._entry("release", subject, {"reason": reason, "by": by})

    def posture(self, state: PostureState) -> Entry:
        return self._entry("posture", None, posture.to_body(state))

    def tolerance(self, subject: Prefix, entry: Toleration | None) -> Entry:
        """An entry of the allowlist as it is now; None: it was taken off."""
        if entry is None:
            return self._entry("tolerance", subject, {"removed": True})
        body = {"comment": entry.comment, "by": entry.by, "since_unix_s": entry.since_unix_s}
        return self._entry("tolerance", subject, body | {"until_unix_s": entry.until_unix_s})

    def refusal(self, wish: Wish, refused: str) -> list[Entry]:
        """A verdict that was not carried out; nothing when the same was said a moment ago."""
        name, now = (wish.subject.text, wish.origin), time.monotonic()
        last = self._said.get(name)
        if last is not None and now - last < SAY_AGAIN_S:
            return []
        self._said[name] = now
        self._said.move_to_end(name)
        if len(self._said) > SAID_LIMIT:
            self._said.popitem(last=False)
        body = {"refused": refused, "origin": wish.origin, "reason": wish.reason, "evidence": wish.evidence}
        return [self._entry("verdict", wish.subject, body)]

    def _entry(self, kind: str, subject: Prefix | None, body: dict[str, Any]) -> Entry:
        self._made += 1
        text = subject.text if subject is not None else ""
        return Entry(key=f"{self._life}:{self._made}", kind=kind, at_unix_s=time.time(), subject=text, body=body)
