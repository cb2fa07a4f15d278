"""Immunity: which of the lessons that arrive are believed, and from when on. Pure; time is an argument.

A lesson is believed when its envelope is signed by a known node, fresh, new, and either said by a trusted node or by a
quorum of nodes. Everything else changes nothing and is counted under the reason. Bounded in everything: ids that were
seen, lessons that wait for more voices, lessons of one node in one minute.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from actors.core.payloads import objection
from actors.dermis.antigen import MAX_LIFE_S, TOPIC_ANTIGENS, Antigen, AntigenError, read_body, signed_bytes, unseal

#: Clocks of a fleet may differ by so much. Seconds.
SKEW_S = 60.0
SEEN_LIMIT = 100_000
WAITING_LIMIT = 50_000
#: Lessons of one node in one minute; more is a node gone mad, or an attacker with its key.
NODE_LIMIT = 1_200
NODE_WINDOW_S = 60.0
#: Alerts of other nodes that are remembered for who asks.
ALERTS_LIMIT = 500


class Verifier(Protocol):
    """What is needed of a key ring."""

    def knows(self, node: str) -> bool: ...
    def verify(self, node: str, signature: bytes, data: bytes) -> bool: ...


@dataclass(frozen=True)
class Lesson:
    """What came of one envelope. applies: act on it now. nodes: who says so, the first of them first."""

    antigen: Antigen
    node: str
    nodes: tuple[str, ...]
    applies: bool


class Immunity:
    """The memory of what was said by whom. ``refused`` counts by reason."""

    def __init__(self, node: str, ring: Verifier, trusted: Iterable[str] = (), quorum: int = 2) -> None:
        self._node, self._ring, self._trusted, self._quorum = node, ring, frozenset(trusted), quorum
        self.refused: Counter[str] = Counter()
        self.alerts: deque[tuple[str, Antigen]] = deque(maxlen=ALERTS_LIMIT)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._voices: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._said: dict[str, tuple[float, int]] = {}

    def take(self, topic: str, payload: bytes, now: float) -> Lesson | None:
        """Judge one envelope from the wire; None when it is refused, an alert, or our own."""
        try:
            antigen, node = self._checked(topic, payload, now)
        except AntigenError as refused:
            self.refused[refused.why] += 1
            return None
        if node == self._node:
            return None
        if topic != TOPIC_ANTIGENS:
            self.alerts.append((node, antigen))
            return None
        return self._heard(antigen, node, now)

    def own(self, antigen: Antigen, now: float) -> None:
        """This node's own sight is one voice."""
        self._heard(antigen, self._node, now)

    def recall(self, identity: str) -> None:
        """A lesson applied in an earlier life: it is not applied again."""
        self._remember(identity)

    @property
    def waiting(self) -> int:
        """Subjects that some node, but not yet enough of them, spoke of."""
        return len(self._voices)

    def _checked(self, topic: str, payload: bytes, now: float) -> tuple[Antigen, str]:
        sealed = unseal(payload)
        if not self._ring.knows(sealed.node):
            raise AntigenError(f"{sealed.node} is not in the key ring", "unknown_key")
        if not self._ring.verify(sealed.node, sealed.signature, signed_bytes(topic, sealed.node, sealed.body)):
            raise AntigenError(f"this was not signed by {sealed.node}", "forged")
        antigen = read_body(sealed.body)
        if antigen.expires_unix_s <= now:
            raise AntigenError("its time is over", "expired")
        head = antigen.payload
        if head is not None and (problem := objection(head.proto, head.dest_port, bytes.fromhex(head.head))):
            raise AntigenError(f"it would hit the innocent: {problem}", "unfit")
        if antigen.at_unix_s > now + SKEW_S:
            raise AntigenError("it comes from the future", "from_the_future")
        if antigen.expires_unix_s - antigen.at_unix_s > MAX_LIFE_S:
            raise AntigenError("it wants to be believed for too long", "too_long_lived")
        if sealed.node != self._node:
            if antigen.id in self._seen:
                raise AntigenError("it was heard before", "replayed")
            if not self._admit(sealed.node, now):
                raise AntigenError(f"{sealed.node} says more than one node can have learned", "flooded")
            self._remember(antigen.id)
        return antigen, sealed.node

    def _heard(self, antigen: Antigen, node: str, now: float) -> Lesson:
        voices = self._voices.pop(antigen.subject, {})
        voices = {name: until for name, until in voices.items() if until > now}
        voices[node] = max(voices.get(node, 0.0), antigen.expires_unix_s)
        self._voices[antigen.subject] = voices
        if len(self._voices) > WAITING_LIMIT:
            self._voices.popitem(last=False)
        nodes = tuple(voices)
        return Lesson(antigen, node, nodes, bool(self._trusted & voices.keys()) or len(nodes) >= self._quorum)

    def _admit(self, node: str, now: float) -> bool:
        began, count = self._said.get(node, (now, 0))
        if not 0 <= now - began < NODE_WINDOW_S:
            began, count = now, 0
        self._said[node] = (began, count + 1)
        return count < NODE_LIMIT

    def _remember(self, identity: str) -> None:
        self._seen[identity] = None
        if len(self._seen) > SEEN_LIMIT:
            self._seen.popitem(last=False)
