"""What the control loop reads of this host: text of the kernel's own files, parsed without trust. Needs no privilege.

A file that is not there (a kernel without PSI, without conntrack) is a reading that stays None, never an error. The
network's figures are those of the network namespace that this process lives in.
"""

import re
from pathlib import Path

from actors.hypodermis.control import Reading


class Gauges:
    """proc: where procfs is mounted."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._cpu: tuple[int, int] | None = None

    def read(self, at_s: float, packets: int | None = None) -> Reading:
        """packets: a total from who knows better than the interfaces. About 0.1 ms."""
        return Reading(
            at_s=at_s,
            packets=interface_packets(self._text("self/net/dev")) if packets is None else packets,
            listen_drops=listen_drops(self._text("self/net/netstat")),
            softirq=self._softirq(),
            conntrack=_share(
                self._text("sys/net/netfilter/nf_conntrack_count"), self._text("sys/net/netfilter/nf_conntrack_max")
            ),
            cpu_stall=stall(self._text("pressure/cpu")),
            memory_stall=stall(self._text("pressure/memory")),
        )

    def _softirq(self) -> float | None:
        before, self._cpu = self._cpu, processor_times(self._text("stat"))
        if before is None or self._cpu is None or self._cpu[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (self._cpu[0] - before[0]) / (self._cpu[1] - before[1])))

    def _text(self, name: str) -> str:
        try:
            return (self._proc / name).read_text(errors="replace")
        except OSError:
            return ""


def processor_times(stat: str) -> tuple[int, int] | None:
    """Ticks in softirq and ticks altogether, from the first line of ``/proc/stat``."""
    words = stat.partition("\n")[0].split()
    if len(words) < 8 or words[0] != "cpu" or not all(_is_number(word) for word in words[1:]):
        return None
    ticks = [int(word) for word in words[1:9]]
    return ticks[6], sum(ticks)


def listen_drops(netstat: str) -> int | None:
    """``ListenDrops`` of ``TcpExt`` in ``/proc/net/netstat``: connections refused because a queue was full."""
    rows = [line.split() for line in netstat.splitlines() if line.startswith("TcpExt:")]
    if len(rows) != 2:
        return None
    found = dict(zip(*rows, strict=False)).get("ListenDrops", "")
    return int(found) if _is_number(found) else None


def stall(pressure: str) -> float | None:
    """Share of the last ten seconds in which some task waited, from a file of ``/proc/pressure``."""
    found = re.search(r"^some avg10=(\d{1,3}\.\d{1,2}) ", pressure, re.MULTILINE | re.ASCII)
    return min(1.0, float(found[1]) / 100.0) if found else None


def interface_packets(table: str) -> int:
    """Packets that came in by all interfaces but the loopback, from ``/proc/net/dev``."""
    total = 0
    for line in table.splitlines()[2:]:
        name, colon, rest = line.partition(":")
        columns = rest.split()
        if colon and name.strip() != "lo" and len(columns) >= 2 and _is_number(columns[1]):
            total += int(columns[1])
    return total


def _share(count: str, limit: str) -> float | None:
    if not (_is_number(count.strip()) and _is_number(limit.strip())) or int(limit) == 0:
        return None
    return int(count) / int(limit)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
