"""Merkel — the telemetry cell: pressure, temperature, pain and integrity of the node, as numbers from 0 to 1.

Feels the kernel program's counters; where there is no program it feels the interfaces, and says that it cannot know
what was refused. Tells others when something moved, every second at most, and every ten seconds in any case. The
baseline lives as long as this cell: after a restart it is learned anew and says so.
"""

import time
from pathlib import Path
from typing import Any

from actors.core.cell import Cell, answers, receives
from actors.core.messages import Anomaly, CellReport, CellState, KernelCounters, Quale, Qualia, ReflexEvents
from actors.dermis import qualia
from actors.dermis.qualia import Feeling, Totals

FEEL_EVERY_S = 1.0
TELL_EVERY_S = 10.0
#: Without counters from the kernel program for so long, the interfaces are felt.
FRESH_S = 5.0
REFLEX = "reflex_arc"
DETECTOR = "mast_cell"
_TABLE_LIMIT = 262_144


class Merkel(Cell):
    """Turns counters into qualia."""

    section = "merkel"
    net_dev = Path("/proc/self/net/dev")

    def on_start(self) -> None:
        self._feeling = Feeling(self.settings.merkel.baseline_minutes * 60.0)
        self._states: dict[str, CellState] = {}
        self._counters: KernelCounters | None = None
        self._counted_at = float("-inf")
        self._from_kernel = False
        self._anomaly: Anomaly | None = None
        self._told: Qualia | None = None
        self._told_at = float("-inf")
        self.every(FEEL_EVERY_S, self._feel)
        self._feel()

    @receives(KernelCounters)
    def on_kernel_counters(self, message: KernelCounters, source: str) -> None:
        if source != REFLEX:
            self.counters["bad_input"] += 1
            return
        if not self._from_kernel:
            self._from_kernel = True
            self._feeling.other_source()
        self._counters, self._counted_at = message, time.monotonic()
        self._feeling.feel(qualia.totals_of(message.packets, message.at_ns / 1e9))

    @receives(Anomaly)
    def on_anomaly(self, message: Anomaly, source: str) -> None:
        self._anomaly = message

    @receives(ReflexEvents)
    def on_reflex_events(self, message: ReflexEvents, source: str) -> None:
        self.counters["reflexes"] += len(message.events)

    @receives(CellReport)
    def on_cell_report(self, message: CellReport, source: str) -> None:
        if message.cell == source:
            self._states[source] = message.state

    def on_peer_up(self, name: str) -> None:
        self._states.setdefault(name, CellState.HEALTHY)

    def on_peer_down(self, name: str) -> None:
        self._states[name] = CellState.DOWN
        if name == DETECTOR:
            self._anomaly = None

    @answers("qualia")
    def qualia(self, args: dict[str, Any], by: str) -> Any:
        """The four feelings as of now."""
        now = self._now()
        told = {
            name: {"value": round(quale.value, 4), "raw": quale.raw, "unit": quale.unit, "window_s": quale.window_s}
            for name, quale in (
                ("pressure", now.pressure),
                ("temperature", now.temperature),
                ("pain", now.pain),
                ("integrity", now.integrity),
            )
        }
        return told | {"at_unix_s": now.at_unix_s, "from": "kernel program" if self._from_kernel else "interfaces"}

    @answers("counters")
    def kernel_counters(self, args: dict[str, Any], by: str) -> Any:
        """Packets and bytes by reason, as last told by the kernel program; empty without one."""
        known = self._counters
        return {
            "packets": dict(known.packets) if known else {},
            "bytes": dict(known.bytes) if known else {},
            "rung": known.rung if known else "",
            "age_s": round(time.monotonic() - self._counted_at, 1) if known else None,
        }

    def _feel(self) -> None:
        now = time.monotonic()
        if self._states.get(REFLEX) in (CellState.HEALTHY, CellState.DEGRADED) and self._from_kernel:
            if now - self._counted_at >= FRESH_S and self._counters is not None:
                # the program counts and has nothing new to tell: there was no traffic
                self._feeling.feel(qualia.totals_of(self._counters.packets, now))
        else:
            self._feel_interfaces(now)
        self._tell(now)

    def _feel_interfaces(self, now: float) -> None:
        if self._from_kernel:
            self._from_kernel = False
            self._feeling.other_source()
        try:
            with self.net_dev.open("rb") as file:
                table = file.read(_TABLE_LIMIT).decode("ascii", "replace")
        except OSError as exc:
            self.degraded(f"no traffic can be felt: {self.net_dev}: {exc.strerror}", "mount /proc in this container")
            return
        packets = qualia.interface_packets(table, frozenset(self.settings.interfaces))
        self._feeling.feel(Totals(packets, 0, now))

    def _tell(self, now: float) -> None:
        new, old = self._now(), self._told
        feelings = ("pressure", "temperature", "pain", "integrity")
        moved = old is None or any(qualia.differs(getattr(old, name), getattr(new, name)) for name in feelings)
        for name in feelings:
            quale: Quale = getattr(new, name)
            self.gauges[name] = quale.value
        if moved or now - self._told_at >= TELL_EVERY_S:
            self.publish(new)
            self._told, self._told_at = new, now

    def _now(self) -> Qualia:
        pain = self._feeling.pain()
        if not self._from_kernel:
            pain = Quale(
                value=0.0, raw=0.0, unit="unknown: no kernel program counts refusals", window_s=qualia.WINDOW_S
            )
        return Qualia(
            pressure=self._feeling.pressure(),
            temperature=qualia.temperature(self._anomaly),
            pain=pain,
            integrity=qualia.integrity(self._states | {self.name: self.state}),
            at_unix_s=time.time(),
        )
