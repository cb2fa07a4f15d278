"""Every message that crosses between cells, declared once.

Frozen keyword-only dataclasses; facts in the past tense, wishes in the imperative; units in the field names.
Per-packet or per-flow material never travels alone: it comes in batches, and bulk data as one ``bytes`` field
(numpy records whose dtype is named in the docstring). The codec checks types and bounds at the border, so a
handler may trust the shape of what it gets, though not the truth of it: bytes from an unprivileged cell are an
opinion, and only ``Permeability`` turns an opinion into enforcement.

Times called ``*_unix_s`` are wall-clock seconds (they survive a reboot); everything measured inside one life
of the node is monotonic and called ``*_s`` (a duration) or ``*_ns``.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

#: A handler must finish within 50 ms; 200 records is what the slowest handler manages with room to spare.
BATCH_LIMIT = 200

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
ShortText = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=2000)]
#: An address or a prefix in canonical text: ``203.0.113.7``, ``2001:db8::/64``. A host carries no length.
Subject = Annotated[str, Meta(min_length=2, max_length=49)]
CellName = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,31}$")]
Verb = Annotated[str, Meta(pattern="^[a-z][a-z0-9_.]{0,47}$")]
#: Many subjects, 17 bytes each (``core.packed``): as many as a message of 128 kB carries.
Rows = Annotated[bytes, Meta(max_length=17 * 7_000)]


#: Every declared kind by its name on the wire; filled as the classes are made.
KINDS: dict[str, type["Message"]] = {}


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all that is sent. The kind on the wire is the class name."""

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls


class CellState(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"
    OFF = "off"


class Action(StrEnum):
    BAN = "ban"
    THROTTLE = "throttle"
    OBSERVE = "observe"


class Posture(StrEnum):
    """From open to closed; DESIGN section 7 has the table."""

    EXPLORE = "explore"
    BALANCED = "balanced"
    HARDENED = "hardened"
    LOCKDOWN = "lockdown"


# --- questions from outside and between cells -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ask(Message):
    """A request that wants an answer: from the command line, the gateway or another cell.

    ``verb`` finds the cell that declared ``@answers(verb)``; ``args`` are plain msgpack values which the
    handler checks. ``by`` says who asked, for the record ("cli uid 0", "http 10.0.0.5"). ``timeout_s`` is how
    long the asker waits, so that nobody works for one who has gone."""

    id: int
    verb: Verb
    args: dict[str, Any] = field(default_factory=dict)
    by: ShortText = ""
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 2.0


@dataclass(frozen=True, kw_only=True)
class Answer(Message):
    """To an ``Ask`` of the same id. ``problem`` empty means success; otherwise one sentence for people, with
    ``code`` one of ``refused``, ``not_found``, ``unavailable``, ``failed`` and ``remedy`` the next step."""

    id: int
    value: Any = None
    code: ShortText = ""
    problem: Text = ""
    remedy: Text = ""


@dataclass(frozen=True, kw_only=True)
class CellReport(Message):
    """Any cell → all who show status. On every change of state, and every 10 s with fresh counters.

    counters only grow within one incarnation; gauges are levels now. Names are metric names without prefix."""

    cell: CellName
    state: CellState
    reason: Text = ""
    remedy: Text = ""
    counters: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)


