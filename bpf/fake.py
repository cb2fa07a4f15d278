"""A data plane without a kernel, for tests of the cell above it. It refuses what the kernel refuses.

Held to the same contract test as the real one (tests/contract/test_data_plane.py). Traffic does not flow here: a test
puts events, samples, flows and counts in, and asks with ``prove`` what would happen to a source.
"""

import ipaddress
import os
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi
from bpf.ban_rows import BanRows, rows_of_bans
from bpf.blocklist_image import ImageError, read_image
from bpf.dataplane import (
    AllRungsRefused,
    Attachment,
    BadSubject,
    Ban,
    Charge,
    Counters,
    DataPlaneError,
    Egress,
    EgressWay,
    Loaded,
    MapFull,
    NoSuchInterface,
    Policy,
    Proof,
    Rung,
    Stance,
    Vaccine,
)
from bpf.hashes import fingerprint
from bpf.maps import BURST_MAX, TOLERANCE_MAX
from bpf.sources import budget_number
from bpf.subjects import ROW, bannable_hosts, parse, parse_ban, text_of


class FakeDrain:
    """Gives back what a test has put in; its descriptor becomes readable then, as the ring's does."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: list[Any] = []

    def put(self, *records: Any) -> None:
        self._waiting += records
        os.write(self.fd, struct.pack("=Q", 1))

    def read(self, limit: int = 65_536) -> Any:
        taken, self._waiting = self._waiting[:limit], self._waiting[limit:]
        if not self._waiting:
            try:
                os.read(self.fd, 8)
            except BlockingIOError:
                pass
        return self._shape(taken)

    def _shape(self, taken: list[Any]) -> Any:
        return np.array([tuple(record) for record in taken], abi.EVENT) if taken else np.zeros(0, abi.EVENT)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FakeSamples(FakeDrain):
    def _shape(self, taken: list[Any]) -> Any:
        return taken

    def rest(self) -> None:
        """Nothing is mapped."""


class FakeFlows:
    """The records that a test has put in."""

    def __init__(self) -> None:
        self.records = np.zeros(0, abi.FLOW)

    def read(self, since_ns: int = 0) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]:
        slots = np.flatnonzero(self.records["last_ns"] >= since_ns).astype(np.uint32)
        return slots, self.records[slots].copy()

    def close(self) -> None:
        """Nothing is open."""


class FakePlane:
    """interfaces: name → rungs that its driver allows. ``max_bans`` and friends are the kernel's own limits.
    egress_ways: how the kernel lets what leaves be accounted."""

    def __init__(
        self,
        interfaces: dict[str, tuple[Rung, ...]] | None = None,
        *,
        max_bans: int = 131_072,
        max_prefixes: int = 4096,
        max_vaccines: int = 4096,
        egress_ways: tuple[EgressWay, ...] = tuple(EgressWay),
    ) -> None:
        self.interfaces = interfaces if interfaces is not None else {"skin0": tuple(Rung)}
        self.events, self.samples, self.flows = FakeDrain(), FakeSamples(), FakeFlows()
        self.policy = Policy()
        self._limits = {True: max_bans, False: max_prefixes}
        self._max_vaccines = max_vaccines
        self._attached: dict[str, Attachment] = {}
        self.egress_ways = egress_ways
        self._egress: dict[str, EgressWay] = {}
        self.loaded = Loaded("libbpf")
        self._bans: dict[bool, dict[str, Ban]] = {True: {}, False: {}}
        self._tolerated: list[str] = []
        self._vaccines: dict[tuple[int, int, int], Vaccine] = {}
        self._did = {name: [0, 0] for name in abi.REASONS.values()}
        self._would = {name: [0, 0] for name in abi.REASONS.values()}
        self._tally = dict.fromkeys(abi.TALLIES, 0)
        self.known_sources: set[str] = set()  #: those that have sent packets
        self.charged: list[Charge] = []

    # --- for tests ----------------------------------------------------------------------------------------

    def count(self, reason: str, packets: int, size: int = 60) -> None:
        """As if so many frames had come."""
        withheld = self.policy.stance is Stance.OBSERVE and reason in abi.DROP_REASONS
        row = (self._would if withheld else self._did)[reason]
        row[0] += packets
        row[1] += packets * size

    def forget(self, subject: str) -> None:
        """As if somebody else had deleted the entry."""
        for table in self._bans.values():
            table.pop(str(parse(subject)), None)

    # --- the Protocol -------------------------------------------------------------------------------------

    def attach(
        self,
        interface: str,
        rungs: Sequence[Rung] = (Rung.NATIVE, Rung.TCX, Rung.GENERIC),
        climb: bool = False,
    ) -> Attachment:
        allowed = self.interfaces.get(interface)
        if allowed is None:
            raise NoSuchInterface(f"there is no interface {interface}", remedy="ip link shows those that exist")
        standing = self._attached.get(interface)
        if standing is not None and standing.rung in rungs and not climb:
            return replace(standing, adopted=True)
        refused: dict[str, str] = {}
        for rung in rungs:
            if rung in allowed:
                index = 1 + sorted(self.interfaces).index(interface)
                self._attached[interface] = Attachment(interface, 1 + index, rung, refused)
                return self._attached[interface]
            refused[rung] = f"attach of {interface} failed: the driver knows no XDP in this mode (EOPNOTSUPP)"
        if standing is not None:
            return replace(standing, adopted=True)
        raise AllRungsRefused(f"the program cannot be hung on {interface}", refused=refused)

    def account_egress(self, interface: str, wanted: bool = True) -> Egress:
        if not wanted:
            self._egress.pop(interface, None)
            return Egress(interface)
        if interface not in self.interfaces:
            raise NoSuchInterface(f"there is no interface {interface}", remedy="ip link shows those that exist")
        said = f"egress attach of {interface} failed: this kernel cannot hang a program there in this way (EINVAL)"
        refused = {str(way): said for way in EgressWay if way not in self.egress_ways}
        if not self.egress_ways:
            return Egress(interface, None, refused, "boot kernel 6.6 or newer")
        self._egress.setdefault(interface, self.egress_ways[0])
        return Egress(interface, self._egress[interface], refused)

    def egress(self) -> dict[str, EgressWay]:
        return {name: way for name, way in self._egress.items() if name in self.interfaces}

    def detach(self, interface: str) -> bool:
        self._egress.pop(interface, None)
        return self._attached.pop(interface, None) is not None

    def attachments(self) -> list[Attachment]:
        return [link for name, link in self._attached.items() if name in self.interfaces]

    def keep_pins(self) -> int:
        return 0

    def set_policy(self, policy: Policy) -> None:
        for name in abi.BUDGETS:
            budget = getattr(policy, name)
            if budget.rate < 0 or not 0 <= budget.burst <= BURST_MAX:
                raise DataPlaneError(f"a budget of {budget.rate} with bursts of {budget.burst} is out of range")
        self.policy = policy

    def ban(self, bans: Iterable[Ban]) -> int:
        wanted = [(parse_ban(ban.subject), ban) for ban in bans]
        done = 0
        for subject, ban in sorted(wanted, key=lambda pair: not pair[0].is_host):
            table = self._bans[subject.is_host]
            name = str(subject)
            if name not in table and len(table) >= self._limits[subject.is_host]:
                raise MapFull(f"the ban table is full: {done} of {len(wanted)} were stored", done=done)
            reason = ban.reason if ban.reason in abi.REASON_NUMBERS else "ban"
            table[name] = replace(ban, subject=name, reason=reason)
            done += 1
        return done

    def ban_many(self, rows: bytes, until_ns: int) -> int:
        wanted = np.frombuffer(rows, ROW)
        if not bannable_hosts(wanted).all():
            raise BadSubject("among many subjects is one that is no host, or that cannot be banned")
        return self.ban(Ban(text_of(row["addr"].tobytes(), int(row["bits"])), until_ns) for row in wanted)

    def release(self, subjects: Iterable[str]) -> int:
        gone = 0
        for subject in [parse(text) for text in subjects]:
            gone += self._bans[subject.is_host].pop(str(subject), None) is not None
        return gone

    def bans(self) -> list[Ban]:
        return [*self._bans[True].values(), *self._bans[False].values()]

    def ban_rows(self) -> BanRows:
        return rows_of_bans((parse(ban.subject), ban) for ban in self.bans())

    def sweep(self, now_ns: int) -> int:
        gone = 0
        for table in self._bans.values():
            over = [name for name, ban in table.items() if 0 < ban.until_ns <= now_ns]
            gone += len(over)
            for name in over:
                del table[name]
        expired = [key for key, vaccine in self._vaccines.items() if 0 < vaccine.until_ns <= now_ns]
        for key in expired:
            del self._vaccines[key]
        return gone + len(expired)

    def charge(self, charges: Iterable[Charge]) -> int:
        wanted = list(charges)
        for charge in wanted:
            parse(charge.subject)
            budget_number(charge.budget)
        known = [charge for charge in wanted if charge.subject in self.known_sources]
        self.charged += known
        return len(known)

    def tolerate(self, prefixes: Sequence[str]) -> None:
        wanted = sorted({str(parse(text)) for text in prefixes})
        if len(wanted) > TOLERANCE_MAX:
            raise MapFull(f"{len(wanted)} tolerated prefixes are too many: at most {TOLERANCE_MAX}", done=0)
        self._tolerated = wanted

    def tolerated(self) -> list[str]:
        return list(self._tolerated)

    def vaccinate(self, vaccines: Iterable[Vaccine]) -> int:
        done = 0
        for vaccine in vaccines:
            if vaccine.proto not in (1, 6, 17, 58) or not 0 <= vaccine.dest_port <= 65_535:
                raise BadSubject(f"no vaccine for protocol {vaccine.proto} and port {vaccine.dest_port}")
            key = (vaccine.proto, vaccine.dest_port, vaccine.fingerprint)
            if key not in self._vaccines and len(self._vaccines) >= self._max_vaccines:
                raise MapFull("the table of vaccines is full", done=done)
            self._vaccines[key] = vaccine
            done += 1
        return done

    def unvaccinate(self, vaccines: Iterable[Vaccine]) -> int:
        keys = [(vaccine.proto, vaccine.dest_port, vaccine.fingerprint) for vaccine in vaccines]
        return sum(self._vaccines.pop(key, None) is not None for key in keys)

    def vaccines(self) -> list[Vaccine]:
        return list(self._vaccines.values())

    def prove_payload(self, proto: int, dest_port: int, head: bytes) -> Proof:
        if proto not in (6, 17):
            raise BadSubject(f"protocol {proto} has no payload behind a port")
        vaccine = self._vaccines.get((proto, dest_port, fingerprint(head)))
        stands = vaccine is not None and not 0 < vaccine.until_ns <= time.monotonic_ns()
        return Proof(
            "198.51.100.1", stands and self.policy.stance is not Stance.OBSERVE, "vaccine" if stands else "clean"
        )

    def publish(self, snapshot: Path | None, snapshot6: Path | None) -> None:
        for path, family, pages in ((snapshot, 4, abi.SNAPSHOT_PAGES), (snapshot6, 6, abi.SNAPSHOT6_PAGES)):
            if path is not None:
                try:
                    read_image(path, family, pages)
                except ImageError as error:
                    raise DataPlaneError(str(error), remedy="compile the feeds again: feeds reload") from error

    def prove(self, subjects: Sequence[str]) -> list[Proof]:
        return [self._prove(text) for text in subjects]

    def _prove(self, text: str) -> Proof:
        subject = parse(text)
        reason = self._ban_of(text)
        if reason and _contains(self._tolerated, str(subject)):
            reason = "tolerated"
        enforced = self.policy.stance is not Stance.OBSERVE
        return Proof(text, reason in abi.DROP_REASONS and enforced, reason or "clean")

    def _ban_of(self, text: str) -> str:
        now_ns = time.monotonic_ns()
        for is_host, reason in ((True, "ban"), (False, "ban_prefix")):
            standing = [b.subject for b in self._bans[is_host].values() if not 0 < b.until_ns <= now_ns]
            if _contains(standing, text):
                return reason
        return ""

    def counters(self) -> Counters:
        return Counters(
            did_packets={name: row[0] for name, row in self._did.items()},
            did_bytes={name: row[1] for name, row in self._did.items()},
            would_packets={name: row[0] for name, row in self._would.items()},
            would_bytes={name: row[1] for name, row in self._would.items()},
            tally=dict(self._tally),
        )

    def close(self) -> None:
        self.events.close()
        self.samples.close()


def _contains(prefixes: Sequence[str], text: str) -> bool:
    """Is the (first) address of ``text`` in one of the prefixes?"""
    network = ipaddress.ip_network(text, strict=False)
    for prefix in prefixes:
        other = ipaddress.ip_network(prefix, strict=False)
        if other.version == network.version and network.network_address in other:
            return True
    return False
