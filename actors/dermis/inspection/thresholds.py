"""How often a rule may speak: threshold and detection_filter of Suricata rules. Pure, bounded; time is an argument.

The oldest tracked subject leaves when ``TRACKED_MAX`` is reached: under a flood of sources a limit may then be
forgotten and an alert come again. Source: Suricata user guide, Thresholding Keywords.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from actors.dermis.inspection.packets import Packet
from actors.dermis.inspection.suricata_types import Rule, Threshold

TRACKED_MAX = 65_536
_DISTINCT_MAX = 4_096


@dataclass(slots=True)
class _Tally:
    began_s: float
    count: int = 0
    next_backoff: int = 0
    distinct: set[int] = field(default_factory=set)


class Thresholds:
    """Counts matches per rule and subject."""

    def __init__(self) -> None:
        self._tallies: OrderedDict[tuple[object, ...], _Tally] = OrderedDict()

    def allows(self, rule: Rule, packet: Packet, flow: object, now_s: float) -> bool:
        """Count one match; whether it becomes an alert."""
        filtered = rule.detection_filter is None or self._counts(rule.detection_filter, rule, packet, flow, now_s)
        return filtered and (rule.threshold is None or self._counts(rule.threshold, rule, packet, flow, now_s))

    def _counts(self, limit: Threshold, rule: Rule, packet: Packet, flow: object, now_s: float) -> bool:
        tally = self._tally(limit, rule, packet, flow, now_s)
        if limit.unique:
            if len(tally.distinct) < _DISTINCT_MAX:
                tally.distinct.add(packet.source_port if limit.unique == "src_port" else packet.dest_port)
            tally.count = len(tally.distinct)
        else:
            tally.count += 1
        match limit.kind:
            case "limit":
                return tally.count <= limit.count
            case "threshold":
                return tally.count % limit.count == 0
            case "both":
                return tally.count == limit.count
            case "backoff":
                tally.next_backoff = tally.next_backoff or limit.count
                if tally.count < tally.next_backoff:
                    return False
                tally.next_backoff *= max(2, limit.multiplier)
                return True
            case _:
                return tally.count > limit.count

    def _tally(self, limit: Threshold, rule: Rule, packet: Packet, flow: object, now_s: float) -> _Tally:
        subject: object = {
            "by_src": packet.source, "by_dst": packet.dest, "by_both": (packet.source, packet.dest), "by_flow": flow,
        }.get(limit.track)  # fmt: skip
        key = (rule.sid, limit.kind, subject)
        tally = self._tallies.get(key)
        if tally is None or (limit.seconds and now_s - tally.began_s > limit.seconds):
            tally = self._tallies[key] = _Tally(now_s)
        self._tallies.move_to_end(key)
        while len(self._tallies) > TRACKED_MAX:
            self._tallies.popitem(last=False)
        return tally