# --- the gate ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict(Message):
    """Sensor → Permeability: a proposal. The gate decides; a sensor never enforces.

    score: how sure the sensor is, 0 to 1. ttl_s 0 lets policy choose. evidence is in words, for ``why``."""

    subject: Subject
    action: Action
    reason: ShortText
    evidence: Text = ""
    score: Unit = 1.0
    ttl_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    origin: CellName
    seen_unix_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One enforced decision. ``until_unix_s`` 0 means until released."""

    subject: Subject
    action: Action
    until_unix_s: float
    reason: ShortText


@dataclass(frozen=True, kw_only=True)
class Enforce(Message):
    """Permeability → ReflexArc, Keratinocyte: put these into the kernel. Idempotent: the same order twice is one ban.

    ``generation`` grows by one with each change of the desired state."""

    orders: Annotated[list[Order], Meta(max_length=BATCH_LIMIT)]
    generation: int


@dataclass(frozen=True, kw_only=True)
class Release(Message):
    """Permeability → ReflexArc, Keratinocyte: take these out of the kernel. Releasing what is absent is success."""

    subjects: Annotated[list[Subject], Meta(max_length=BATCH_LIMIT)]
    generation: int


@dataclass(frozen=True, kw_only=True)
class EnforceAll(Message):
    """Permeability → ReflexArc, Keratinocyte: the whole desired state, in a file of msgpack ``Order`` maps.

    Sent to a cell that has just started, and after a bulk import. ``path`` lies in the run directory, mode 0600,
    and is replaced, never changed in place. What the kernel holds beyond it and the cell's own later orders is
    released."""

    path: Annotated[str, Meta(max_length=4096)]
    count: int
    generation: int


@dataclass(frozen=True, kw_only=True)
class EnforceMany(Message):
    """Permeability → ReflexArc, Keratinocyte, Gateway: many bans of one decision, as rows (``core.packed``).

    As if each were an ``Order`` to ban with this end and this reason; idempotent like ``Enforce``."""

    subjects: Rows
    until_unix_s: float
    reason: ShortText
    generation: int


@dataclass(frozen=True, kw_only=True)
class SetTolerance(Message):
    """Permeability → ReflexArc, Keratinocyte: the whole allowlist, small by rule (at most 4096 prefixes)."""

    prefixes: Annotated[list[Subject], Meta(max_length=4096)]
    generation: int


@dataclass(frozen=True, kw_only=True)
class SetBudgets(Message):
    """Throttler → ReflexArc: every per-source budget at this share of its setting, for ``valid_s`` unless said again.

    1 is as configured. Repeated while it is less."""

    scale: Annotated[float, Meta(ge=0.05, le=1.0)]
    valid_s: Annotated[float, Meta(gt=0, le=600)] = 30.0


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Packets of one source. budget: ``udp`` or ``total``, the budget of the kernel program that they count against."""

    subject: Subject
    budget: Annotated[str, Meta(pattern="^(udp|total)$")]
    packets: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class SpentElsewhere(Message):
    """Throttler → ReflexArc: what heavy sources have sent to the other nodes of the fleet since the last such message.

    Charged to their budgets here, so that the sum over all nodes is held to one budget. Not repeatable."""

    sources: Annotated[list[Spent], Meta(max_length=BATCH_LIMIT)]


