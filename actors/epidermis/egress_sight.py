"""Which side of the conversations is seen on each interface: what comes, or also what leaves. Pure.

The kernel program sees what comes; a second one beside it accounts what leaves, so that the flow records show who
answered. Where that one cannot hang, nothing is less protected, and the rung stays what it is: records are one-sided,
which is told with the reason, and tried again later.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from actors.epidermis.ladder import Ladder
from bpf.dataplane import Egress

#: A refusal stands until a module is loaded or somebody else's filter goes: it is asked again so seldom.
AGAIN_AFTER_S = 300.0
REASON_LIMIT = 1_900


class EgressSight:
    """What is known of all interfaces. ``wanted`` is the operator's choice."""

    def __init__(self) -> None:
        self.wanted = True
        self._known: dict[str, Egress] = {}
        self._rest_until_s: dict[str, float] = {}
        self._taken_off: set[str] = set()

    def due(self, names: Iterable[str], now_s: float) -> list[str]:
        """Of the interfaces that carry the program, those where something is to be done."""
        if not self.wanted:
            return [name for name in names if name not in self._taken_off]
        return [name for name in names if not self.sees(name) and now_s >= self._rest_until_s.get(name, 0.0)]

    def took(self, found: Egress, now_s: float) -> bool:
        """What came of hanging it in, or of taking it off. Returns whether that is news."""
        if not self.wanted:
            self._known.pop(found.interface, None)
            self._taken_off.add(found.interface)
            return False
        self._taken_off.discard(found.interface)
        before, self._known[found.interface] = self._known.get(found.interface), found
        if found.way is None:
            self._rest_until_s[found.interface] = now_s + AGAIN_AFTER_S
        return before is None or before.way != found.way

    def sees(self, name: str) -> bool:
        """Whether what leaves this interface is accounted, by the last that was heard."""
        known = self._known.get(name)
        return known is not None and known.way is not None

    def lost(self, name: str) -> None:
        """It hangs there no more: another program's doing, or the device's. The next attempt is at once."""
        self._known.pop(name, None)
        self._rest_until_s.pop(name, None)
        self._taken_off.discard(name)

    def shortcoming(self, ladders: Mapping[str, Ladder]) -> tuple[str, str]:
        """Reason and remedy for the first interface whose flow records are one-sided against the operator's wish."""
        for name, ladder in ladders.items():
            known = self._known.get(name)
            if self.wanted and ladder.on_program and known is not None and known.way is None:
                return _one_sided(known), known.remedy or "see `doctor`"
        return "", ""

    def told(self, ladders: Mapping[str, Ladder]) -> dict[str, Any]:
        """Per interface: sides (``both``, ``one`` or ``none``), way, and the reason and remedy for less than both."""
        return {name: self._told_of(name, ladder) for name, ladder in ladders.items()}

    def _told_of(self, name: str, ladder: Ladder) -> dict[str, Any]:
        known = self._known.get(name) or Egress(name)
        if not ladder.on_program:
            reason = f"there are no flow records of {name}: the kernel program does not hang there"
            return {"sides": "none", "way": "", "reason": reason, "remedy": "see `doctor`"}
        if not self.wanted:
            reason, remedy = "flow records are one-sided because reflex.egress_flows is off", "switch it on, and reload"
            return {"sides": "one", "way": "", "reason": reason, "remedy": remedy}
        if known.way is None:
            return {"sides": "one", "way": "", "reason": _one_sided(known), "remedy": known.remedy}
        return {"sides": "both", "way": str(known.way), "reason": "", "remedy": ""}


def _one_sided(known: Egress) -> str:
    whys = "; ".join(f"{way}: {why}" for way, why in known.refused.items()) or "not tried yet"
    said = f"flow records of {known.interface} are one-sided because what leaves is not accounted ({whys})"
    return said[:REASON_LIMIT]
