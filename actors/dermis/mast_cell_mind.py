"""The mast cell's attention: everything it needs once somebody has spoken, and nothing before. No messages here.

An idle node with no model never loads this file, nor the code of sessions, scans and features behind it.
"""

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from actors.core.messages import Entry
from actors.dermis.mast_cell_heap import Heap
from actors.dermis.mast_cell_model import Eyes, Look
from actors.dermis.mast_cell_pool import Samples
from actors.dermis.scans import Finding, Watchlist
from actors.dermis.sessions import Conduct, Host, conduct
from actors.dermis.sessions_list import notable
from actors.dermis.sessions_table import read_host
from ml.groups import distinct
from ml.meter import Tick

#: Anomaly is a mean over so much time.
WINDOW_S: Final = 10.0
#: So many sources that knock in vain between two looks, more than connect, are a siege where no model can say so.
SIEGE: Final = 200
_SIEGED: Final = 64


@dataclass(slots=True)
class Impression:
    """What one look left behind. shown: flows that had something new to say."""

    shown: int = 0
    findings: list[Finding] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mood:
    """How the conversations of the last seconds were: mean 0 to 1, strange of judged; by ``model`` or ``rules``."""

    mean: float
    strange: int
    judged: int
    by: str


class Mind:
    """Eyes, watchlist, and what is felt of late. Time goes forward."""

    def __init__(self, models: Path, slots: int, login_ports: Sequence[int], samples: Samples) -> None:
        self.host = Host(np.zeros(0, "V16"))
        self.eyes, self.watchlist, self.samples = Eyes(models, slots), Watchlist(), samples
        self.sieged: set[str] = set()
        self._login_ports = np.array(login_ports, "u2")
        self._recent: deque[tuple[float, float, int, int]] = deque()  # when, sum of anomaly, strange, judged
        self._by_model = False
        self._heap = Heap()

    def look_at_host(self) -> None:
        """Own addresses come and go."""
        self.host = read_host()
        self.eyes.refresh(self.host)

    def examine(self, tick: Tick, offenders: Collection[str], room: int) -> Impression:
        """One look: what is new, who is to be proposed, which of at most ``room`` sessions are worth a line."""
        self._heap.look(len(tick.slots))
        look = self.eyes.look(tick)
        if not len(look.shown):
            return Impression()
        now_s, unix_s = tick.now_ns * 1e-9, time.time()
        seen = conduct(look.shown, self.host, self._login_ports)
        findings = self.watchlist.observe(now_s, seen)
        findings += [Finding(one.subject, "anomaly", one.reason, one.evidence, one.score) for one in look.blamed]
        near = self.host.near(look.shown.flows["key"])
        entries = list(notable(look.shown, near, unix_s, frozenset(offenders), room)) if room > 0 else []
        self._feel(now_s, look, seen)
        self._teach(tick.now_ns, unix_s, look, seen)
        return Impression(len(look.shown), findings, entries)

    def rest(self) -> None:
        """Instead of a look, while the table is quiet."""
        self._heap.look(0)

    def mood(self, now_s: float) -> Mood:
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()
        total, strange, judged = (sum(part[i] for part in self._recent) for i in (1, 2, 3))
        mean = min(1.0, total / judged) if judged else 0.0
        return Mood(mean, int(strange), int(judged), "model" if self._by_model else "rules")

    def _feel(self, now_s: float, look: Look, seen: Conduct) -> None:
        """By the model what it says of each flow; by the rules the share of first sights that led to nothing."""
        self._by_model = look.anomaly is not None
        if look.anomaly is not None:
            self._recent.append((now_s, float(look.anomaly.sum()), look.strange, len(look.anomaly)))
            self.sieged.update(look.sieged[: _SIEGED - len(self.sieged)])
        else:
            vain = len(seen.probes)
            self._recent.append((now_s, float(vain), vain, vain + len(seen.connections)))

    def _teach(self, now_ns: int, unix_s: float, look: Look, seen: Conduct) -> None:
        """Ordinary traffic goes to the learning pool; under siege nothing does."""
        vain = len(seen.probes)
        many = vain >= SIEGE and vain > len(seen.connections) and len(distinct(seen.probes.source)[0]) >= SIEGE
        if look.sieged or many:
            self.samples.alarm(unix_s)
        else:
            self.samples.keep(now_ns, unix_s, look.timely, self.host)
