"""What a data plane can be asked to do: the Protocol that the real one and the fake both keep.

``bpf.loader.KernelPlane`` is the real one, ``bpf.fake.FakePlane`` refuses what the kernel refuses; one contract test
(tests/contract/test_data_plane.py) holds both to this page. Everything that enforces lies in the kernel, so closing
a data plane, or dying with one open, changes no packet's verdict; only ``detach`` takes protection away.

Subjects are text: ``203.0.113.7``, ``2001:db8::1``, ``2001:db8::/64``, ``198.51.100.0/24``. Times are CLOCK_MONOTONIC
nanoseconds (``time.monotonic_ns()``). Calls block for microseconds, except ``attach`` and ``publish`` (tens of
milliseconds) and bulk changes (about 1 us an entry). One object belongs to one thread. The errors are those of
``bpf.errors``, named here again for whoever reads this page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bpf.ban import Ban as Ban
from bpf.errors import AllRungsRefused as AllRungsRefused
from bpf.errors import BadSubject as BadSubject
from bpf.errors import DataPlaneError as DataPlaneError
from bpf.errors import MapFull as MapFull
from bpf.errors import NoSuchInterface as NoSuchInterface
from bpf.errors import NotMade as NotMade

if TYPE_CHECKING:
    from bpf.ban_rows import BanRows

Records = npt.NDArray[np.void]


class Rung(StrEnum):
    """Ways to hang the program into the kernel, best first."""

    NATIVE = "native"  #: XDP in the driver
    TCX = "tcx"  #: the traffic-control hook, as a link
    GENERIC = "generic"  #: XDP behind the driver


class Stance(StrEnum):
    """What the program does with a verdict."""

    OBSERVE = "observe"  #: pass everything, count what would have been dropped
    ENFORCE = "enforce"
    HARDENED = "hardened"  #: enforce with every budget halved


@dataclass(frozen=True, slots=True)
class Attachment:
    """The program on one interface. refused: for each better rung, why it was not taken, in words."""

    interface: str
    ifindex: int
    rung: Rung
    refused: dict[str, str] = field(default_factory=dict)
    adopted: bool = False  #: the link was there already and was kept


class EgressWay(StrEnum):
    """How the accounting of what leaves hangs on an interface, best first."""

    TCX = "tcx"  #: as a link (kernel 6.6)
    CLSACT = "clsact"  #: as a filter of the queue clsact


@dataclass(frozen=True, slots=True)
class Egress:
    """The accounting of what leaves one interface. way None: there is none; refused says for each way why, in words."""

    interface: str
    way: EgressWay | None = None
    refused: dict[str, str] = field(default_factory=dict)
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the program came into the kernel. left_out: what this kernel, or this loader, does without, and why."""

    loader: str  #: ``libbpf`` (the compiled object) or ``bcc`` (compiled here from source)
    why: str = ""  #: why not the first of them
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vaccine:
    """Drops a payload whoever sends it: ``bpf.maps.fingerprint(payload)``, to this port of this protocol."""

    proto: int
    dest_port: int
    fingerprint: int
    until_ns: int = 0
    id: int = 0  #: shown in events, of which it is 32 bits
    packets: int = 0  #: dropped because of it so far


@dataclass(frozen=True, slots=True)
class Charge:
    """Packets that a source has sent elsewhere. budget: ``syn``, ``udp``, ``icmp``, ``fragment`` or ``total``."""

    subject: str
    budget: str
    packets: int


@dataclass(frozen=True, slots=True)
class Budget:
    """A token bucket. rate: packets per second, 0 switches it off; burst: packets, at most 4,000,000."""

    rate: float = 0.0
    burst: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """Every knob of the program that is no table. Budgets are per source (IPv6: /64) unless said."""

    stance: Stance = Stance.ENFORCE
    syn: Budget = Budget(200, 400)
    udp: Budget = Budget(25_000, 50_000)
    icmp: Budget = Budget(50, 100)
    fragment: Budget = Budget(1_000, 2_000)
    total: Budget = Budget(250_000, 500_000)
    prefix: Budget = Budget(0, 0)  #: per IPv4 /24 or IPv6 /48: SYN, UDP and ICMP together
    amplified: Budget = Budget(0, 0)  #: per destination: large UDP answers from ports that amplify
    syn_dest: Budget = Budget(2_000, 4_000)  #: per destination address and port: SYNs from anybody
    events: Budget = Budget(10_000, 20_000)  #: per CPU
    samples: Budget = Budget(20_000, 20_000)  #: per CPU
    ban_s: float = 60.0  #: a source over its budget is banned so long by the program; 0: it loses only the excess
    drop_malformed: bool = True
    incident_s: float = 10.0  #: an incident that lasts is told again after so long
    sample_bytes: int = 16_384  #: payload per flow and side that goes to inspection; 0: none
    amplified_bytes: int = 512
    flow_idle_s: float = 30.0  #: a flow silent so long may give way to a newcomer, and is another when it returns
    syn_flood_drops: bool = False  #: drop SYNs beyond ``syn_dest``; else they are told and counted only
    syn_cookies: bool = True  #: where they are not dropped: answer them with the kernel's cookie, if the driver can


@dataclass(frozen=True, slots=True)
class Proof:
    """What the very program said about a synthetic packet of this source. Nothing was counted for it."""

    subject: str
    drop: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Counters:
    """True totals since the maps were made, over all CPUs. Keys of did and would are reasons, tally keys tallies.

    Every frame is in exactly one of ``did`` (verdict carried out) and ``would`` (withheld: only observing)."""

    did_packets: dict[str, int]
    did_bytes: dict[str, int]
    would_packets: dict[str, int]
    would_bytes: dict[str, int]
    tally: dict[str, int]

    @property
    def frames(self) -> int:
        """All frames ever judged."""
        return sum(self.did_packets.values()) + sum(self.would_packets.values())

    @property
    def dropped(self) -> int:
        """Frames that were dropped in truth."""
        from bpf.abi import DROP_REASONS  # the names come from the object, which a reader of this page may not have

        return sum(count for reason, count in self.did_packets.items() if reason in DROP_REASONS)