@dataclass(frozen=True, kw_only=True)
class PostureChanged(Message):
    """Permeability → everyone: the posture now in force. Sent again to each cell that starts."""

    posture: Posture
    previous: Posture
    reason: ShortText = ""
    by: ShortText = ""
    since_unix_s: float
    until_unix_s: float = 0.0
    confirm_by_unix_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One subject, asked of the kernel after the fact. ``detail`` says how it was asked and what it said."""

    subject: Subject
    holds: bool
    detail: ShortText = ""


@dataclass(frozen=True, kw_only=True)
class Proved(Message):
    """ReflexArc, Keratinocyte → Permeability: what the kernel itself answered (DESIGN rule 7).

    rung is ``xdp`` or ``nft``. A proof that does not hold has already been queued for repair by the sender."""

    rung: ShortText
    proofs: Annotated[list[Proof], Meta(max_length=BATCH_LIMIT)]


# --- vaccines against payloads ----------------------------------------------------------------------------


#: The first bytes of a payload, as ``payloads.py`` has them.
PayloadHead = Annotated[bytes, Meta(min_length=1, max_length=32)]
#: So many vaccines stand at once.
VACCINE_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class HostilePayload(Message):
    """Macrophage, Langerhans → Permeability, Langerhans: packets that begin like this are hostile, whoever sends them.

    A proposal, as ``Verdict`` is one about a source. proto 6 or 17. seen_from: who sent it, when it was seen here.
    ttl_s 0 lets policy choose."""

    proto: Annotated[int, Meta(ge=0, le=255)]
    dest_port: Annotated[int, Meta(ge=0, le=65535)]
    head: PayloadHead
    reason: ShortText
    evidence: Text = ""
    score: Unit = 1.0
    ttl_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    seen_from: Annotated[str, Meta(max_length=49)] = ""
    seen_unix_s: float


@dataclass(frozen=True, kw_only=True)
class VaccineOrder:
    """One vaccine that policy wants in the kernel. ``number`` stands in the events of the kernel program."""

    name: ShortText
    number: Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]
    proto: Annotated[int, Meta(ge=0, le=255)]
    dest_port: Annotated[int, Meta(ge=0, le=65535)]
    head: PayloadHead
    until_unix_s: float


@dataclass(frozen=True, kw_only=True)
class SetVaccines(Message):
    """Permeability → ReflexArc, Langerhans: all vaccines, repeatable. ``whole`` False: these as well as others that
    the sender has yet to remember."""

    vaccines: Annotated[list[VaccineOrder], Meta(max_length=VACCINE_LIMIT)]
    whole: bool = True


# --- what the skin feels ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReflexEvent:
    """One incident seen or ended by the kernel program; never one per packet.

    reflex is a name from ``bpf.abi.REASONS``; banned says that the program has already banned the source,
    until ``until_unix_s``. packets counts what the incident cost so far. detail: of a vaccine its number."""

    subject: Subject
    reflex: ShortText
    banned: bool
    until_unix_s: float = 0.0
    packets: int = 0
    dest_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    detail: Annotated[int, Meta(ge=0)] = 0
    seen_unix_s: float


@dataclass(frozen=True, kw_only=True)
class ReflexEvents(Message):
    """ReflexArc → Permeability, Merkel: at most one per 50 ms. lost counts events the ring had no room for."""

    events: Annotated[list[ReflexEvent], Meta(max_length=BATCH_LIMIT)]
    lost: int = 0


@dataclass(frozen=True, kw_only=True)
class HookWanted(Message):
    """ReflexArc → Keratinocyte: the kernel program found no place on these interfaces; filter at their nftables
    ingress hook instead. The whole wish, repeatable; empty: no such hook is needed (any more)."""

    interfaces: Annotated[list[ShortText], Meta(max_length=BATCH_LIMIT)]


@dataclass(frozen=True, kw_only=True)
class HookAnswered(Message):
    """Keratinocyte → ReflexArc: the ingress hook stands on ``interfaces``; ``refused`` says why not on the others.
    prerouting: the same filter stands at the prerouting hook, whatever becomes of ingress."""

    interfaces: Annotated[list[ShortText], Meta(max_length=BATCH_LIMIT)]
    refused: dict[str, str] = field(default_factory=dict)
    prerouting: bool = False


@dataclass(frozen=True, kw_only=True)
class KernelCounters(Message):
    """ReflexArc → Merkel: totals since the counters were made, by reason. Every second while traffic flows."""

    packets: dict[str, int]
    bytes: dict[str, int]
    rung: ShortText
    at_ns: int


@dataclass(frozen=True, kw_only=True)
class Quale:
    """One feeling: value 0 to 1, the raw figure behind it with its unit in words, and the window it covers."""

    value: Unit
    raw: float
    unit: ShortText
    window_s: float


@dataclass(frozen=True, kw_only=True)
class Qualia(Message):
    """Merkel → Permeability, Gateway: how the skin feels now. Every second while it changes, else every 10 s."""

    pressure: Quale
    temperature: Quale
    pain: Quale
    integrity: Quale
    at_unix_s: float


@dataclass(frozen=True, kw_only=True)
class Anomaly(Message):
    """MastCell → Merkel: how strange the conversations of the last seconds were. When it moved, else every ten seconds.

    mean: over the judged ones, 0 ordinary to 1 stranger than one clean one in 100,000; by ``model``, or by ``rules``:
    then the share that led to no connection. strange of judged: beyond one in a hundred. sieged: services that are
    flooded from many addresses, which blames nobody, as ``tcp/80``."""

    mean: Unit
    strange: int
    judged: int
    by: ShortText
    window_s: float
    sieged: Annotated[list[ShortText], Meta(max_length=64)] = field(default_factory=list)


# --- memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row for the journal. key makes it idempotent: the same key twice is one row.

    kind is one of ``ban``, ``release``, ``posture``, ``tolerance``, ``verdict``, ``lifecycle``, ``session``,
    ``antigen`` (learned here), ``alert`` (felt here), ``vaccine`` (learned from other nodes); body is plain msgpack.
    subjects: the same entry about each of many (``core.packed``), which then have keys of their own: ``key:0`` on."""

    key: Annotated[str, Meta(max_length=120)]
    kind: ShortText
    at_unix_s: float
    subject: Annotated[str, Meta(max_length=49)] = ""
    body: dict[str, Any] = field(default_factory=dict)
    subjects: Rows = b""


