"""Antigens: what one node learned, in a form that another node can check. Pure; keys and time are arguments.

An antigen says who misbehaved (``subject``), how it was seen, and until when it shall be believed. Instead of a source
it may teach how a hostile payload begins, or a signature: its subject is then the name that follows from that. It
travels as an envelope ``{v, node, body, sig}``: ``body`` is canonical msgpack (keys sorted), ``sig`` signs topic, node
and body, so that it can be neither changed nor moved to another topic nor said in another's name. Bytes that are no
envelope raise ``AntigenError`` and nothing else.
"""

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from actors.core.errors import TegumentarError
from actors.core.payloads import name_of

TOPIC_ANTIGENS = "tegumentar.langerhans"
TOPIC_ALERTS = "tegumentar.reflex"
TOPICS = (TOPIC_ANTIGENS, TOPIC_ALERTS)
VERSION = 1
#: Bytes of one envelope; what is longer is not even decoded.
MAX_BYTES = 8_192
#: Nothing is believed for longer, whatever its sender says. Seconds; also how far back a newcomer catches up.
MAX_LIFE_S = 86_400.0
#: Characters of a signature that is shared.
SIGNATURE_MAX = 4_096
_DOMAIN = b"tegumentar antigen 1"

Node = Annotated[str, Meta(pattern=r"^[0-9A-Za-z._-]{1,63}$")]
Short = Annotated[str, Meta(max_length=200)]


class AntigenError(TegumentarError):
    """These bytes are no envelope of ours. ``why`` is the name of a counter."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """How a hostile payload begins, as ``actors.core.payloads`` has it. head: hexadecimal digits."""

    proto: Annotated[int, Meta(ge=0, le=255)]
    dest_port: Annotated[int, Meta(ge=0, le=65535)]
    head: Annotated[str, Meta(pattern="^(?:[0-9a-f]{2}){1,32}$")]

    @property
    def name(self) -> str:
        return name_of(self.proto, self.dest_port, bytes.fromhex(self.head))


class Antigen(msgspec.Struct, frozen=True, kw_only=True):
    """One lesson. Times are wall-clock seconds; score is how sure the sensor was, 0 to 1. signature: one entry of a
    file of signatures, as YAML."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    subject: Annotated[str, Meta(min_length=2, max_length=49)]
    reason: Short
    evidence: Annotated[str, Meta(max_length=600)] = ""
    score: Annotated[float, Meta(ge=0, le=1)] = 1.0
    sensor: Annotated[str, Meta(max_length=32)] = ""
    at_unix_s: Annotated[float, Meta(ge=0, le=1e11)]
    expires_unix_s: Annotated[float, Meta(ge=0, le=1e11)]
    dest_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    payload: Payload | None = None
    signature: Annotated[str, Meta(max_length=SIGNATURE_MAX)] = ""


class _Envelope(msgspec.Struct, kw_only=True):
    v: int
    node: Node
    body: bytes
    sig: bytes = b""


@dataclass(frozen=True)
class Sealed:
    """An envelope that was taken apart; nothing in it has been checked yet."""

    node: str
    body: bytes
    signature: bytes


class Signer(Protocol):
    """This node's key."""

    node: str

    def sign(self, data: bytes) -> bytes: ...


_decode_envelope = msgspec.msgpack.Decoder(_Envelope)
_decode_body = msgspec.msgpack.Decoder(Antigen)
_encode = msgspec.msgpack.Encoder(order="deterministic")


def node_name(configured: str, host: str) -> str:
    """Who this node is in the fleet: as configured, else by its host name, in letters that a name may have."""
    return configured or re.sub(r"[^0-9A-Za-z._-]", "-", host)[:63] or "node"


def make_id(node: str, subject: str, at_unix_s: float) -> str:
    """The same lesson of the same node always has the same id, so that telling it twice is telling it once."""
    return hashlib.blake2b(f"{node}|{subject}|{at_unix_s!r}".encode(), digest_size=16).hexdigest()


def signature_name(text: str) -> str:
    """The subject of an antigen that teaches this signature: the same text has the same one everywhere."""
    return f"signature/{hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"


def canonical(antigen: Antigen) -> bytes:
    """The bytes that are signed: one way to write one antigen."""
    return _encode.encode(antigen)


def signed_bytes(topic: str, node: str, body: bytes) -> bytes:
    """What a signature covers; lengths keep the parts apart."""
    parts = (_DOMAIN, topic.encode(), node.encode(), body)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def seal(antigen: Antigen, topic: str, signer: Signer) -> bytes:
    """The envelope of an antigen, signed by this node."""
    body = canonical(antigen)
    signature = signer.sign(signed_bytes(topic, signer.node, body))
    return _encode.encode(_Envelope(v=VERSION, node=signer.node, body=body, sig=signature))


def unseal(payload: bytes) -> Sealed:
    """Take an envelope apart. Raises AntigenError."""
    if len(payload) > MAX_BYTES:
        raise AntigenError(f"{len(payload)} bytes are too many for an antigen", "oversized")
    try:
        envelope = _decode_envelope.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise AntigenError("this is no envelope", "undecodable") from exc
    if envelope.v != VERSION:
        raise AntigenError(f"version {envelope.v} of the envelope is not known here", "other_version")
    if not envelope.sig:
        raise AntigenError(f"an antigen in the name of {envelope.node} is not signed", "unsigned")
    return Sealed(envelope.node, envelope.body, envelope.sig)


def read_body(body: bytes) -> Antigen:
    """The antigen of a checked envelope, its subject in canonical text. Raises AntigenError."""
    try:
        antigen = _decode_body.decode(body)
        subject = _subject_of(antigen)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise AntigenError("the body of an envelope is no antigen", "undecodable") from exc
    if subject != antigen.subject:
        raise AntigenError("the subject of an antigen is not in canonical text", "undecodable")
    return antigen


def _subject_of(antigen: Antigen) -> str:
    """What the subject must be. Raises ValueError for what teaches two things or nothing."""
    if antigen.payload is not None and antigen.signature:
        raise ValueError("a payload and a signature at once")
    if antigen.payload is not None:
        return antigen.payload.name
    if antigen.signature:
        return signature_name(antigen.signature)
    network = ipaddress.ip_network(antigen.subject, strict=True)
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def to_entry_body(antigen: Antigen) -> dict[str, Any]:
    """As the journal keeps it."""
    built: dict[str, Any] = msgspec.to_builtins(antigen)
    return built


def from_entry_body(body: dict[str, Any]) -> Antigen:
    """Back from the journal. Raises AntigenError."""
    try:
        return msgspec.convert(body, Antigen)
    except msgspec.MsgspecError as exc:
        raise AntigenError("a journal entry is no antigen", "undecodable") from exc
