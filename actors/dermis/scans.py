"""Scans and brute force: plain rules over what sources did, with reasons that a person understands. Pure.

Memory is bounded twice. Of every source that knocked in vain a number is kept in a fixed table; only who did it again
becomes a *suspect*, of whom each target is remembered. A flood of forged sources that knock once makes no suspect, and
when suspects are too many the least busy of the oldest goes.

A source is a scanner when most of its conversations led to no connection and the doors it tried are many: quickly, or
patiently within a quarter of an hour, or few of its own but many together with others that do the same at the same
time (a distributed scan). Brute force is known by many short sessions of the same size to one login service.

Weakness: a SYN can be forged, so a forger can have an address blamed that never connects here; whoever really connects
as often as he seems to knock is not blamed. Who mixes one real connection into every two attempts is not seen either.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from actors.dermis.scans_words import address_text, list_ports, span_text, subject_of
from actors.dermis.sessions import Acts, Conduct
from ml.groups import among, distinct
from ml.table import CROWD, PlaceTable

#: (seconds, targets): so many different doors within so much time are a scan. The last one finds the patient.
SCANS: Final = ((10.0, 10), (60.0, 12), (900.0, 15))
#: Together: at least so many sources, with so many doors each and together, of one address within the time.
TOGETHER_S, TOGETHER_SOURCES, TOGETHER_EACH, TOGETHER_PORTS = 60.0, 5, 3, 15
#: (seconds, sessions): so many short sessions to one login service are no person. Where programs log in by themselves
#: all day (mail, files) it takes POLLED times as many.
LOGINS: Final = ((60.0, 10), (600.0, 80))
POLLED: Final = 4
#: Share of them that have the same size, within half an octave.
ALIKE: Final = 0.6
#: Somebody who goes on is told of again after this.
RENEW_S: Final = 10.0

SOURCES: Final = 16_384
SUSPECTS: Final = 2_048
TARGETS: Final = 512
CALLERS: Final = 2_048
#: New suspects, and acts of one suspect, that one batch may bring.
NEWCOMERS: Final = 256
ACTS: Final = 256
#: How long a vain knock counts, and how much makes a suspect: the second one within ten minutes.
MEMORY_S: Final = 900.0
AGAIN: Final = 1.5

Target = tuple[bytes, int, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """Somebody to be proposed. kind: ``scan``, ``distributed``, ``login``; score: how sure, 0 to 1."""

    subject: str
    kind: str
    reason: str
    evidence: str
    score: float


@dataclass(slots=True)
class Suspect:
    """Targets (address, port, protocol) with the time of the last knock, oldest first; when it connected; when it was
    told of (0: never)."""

    subject: str
    targets: dict[Target, float] = field(default_factory=dict)
    met: deque[float] = field(default_factory=lambda: deque(maxlen=TARGETS))
    told_s: float = 0.0

    def knock(self, target: Target, at_s: float) -> None:
        self.targets.pop(target, None)
        self.targets[target] = at_s
        if len(self.targets) > TARGETS:
            del self.targets[next(iter(self.targets))]

    def since(self, at_s: float) -> list[tuple[Target, float]]:
        """Targets from then on, newest first."""
        found = []
        for target, when in reversed(self.targets.items()):
            if when < at_s:
                break
            found.append((target, when))
        return found

    def resting(self, now_s: float) -> bool:
        return bool(self.told_s) and now_s - self.told_s < RENEW_S


class Watchlist:
    """All memory of the rules. ``observe`` once per look, with time going forward (seconds)."""

    def __init__(self) -> None:
        self._inklings = _Inklings(SOURCES)
        self.suspects: OrderedDict[int, Suspect] = OrderedDict()
        self._callers: OrderedDict[tuple[int, bytes, int], _Caller] = OrderedDict()
        self.forgotten = 0

    @property
    def evicted(self) -> int:
        """Sources and suspects that lost their place to others."""
        return self.forgotten + self._inklings.places.evicted + self._inklings.places.crowded

    def observe(self, now_s: float, seen: Conduct) -> list[Finding]:
        """Take in what was done since the last look, and say who is to be told of."""
        self._meet(seen.connections)
        touched = self._knocks(now_s, seen.probes)
        found = [finding for suspect in touched if (finding := _scan(suspect, now_s))]
        if touched:
            found += _together(self.suspects.values(), now_s)
        return found + self._logins(now_s, seen.logins)

    def _knocks(self, now_s: float, probes: Acts) -> list[Suspect]:
        """Note vain knocks; returns the suspects that knocked now."""
        if not len(probes):
            return []
        keys, of_source = distinct(probes.source)
        counts = np.bincount(of_source)
        known = among(keys, np.fromiter(self.suspects, "u8", len(self.suspects)))
        again = np.flatnonzero((self._inklings.note(keys, counts, now_s) >= AGAIN) & ~known)
        chosen = known
        chosen[again[np.argsort(-counts[again], kind="stable")[:NEWCOMERS]]] = True
        touched = []
        for rows in _by_source(of_source, chosen):
            first = rows[0]
            suspect = self._suspect(int(probes.source[first]), probes.key[first], bool(probes.near[first]))
            for row in rows[np.argsort(probes.began_s[rows], kind="stable")][-ACTS:]:
                suspect.knock(_target(probes.key[row]), float(probes.began_s[row]))
            touched.append(suspect)
        return touched

    def _suspect(self, key: int, flow_key: np.void, near: bool) -> Suspect:
        suspect = self.suspects.get(key)
        if suspect is None:
            suspect = self.suspects[key] = Suspect(subject_of(flow_key, near))
            if len(self.suspects) > SUSPECTS:
                self._forget_one()
        self.suspects.move_to_end(key)
        return suspect

    def _forget_one(self) -> None:
        """Of the longest silent the one with the fewest targets, so that a flood does not hide a patient scanner."""
        silent = [key for key, _ in zip(self.suspects, range(32), strict=False)]
        del self.suspects[min(silent, key=lambda key: len(self.suspects[key].targets))]
        self.forgotten += 1

    def _meet(self, connections: Acts) -> None:
        """Real connections speak for a suspect."""
        if not len(connections) or not self.suspects:
            return
        suspects = among(connections.source, np.fromiter(self.suspects, "u8", len(self.suspects)))
        for row in np.flatnonzero(suspects)[-NEWCOMERS * 4 :]:
            self.suspects[int(connections.source[row])].met.append(float(connections.began_s[row]))

    def _logins(self, now_s: float, logins: Acts) -> list[Finding]:
        touched = {}
        for row in range(len(logins))[-NEWCOMERS * 4 :]:
            address, port, _ = _target(logins.key[row])
            name = int(logins.source[row]), address, port
            caller = self._callers.get(name)
            if caller is None:
                caller = self._callers[name] = _Caller(subject_of(logins.key[row], bool(logins.near[row])))
                if len(self._callers) > CALLERS:
                    self._callers.popitem(last=False)
                    self.forgotten += 1
            self._callers.move_to_end(name)
            caller.sessions.append((float(logins.began_s[row]), int(2 * np.log2(logins.size[row] + 1.0))))
            touched[name] = caller
        return [found for name, caller in touched.items() if (found := _brute_force(name, caller, now_s))]


class _Inklings:
    """How often each source knocked in vain, fading over a quarter of an hour; a fixed table."""

    def __init__(self, size: int) -> None:
        self.places = PlaceTable(size)
        self._count = np.zeros(size + 1, "f4")
        self._at_s = np.zeros(size + 1, "f8")

    def note(self, keys: NDArray[np.uint64], counts: NDArray[np.int64], now_s: float) -> NDArray[np.float32]:
        """Add to distinct sources and say how each stands; 0 for those that found no place."""
        place, new = self.places.find(keys, int(now_s * 1000))
        self._count[place[new]] = 0
        fade = np.exp(-np.maximum(now_s - self._at_s[place], 0) / MEMORY_S)
        self._count[place] = self._count[place] * fade + counts
        self._at_s[place] = now_s
        self._count[CROWD] = 0
        return np.asarray(self._count[place])


@dataclass(slots=True)
class _Caller:
    """Short sessions of one source to one login service: (when, size in half octaves). When it was told of (0: never)
    and how surely."""

    subject: str
    sessions: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=LOGINS[-1][1] * POLLED * 2))
    told_s: float = 0.0
    score: float = 0.0


def _scan(suspect: Suspect, now_s: float) -> Finding | None:
    """Judge one suspect by each pace, quick ones first."""
    if suspect.resting(now_s) or len(suspect.targets) < SCANS[0][1]:
        return None
    for seconds, least in SCANS:
        recent = suspect.since(now_s - seconds)
        vain = len(recent)
        met = sum(at >= now_s - seconds for at in suspect.met)
        if vain < least or vain <= met:
            continue
        suspect.told_s = now_s
        lasted = max(now_s - recent[-1][1], 1.0)
        slow = vain < lasted
        return Finding(
            suspect.subject,
            "scan",
            f"{'slow ' if slow else ''}{_kind_of([target for target, _ in recent])}",
            f"{_doors([target for target, _ in recent])} in {span_text(lasted)}, "
            f"{round(100 * vain / (vain + met))} % led to no connection",
            min(0.99, 0.85 + 0.005 * (vain - least)),
        )
    return None


def _together(suspects: Iterable[Suspect], now_s: float) -> list[Finding]:
    """Sources that try the doors of one address at the same time, each a few."""
    groups: dict[bytes, list[tuple[Suspect, set[int], float]]] = {}
    for suspect in suspects:
        if len(suspect.targets) < TOGETHER_EACH or suspect.met:
            continue
        recent = suspect.since(now_s - TOGETHER_S)
        for address, ports in _ports_by_address(recent).items():
            if len(ports) >= TOGETHER_EACH:
                groups.setdefault(address, []).append((suspect, ports, recent[-1][1]))
    found = []
    for address, group in groups.items():
        union = set().union(*(ports for _, ports, _ in group))
        if len(group) < TOGETHER_SOURCES or len(union) < TOGETHER_PORTS:
            continue
        lasted = span_text(max(now_s - min(began for _, _, began in group), 1.0))
        for suspect, ports, _ in group:
            if suspect.resting(now_s):
                continue
            suspect.told_s = now_s
            where = address_text(address)
            evidence = (
                f"one of {len(group)} sources that together touched {len(union)} ports of {where} in {lasted}; "
                f"{len(ports)} of them from here ({list_ports(ports)}), none led to a connection"
            )
            found.append(Finding(suspect.subject, "distributed", "distributed port scan", evidence, 0.85))
    return found


def _brute_force(name: tuple[int, bytes, int], caller: _Caller, now_s: float) -> Finding | None:
    resting = bool(caller.told_s) and now_s - caller.told_s < RENEW_S
    _, address, port = name
    for seconds, usual in LOGINS:
        least = usual * POLLED if port in POLLED_PORTS else usual
        recent = [(at, size) for at, size in caller.sessions if at >= now_s - seconds]
        if len(recent) < least:
            continue
        alike = Counter(size for _, size in recent).most_common(1)[0][1] / len(recent)
        if alike < ALIKE:
            continue
        score = 0.9 if len(recent) >= 2 * least else 0.7
        if resting and score <= caller.score:
            return None
        caller.told_s, caller.score = now_s, score
        service = LOGIN_NAMES.get(port, f"port {port}")
        return Finding(
            caller.subject,
            "login",
            f"brute force against {service}",
            f"{len(recent)} short sessions to {service} ({port}/tcp) of {address_text(address)} in "
            f"{span_text(max(now_s - recent[0][0], 1.0))}, {round(100 * alike)} % of them of the same size",
            score,
        )
    return None


#: Services where people log in, by their usual port.
LOGIN_NAMES: Final = {
    21: "ftp", 22: "ssh", 23: "telnet", 110: "pop3", 143: "imap", 445: "smb", 587: "submission", 993: "imaps",
    995: "pop3s", 2222: "ssh", 3389: "rdp", 5900: "vnc", 5985: "winrm",
}  # fmt: skip
POLLED_PORTS: Final = frozenset({21, 110, 143, 445, 587, 993, 995})


def _kind_of(targets: list[Target]) -> str:
    addresses, ports = len({address for address, _, _ in targets}), len({port for _, port, _ in targets})
    if addresses == 1:
        return "port scan"
    return "address scan" if ports == 1 else "scan of ports and addresses"


def _doors(targets: list[Target]) -> str:
    addresses, ports = {address for address, _, _ in targets}, {port for _, port, _ in targets}
    many = "more than " if len(targets) >= TARGETS else ""
    if len(addresses) == 1:
        return f"touched {many}{len(ports)} ports of {address_text(next(iter(addresses)))} ({list_ports(ports)})"
    if len(ports) == 1:
        return f"touched port {next(iter(ports))} of {many}{len(addresses)} addresses"
    return f"touched {many}{len(targets)} doors: {len(ports)} ports on {len(addresses)} addresses"


def _ports_by_address(recent: list[tuple[Target, float]]) -> dict[bytes, set[int]]:
    found: dict[bytes, set[int]] = {}
    for (address, port, _), _ in recent:
        found.setdefault(address, set()).add(port)
    return found


def _target(key: np.void) -> Target:
    return key["addr"][1].tobytes(), int(key["port"][1]), int(key["proto"])


def _by_source(of_source: NDArray[np.int64], chosen: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Rows of each chosen source."""
    rows = np.flatnonzero(chosen[of_source])
    rows = rows[np.argsort(of_source[rows], kind="stable")]
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(of_source[rows])) + 1)