@dataclass(frozen=True, kw_only=True)
class Record(Message):
    """Any cell → MemoryCell: write these down before anything else is done with them."""

    id: int
    entries: Annotated[list[Entry], Meta(max_length=BATCH_LIMIT)]


@dataclass(frozen=True, kw_only=True)
class Recorded(Message):
    """MemoryCell → the cell that sent ``Record``: on disk. problem says why not; epoch names the journal's file."""

    id: int
    problem: Text = ""
    epoch: ShortText = ""


# --- feeds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FeedCompiled(Message):
    """Melanocyte → ReflexArc, Keratinocyte: a new blocklist image is on disk.

    snapshot is the IPv4 image and snapshot6 the IPv6 image for the kernel program (see bpf/blocklist.h);
    prefixes is the merged list as text for the nft rungs. Files are replaced, never changed in place.
    classes names the feed behind each class number that the kernel program counts by."""

    generation: int
    snapshot: Annotated[str, Meta(max_length=4096)]
    snapshot6: Annotated[str, Meta(max_length=4096)]
    prefixes: Annotated[str, Meta(max_length=4096)]
    entries_v4: int
    entries_v6: int
    classes: Annotated[list[ShortText], Meta(max_length=64)] = field(default_factory=list)


# --- who may say it ---------------------------------------------------------------------------------------

#: What only these cells may say. From any other cell it is dropped and counted before a handler sees it: a cell that
#: reads hostile bytes may be turned, and must then be able to lie about what it saw, but not to command the others.
SPEAKERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("Enforce", "EnforceMany", "Release", "EnforceAll", "SetTolerance", "PostureChanged"),
        frozenset({"permeability"}),
    ),
    "HostilePayload": frozenset({"macrophage", "langerhans"}),
    "Proved": frozenset({"reflex_arc", "keratinocyte"}),
    "ReflexEvents": frozenset({"reflex_arc"}),
    **dict.fromkeys(("SetBudgets", "SpentElsewhere"), frozenset({"throttler"})),
    "HookWanted": frozenset({"reflex_arc"}),
    "HookAnswered": frozenset({"keratinocyte"}),
    "Qualia": frozenset({"merkel"}),
    "Anomaly": frozenset({"mast_cell"}),
    "Recorded": frozenset({"memory_cell"}),
    "FeedCompiled": frozenset({"melanocyte"}),
}

#: Questions that command, and who may put them: the supervisor asks on behalf of root's command line, the gateway on
#: behalf of whoever holds its token. A cell may also have itself started anew. Any other cell is refused and counted.
ASKERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            "block",
            "cell.restart",
            "feeds.reload",
            "posture.confirm",
            "posture.set",
            "release",
            "reload",
            "rules.reload",
            "signatures.release",
            "signatures.share",
            "tolerate",
            "vaccines.release",
        ),
        frozenset({"basal_layer", "gateway"}),
    ),
    **dict.fromkeys(("memory.outbox", "memory.sent", "rules.learned"), frozenset({"basal_layer", "langerhans"})),
}