class Drain(Protocol):
    """A stream from the kernel. fd is readable when something waits (-1: must be polled)."""

    fd: int

    def read(self, limit: int = 65_536) -> Records:
        """Up to ``limit`` records that waited (``bpf.abi`` EVENT dtype); empty when none. Never blocks."""
        ...

    def close(self) -> None: ...


class SampleDrain(Protocol):
    """Payload samples: a header (``bpf.abi`` SAMPLE dtype) and the bytes."""

    fd: int

    def read(self, limit: int = 1_024) -> list[tuple[Any, bytes]]: ...

    def rest(self) -> None:
        """Hold no memory until the next sample comes."""
        ...

    def close(self) -> None: ...


class FlowReader(Protocol):
    """The flow table, read without a system call."""

    def read(self, since_ns: int = 0) -> tuple[npt.NDArray[np.uint32], Records]:
        """Slots and copies (``bpf.abi`` FLOW dtype) of the flows that saw a packet at or after ``since_ns``."""
        ...

    def close(self) -> None: ...


class DataPlane(Protocol):
    """The kernel program with its tables. Raises DataPlaneError and its kinds, nothing else."""

    events: Drain
    flows: FlowReader

    @property
    def samples(self) -> SampleDrain:
        """The ring of payload samples; it has one reader."""
        ...

    @property
    def loaded(self) -> Loaded: ...

    def attach(
        self, interface: str, rungs: Sequence[Rung] = (Rung.NATIVE, Rung.TCX, Rung.GENERIC), climb: bool = False
    ) -> Attachment:
        """Hang the program on an interface at the best rung that works. Adopts a pinned link, replaces another
        version of the program in one atomic step, does nothing when all is as wished. Raises NoSuchInterface or
        AllRungsRefused. climb: where it hangs already, try the better rungs again, without a gap."""
        ...

    def detach(self, interface: str) -> bool:
        """Take the program off, on purpose, in both directions. False when it was not on."""
        ...

    def attachments(self) -> list[Attachment]:
        """What hangs where now, asked of the kernel; severed links (device gone) are left out."""
        ...

    def account_egress(self, interface: str, wanted: bool = True) -> Egress:
        """Hang the program beside it that accounts what leaves, so that flow records get their other side; adopted,
        replaced and kept as ``attach`` does. It drops nothing, so a refusal is a result and no error. wanted False
        takes it off. Raises NoSuchInterface."""
        ...

    def egress(self) -> dict[str, EgressWay]:
        """Where it hangs now, asked of the kernel."""
        ...

    def keep_pins(self) -> int:
        """Pin program and tables again where somebody unpinned them. Returns how many pins were missing. Raises
        DataPlaneError."""
        ...

    def set_policy(self, policy: Policy) -> None:
        """All knobs at once; in force for the next packet."""
        ...

    def ban(self, bans: Iterable[Ban]) -> int:
        """Put bans into the kernel; an existing one gets the new time. Returns how many stand. Raises BadSubject
        (nothing changed) or MapFull. Loopback, multicast and the unspecified address are BadSubject."""
        ...

    def ban_many(self, rows: bytes, until_ns: int) -> int:
        """The same for many hosts (and IPv6 /64s) with one end, as rows of ``bpf.subjects.ROW``."""
        ...

    def release(self, subjects: Iterable[str]) -> int:
        """Take bans out; absent ones are no error. Returns how many there were."""
        ...

    def bans(self) -> list[Ban]:
        """All entries, expired ones included, those made by the kernel too."""
        ...

    def ban_rows(self) -> "BanRows":
        """The same as arrays, in the kernel's order, which stays while nothing changes. About 0.2 us an entry."""
        ...

    def sweep(self, now_ns: int) -> int:
        """Forget expired bans and vaccines, and clear the prefilters of what is gone. Returns how many went. Half a
        microsecond an entry that stands, three an entry that goes."""
        ...

    def charge(self, charges: Iterable[Charge]) -> int:
        """Take tokens from the budgets of sources that are known here. Returns how many were. Raises BadSubject."""
        ...

    def tolerate(self, prefixes: Sequence[str]) -> None:
        """Replace the whole allowlist (at most 4096). New entries stand before old ones go."""
        ...

    def tolerated(self) -> list[str]: ...

    def vaccinate(self, vaccines: Iterable[Vaccine]) -> int: ...

    def unvaccinate(self, vaccines: Iterable[Vaccine]) -> int: ...

    def vaccines(self) -> list[Vaccine]:
        """All entries, expired ones included. A system call for each batch of them."""
        ...

    def prove_payload(self, proto: int, dest_port: int, head: bytes) -> Proof:
        """Send one synthetic packet that begins like this through the loaded program. The source is a documentation
        address, or another one where a feed lists those; ``subject`` of the proof is that source."""
        ...

    def publish(self, snapshot: Path | None, snapshot6: Path | None) -> None:
        """Swap compiled blocklist images in, each atomically; None leaves that family as it is. Block up to 20 ms."""
        ...

    def prove(self, subjects: Sequence[str]) -> list[Proof]:
        """Send one synthetic packet of each source through the loaded program; counts and changes nothing."""
        ...

    def counters(self) -> Counters: ...

    def close(self) -> None:
        """Let go of everything; the kernel goes on."""
        ...
