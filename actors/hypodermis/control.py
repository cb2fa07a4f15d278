"""The control loop of the budgets: pressure in, a scale for the kernel's budgets out. Pure; time is an argument.

Additive increase, multiplicative decrease (as TCP does it, RFC 5681): under strain the scale falls by a third each
second down to its floor, in calm it grows by a twentieth a second back to 1. Between calm and strain it stays.

Only packets can be the cause that budgets cure, so strain alone never tightens them: the packet rate must surge over
the node's own baseline as well. A build job that eats the processor, or an application that forgets to accept, costs no
source its budget.
"""

import math
from dataclasses import dataclass, fields

DECREASE = 0.67
INCREASE = 0.05
#: Below this share of its limit nothing strains any more; between this and 1 the scale stays.
CALM = 0.7
#: A surge is a packet rate of so many times the baseline, which never falls under ``QUIET_PPS``.
SURGE = 4.0
QUIET_PPS = 1_000.0
#: How long the baseline remembers, and how much of a surge it may learn: an attack must not soon become normal.
BASELINE_S = 1_800.0
TEACH_AT_MOST = 2.0
#: The rate is a mean over this.
RATE_S = 3.0
#: Readings further apart than this say nothing about a rate.
GAP_S = 30.0


@dataclass(frozen=True)
class Reading:
    """Totals and levels at one moment; None: this host does not tell.

    packets, listen_drops: totals since boot. softirq: share of all processor time since the last reading, 0 to 1.
    conntrack: share of the table in use. cpu_stall, memory_stall: PSI, share of ten seconds in which a task waited."""

    at_s: float
    packets: int | None = None
    listen_drops: int | None = None
    softirq: float | None = None
    conntrack: float | None = None
    cpu_stall: float | None = None
    memory_stall: float | None = None


@dataclass(frozen=True)
class Strain:
    """Each as a share of the level at which it counts as strain: 1 and more is too much."""

    softirq: float = 0.0
    listen_drops: float = 0.0
    conntrack: float = 0.0
    cpu_stall: float = 0.0
    memory_stall: float = 0.0

    def worst(self) -> tuple[str, float]:
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return max(pairs, key=lambda pair: pair[1])


#: What counts as strain: half of all processor time in softirq, 100 refused connections a second, a conntrack table
#: 80 % full, 60 % of the time waiting for a processor, 20 % for memory.
TOO_MUCH = Strain(softirq=0.5, listen_drops=100.0, conntrack=0.8, cpu_stall=0.6, memory_stall=0.2)


class ControlLoop:
    """floor: the smallest scale, 0 to 1."""

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._last: Reading | None = None
        self._taught_s = 0.0
        self.scale = 1.0
        self.rate_pps = 0.0
        self.baseline_pps = QUIET_PPS
        self.strain = Strain()

    @property
    def surging(self) -> bool:
        return self.rate_pps >= SURGE * max(self.baseline_pps, QUIET_PPS)

    def step(self, reading: Reading) -> float:
        """Take a reading, once a second or so; returns the scale. After a gap the rates begin anew."""
        last = self._last
        if last is not None and reading.at_s <= last.at_s:
            return self.scale
        self._last = reading
        if last is None or (passed_s := reading.at_s - last.at_s) > GAP_S:
            return self.scale
        self._feel_rate(_growth(last.packets, reading.packets) / passed_s, passed_s)
        self.strain = _strain(reading, _growth(last.listen_drops, reading.listen_drops) / passed_s)
        worst = self.strain.worst()[1]
        if worst >= 1.0 and self.surging:
            self.scale = max(self._floor, self.scale * DECREASE**passed_s)
        elif worst < CALM or not self.surging:
            self.scale = min(1.0, self.scale + INCREASE * passed_s)
        return self.scale

    def other_source(self) -> None:
        """The next reading counts packets elsewhere: compare it with nothing."""
        self._last = None

    def why(self) -> str:
        """The state of the loop as a sentence."""
        name, level = self.strain.worst()
        words = f"{self.rate_pps:.0f} packets per second, baseline {self.baseline_pps:.0f}"
        if self.scale >= 1.0:
            return f"budgets as configured; {words}"
        held = f"{name.replace('_', ' ')} at {level:.0%} of what is bearable" if level >= CALM else "strain is over"
        return f"budgets at {self.scale:.0%}; {words}; {held}"

    def _feel_rate(self, rate_pps: float, passed_s: float) -> None:
        self.rate_pps += (1.0 - math.exp(-passed_s / RATE_S)) * (rate_pps - self.rate_pps)
        self._taught_s = min(BASELINE_S, self._taught_s + passed_s)
        seen = min(rate_pps, TEACH_AT_MOST * max(self.baseline_pps, QUIET_PPS))
        self.baseline_pps += (1.0 - math.exp(-passed_s / self._taught_s)) * (seen - self.baseline_pps)


def _growth(before: int | None, now: int | None) -> int:
    """Of a total; one that went back was made anew."""
    return 0 if before is None or now is None else max(0, now - before)


def _strain(reading: Reading, listen_drops_s: float) -> Strain:
    return Strain(
        softirq=(reading.softirq or 0.0) / TOO_MUCH.softirq,
        listen_drops=listen_drops_s / TOO_MUCH.listen_drops,
        conntrack=(reading.conntrack or 0.0) / TOO_MUCH.conntrack,
        cpu_stall=(reading.cpu_stall or 0.0) / TOO_MUCH.cpu_stall,
        memory_stall=(reading.memory_stall or 0.0) / TOO_MUCH.memory_stall,
    )
