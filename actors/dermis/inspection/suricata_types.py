"""The parts of a Suricata rule that are understood, as plain data. Pure.

Names of buffers are Suricata's own. Source: Suricata user guide, chapter Rules.
"""

import re
from dataclasses import dataclass

from actors.dermis.inspection.suricata_nets import Ranges

PAYLOAD = "payload"
ACTIONS = ("pass", "drop", "reject", "alert")  #: in the order in which they are looked at
PROTOCOLS = ("ip", "tcp", "udp", "icmp", "igmp", "tcp-pkt", "tcp-stream", "http", "tls", "dns", "ssh")
APPLICATIONS = ("http", "tls", "dns", "ssh")
#: Buffers of which a message has several; each mention in a rule may be another one of them.
SEVERAL = frozenset({"http.request_header", "http.response_header", "dns.query"})
BODIES = frozenset({"http.request_body", "http.response_body", "file.data"})


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes to be found. relative: the window begins where the last match ended. depth and within: None for no
    bound."""

    data: bytes
    negated: bool = False
    nocase: bool = False
    offset: int = 0
    depth: int | None = None
    distance: int | None = None
    within: int | None = None
    ends: bool = False
    begins: bool = False

    @property
    def relative(self) -> bool:
        return self.distance is not None or self.within is not None


@dataclass(frozen=True, slots=True)
class Pcre:
    """A regular expression to be found. relative: it sees only what follows the last match."""

    pattern: re.Pattern[bytes]
    negated: bool = False
    relative: bool = False
    anchored: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """The buffer's length lies within these."""

    low: int
    high: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class ByteTest:
    """A number in the buffer compares so. base: 0 for binary, else the base of digits; operator: < > = <= >= & ^."""

    bytes: int
    operator: str
    value: int
    offset: int
    relative: bool = False
    negated: bool = False
    little: bool = False
    base: int = 0
    mask: int = -1


Item = Content | Pcre | Size | ByteTest


@dataclass(frozen=True, slots=True)
class Group:
    """Items that are looked for, in order, in one buffer."""

    buffer: str
    items: tuple[Item, ...]

    @property
    def wants_all(self) -> bool:
        """Whether absence or length matters, so that only the whole buffer can be judged."""
        return any(isinstance(item, Size | ByteTest) or item.negated for item in self.items)


@dataclass(frozen=True, slots=True)
class FlowTest:
    """to: 0 for packets to the server, 1 to the client. established: None when it does not matter."""

    to: int | None = None
    established: bool | None = None
    only_stream: bool = False
    no_stream: bool = False


@dataclass(frozen=True, slots=True)
class Threshold:
    """kind: limit, threshold, both, backoff, or ``filter`` (detection_filter). unique: count different ports only."""

    kind: str
    track: str
    count: int
    seconds: float
    multiplier: int = 1
    unique: str = ""


@dataclass(frozen=True, slots=True)
class FlagsTest:
    """TCP flags: mode is ``=`` (exactly), ``+`` (these and others), ``*`` (any of these), ``!`` (none of these)."""

    wanted: int
    mode: str
    ignored: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, understood completely. priority: 1 high to 4 low, as in the rule, 3 without."""

    action: str
    proto: str
    source: Ranges
    source_ports: Ranges
    dest: Ranges
    dest_ports: Ranges
    both_ways: bool
    sid: int
    rev: int = 1
    msg: str = ""
    classtype: str = ""
    priority: int = 3
    groups: tuple[Group, ...] = ()
    flow: FlowTest = FlowTest()
    flags: FlagsTest | None = None
    numbers: tuple[tuple[str, Size], ...] = ()
    ip_proto: tuple[int, bool] | None = None
    bits: tuple[tuple[str, str], ...] = ()
    noalert: bool = False
    threshold: Threshold | None = None
    detection_filter: Threshold | None = None
    line: int = 0

    @property
    def buffers(self) -> frozenset[str]:
        return frozenset(group.buffer for group in self.groups) - {PAYLOAD}
