"""Qualia: what the skin feels, from totals of packets and the states of the cells. Pure; time is an argument.

Pressure is the packet rate against the node's own baseline, never against a number from a book: what is a flood for a
printer is silence for a cache. Pain is the share of traffic that was refused. Temperature is the mean anomaly, and
integrity the share of cells that are well. Each is 0 to 1 and comes with its raw figure, unit and window.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from actors.core.messages import Anomaly, CellState, Quale

#: Seconds over which rate and pain are smoothed.
WINDOW_S = 5.0
#: Packets per second below which nothing is called pressure: the baseline never falls under it.
QUIET_PPS = 100.0
#: Pressure is one half at this multiple of the baseline.
HALF_AT = 4.0
#: A surge teaches the baseline no more than this multiple of it, so that an attack does not soon become normal.
TEACH_AT_MOST = 2.0
#: Readings further apart than this say nothing about a rate (the cell was stopped, the counters were made anew).
GAP_S = 60.0

#: Verdicts of the kernel program that let a packet pass; every other name is a refusal.
PASSED = frozenset(
    {
        "clean",
        "tolerated",
        "not_ip",
        "arp",
        "neighbour",
        "unparsed_link",
        "unparsed_ip",
        "unparsed_extension",
        "unparsed_transport",
        "other_protocol",
        "later_fragment",
    }
)


#: How the kernel's verdicts begin that were not carried out, because the posture only observes.
WITHHELD = "would_"


def pressure(rate_pps: float, baseline_pps: float) -> float:
    """0 at rest, 0.2 at the baseline, 0.5 at four times it, 0.96 at a hundred times; grows with the rate, never 1."""
    normal = max(baseline_pps, QUIET_PPS) * HALF_AT
    return rate_pps / (rate_pps + normal) if rate_pps > 0 else 0.0


@dataclass(frozen=True)
class Totals:
    """Packets since the counters were made. at_s: monotonic seconds."""

    packets: int
    refused: int
    at_s: float


def totals_of(packets: Mapping[str, int], at_s: float) -> Totals:
    """Totals from the kernel's counters by reason. What only would have been refused has passed."""
    refused = sum(n for reason, n in packets.items() if reason not in PASSED and not reason.startswith(WITHHELD))
    return Totals(sum(packets.values()), refused, at_s)


class Feeling:
    """Rates and the baseline they are felt against. ``baseline_s``: how long the baseline remembers."""

    def __init__(self, baseline_s: float) -> None:
        self._baseline_s = baseline_s
        self._last: Totals | None = None
        self._taught_s = 0.0
        self.rate_pps = 0.0
        self.refused_pps = 0.0
        self.baseline_pps = QUIET_PPS

    def feel(self, totals: Totals) -> None:
        """Take a reading. Counters that went back, a gap, or no time in between begin anew."""
        last, self._last = self._last, totals
        if last is None:
            return
        passed_s = totals.at_s - last.at_s
        packets, refused = totals.packets - last.packets, totals.refused - last.refused
        if not 0 < passed_s <= GAP_S or packets < 0 or refused < 0:
            if passed_s <= 0 and packets >= 0 and refused >= 0:
                self._last = last  # twice the same moment: wait for the next
            return
        weight = 1.0 - math.exp(-passed_s / WINDOW_S)
        self.rate_pps += weight * (packets / passed_s - self.rate_pps)
        self.refused_pps += weight * (refused / passed_s - self.refused_pps)
        self._teach(packets / passed_s, passed_s)

    def other_source(self) -> None:
        """The next reading comes from other counters: compare it with nothing."""
        self._last = None

    @property
    def settled(self) -> bool:
        """The baseline rests on at least a tenth of its time."""
        return self._taught_s >= self._baseline_s / 10

    def pressure(self) -> Quale:
        baseline = max(self.baseline_pps, QUIET_PPS)
        what = "baseline" if self.settled else "baseline, still learning"
        return Quale(
            value=pressure(self.rate_pps, baseline),
            raw=round(self.rate_pps, 1),
            unit=f"packets per second, {what} {baseline:.0f}",
            window_s=WINDOW_S,
        )

    def pain(self) -> Quale:
        share = self.refused_pps / self.rate_pps if self.rate_pps > 0.05 else 0.0
        return Quale(
            value=min(1.0, max(0.0, share)),
            raw=round(self.refused_pps, 1),
            unit="packets per second refused",
            window_s=WINDOW_S,
        )

    def _teach(self, rate_pps: float, passed_s: float) -> None:
        """A slow mean; quick at first, and never led by a surge: a flood right after the start is felt as one.

        A node that is always busy is learned in minutes, and the unit says so until then."""
        self._taught_s = min(self._baseline_s, self._taught_s + passed_s)
        memory_s = max(self._taught_s, passed_s)
        seen = min(rate_pps, TEACH_AT_MOST * max(self.baseline_pps, QUIET_PPS))
        self.baseline_pps += (1.0 - math.exp(-passed_s / memory_s)) * (seen - self.baseline_pps)


def temperature(anomaly: Anomaly | None) -> Quale:
    """The mean anomaly of what was judged last; without a detector that is said rather than guessed."""
    if anomaly is None:
        return Quale(value=0.0, raw=0.0, unit="mean anomaly; no detector of anomalies runs", window_s=WINDOW_S)
    what = "by the model" if anomaly.by == "model" else "share that led to no connection"
    unit = f"conversations strange of {anomaly.judged} judged; mean anomaly, {what}"
    return Quale(value=anomaly.mean, raw=float(anomaly.strange), unit=unit, window_s=anomaly.window_s)


def integrity(states: Mapping[str, CellState]) -> Quale:
    """The share of cells that are healthy, of those that shall run. One that only starts is not well yet."""
    wanted = [state for state in states.values() if state is not CellState.OFF]
    well = sum(state is CellState.HEALTHY for state in wanted)
    return Quale(
        value=well / len(wanted) if wanted else 1.0,
        raw=float(well),
        unit=f"of {len(wanted)} cells healthy",
        window_s=0.0,
    )


def differs(old: Quale | None, new: Quale) -> bool:
    """Worth telling: the value moved by a hundredth, or the words changed their sense."""
    return old is None or abs(old.value - new.value) >= 0.01


def interface_packets(table: str, interfaces: frozenset[str]) -> int:
    """Received packets, those dropped by the host included, from the text of ``/proc/net/dev``.

    interfaces: which to count; empty: all but the loopback. A line that does not parse is passed over."""
    total = 0
    for line in table.splitlines()[2:]:
        name, colon, rest = line.partition(":")
        columns = rest.split()
        wanted = name.strip() in interfaces if interfaces else name.strip() != "lo"
        if colon and wanted and len(columns) >= 4 and columns[1].isdigit() and columns[3].isdigit():
            total += int(columns[1]) + int(columns[3])
    return total
