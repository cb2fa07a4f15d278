"""Tolerance (allowlist): what is never dropped, and what a ban may never hit on this very node.

Two tables. ``Tolerance`` is the operators' list: prefixes with a comment and an end, small by rule, sent to the kernel
as it is. ``SafetySet`` is the node's own: its addresses, gateways, resolvers and live admin sessions. The safety set
only stops bans; it opens nothing, so that a forged packet of the gateway's address is still judged by the reflexes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from actors.core.errors import NotFound, Refused
from actors.hypodermis.hostfacts import HostFacts
from actors.hypodermis.prefix_table import PrefixTable
from actors.hypodermis.subjects import Prefix

#: As many as the kernel program's allowlist holds.
TOLERANCE_LIMIT = 4096
#: Wider than this is no exception any more but another posture.
WIDEST_TOLERATED = {4: 8, 6: 16}
COMMENT_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Toleration:
    """One entry. until_unix_s 0: until it is removed. origin: ``operator`` or ``settings``."""

    prefix: Prefix
    comment: str = ""
    by: str = ""
    since_unix_s: float = 0.0
    until_unix_s: float = 0.0
    origin: str = "operator"

    def in_force(self, now: float) -> bool:
        return not self.until_unix_s or now < self.until_unix_s


class Tolerance:
    """The allowlist. Times are wall-clock seconds, so that an end survives a reboot."""

    def __init__(self) -> None:
        self._entries: PrefixTable[Toleration] = PrefixTable()
        self.version = 0  #: grows with each change

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Toleration]:
        return self._entries.values()

    def get(self, prefix: Prefix) -> Toleration | None:
        return self._entries.get(prefix)

    def add(self, entry: Toleration) -> None:
        """Put in, or replace the entry of the same prefix. Raises Refused when it is too wide or the list is full."""
        prefix = entry.prefix
        if prefix.length < WIDEST_TOLERATED[prefix.version]:
            raise Refused(
                f"{prefix.text} is too wide to be tolerated: that would switch the protection off",
                remedy="to observe only, set the posture explore; else tolerate a longer prefix",
            )
        if prefix not in self._entries and len(self._entries) >= TOLERANCE_LIMIT:
            raise Refused(
                f"the tolerance list is full with {TOLERANCE_LIMIT} prefixes; {prefix.text} was not added",
                remedy="join neighbouring prefixes, or remove some with: tolerate --remove PREFIX",
            )
        self._entries.put(prefix, entry)
        self.version += 1

    def remove(self, prefix: Prefix) -> Toleration:
        """Take out exactly this entry. Raises NotFound, or Refused for one that comes from the settings."""
        entry = self._entries.get(prefix)
        if entry is None:
            wider = self._entries.covering(prefix)
            hint = (
                f"it is covered by {wider.prefix.text}; remove that one"
                if wider
                else "`python run.py tolerate` shows the list"
            )
            raise NotFound(f"{prefix.text} is not on the tolerance list", remedy=hint)
        if entry.origin == "settings":
            raise Refused(
                f"{prefix.text} is tolerated by the settings",
                remedy="take it out of permeability.tolerate in tegumentar.toml and reload",
            )
        self._entries.pop(prefix)
        self.version += 1
        return entry

    def covering(self, prefix: Prefix, now: float) -> Toleration | None:
        """The entry that spares all of ``prefix`` at this time."""
        entry = self._entries.covering(prefix)
        if entry is None or entry.in_force(now):
            return entry
        return next((e for e in self._entries.values() if e.in_force(now) and e.prefix.contains(prefix)), None)

    def inside(self, prefix: Prefix, now: float) -> Toleration | None:
        """An entry that lies inside ``prefix``: a ban of the whole would hit it."""
        return next((e for e in self._entries.values() if e.in_force(now) and prefix.contains(e.prefix)), None)

    def expire(self, now: float) -> list[Toleration]:
        """Drop and return the entries whose time is over."""
        over = [entry for entry in self._entries.values() if not entry.in_force(now)]
        for entry in over:
            self._entries.pop(entry.prefix)
        self.version += bool(over)
        return over

    def next_end(self) -> float:
        """When the next entry ends; 0 when none does."""
        return min((e.until_unix_s for e in self._entries.values() if e.until_unix_s), default=0.0)


class SafetySet:
    """What this node must not cut itself off from."""

    def __init__(self, facts: HostFacts | None = None, sessions: Iterable[Prefix] = ()) -> None:
        facts = facts or HostFacts()
        self.networks = facts.networks
        self._guarded: dict[Prefix, str] = {}
        for hosts, what in (
            (sessions, "the far end of an established admin session"),
            (facts.resolvers, "a resolver of this node"),
            (facts.gateways, "a gateway of this node"),
            (facts.addresses, "an address of this node itself"),
        ):
            self._guarded.update(dict.fromkeys(hosts, what))

    def __iter__(self) -> Iterator[tuple[Prefix, str]]:
        return iter(self._guarded.items())

    def is_own_address(self, prefix: Prefix) -> bool:
        return self._guarded.get(prefix, "").startswith("an address of this node")

    def objection(self, prefix: Prefix) -> str:
        """Why a ban of ``prefix`` would hurt the node itself, in words; empty when it would not."""
        if prefix.is_host:
            what = self._guarded.get(prefix, "")
            return f"{prefix.text} is {what}" if what else ""
        for host, what in self._guarded.items():
            if prefix.contains(host):
                return f"{prefix.text} contains {host.text}, {what}"
        return ""

    def on_link(self, prefix: Prefix) -> bool:
        """``prefix`` touches a network that this node itself is in."""
        return any(network.overlaps(prefix) for network in self.networks)
