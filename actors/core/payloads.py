"""Payload heads: the first bytes of a packet by which the kernel program knows a hostile payload again. Pure.

The kernel compares protocol, destination port and the first 32 payload bytes (of a shorter payload all of it, and its
length). Whoever proposes, decides or repeats such a vaccine asks ``objection`` first: a head that ordinary clients say
too would turn the skin against its own guests (autoimmunity), and no signature may be trusted to have thought of that.
"""

import hashlib
import re

TCP, UDP = 6, 17
PROTOCOLS = {TCP: "tcp", UDP: "udp"}
#: What the kernel program looks at (``TG_FINGERPRINT_BYTES``); beyond it anything may follow.
HEAD_BYTES = 32
#: Fewer bytes, or fewer different ones, say too little; nor may one of them make up most of the head (padding).
LEAST_BYTES, LEAST_KINDS, MOST_OF_ONE = 16, 8, 0.6
#: No vaccine lasts longer. Seconds.
LONGEST_S = 86_400.0

#: How ordinary conversations begin, whatever follows.
_ORDINARY = tuple(
    (what, re.compile(pattern, re.S))
    for what, pattern in (
        ("a TLS handshake", rb"\x16\x03[\x00-\x04]"),
        ("encrypted TLS data", rb"[\x14\x15\x17]\x03[\x00-\x04]"),
        (
            "a plain HTTP request",
            rb"[A-Z]{3,8} (?:/|\*|/index\.[a-z]{3,5}|/favicon\.ico|/robots\.txt) HTTP/1",
        ),
        ("an HTTP answer", rb"HTTP/1\.[01] "),
        ("the preface of HTTP/2", rb"PRI \* HTTP/2"),
        ("the banner of an SSH client", rb"SSH-2\.0-"),
        # id; a standard query with or without recursion; one question and no answers; over TCP behind a length
        ("a DNS query", rb"(?:..)?..[\x00\x01][\x00\x10\x20\x30]\x00\x01\x00\x00\x00\x00\x00[\x00-\x02]"),
        ("the opening of QUIC", rb"[\xc0-\xff](?:\x00\x00\x00\x01|\x6b\x33\x43\xcf)"),
        ("the opening of SMB", rb"\x00\x00..(?:\xffSMB[\x72\x73]|\xfeSMB)"),
        ("the opening of RDP", rb"\x03\x00...\xe0"),
    )
)


def name_of(proto: int, dest_port: int, head: bytes) -> str:
    """The name of a vaccine, the same on every node: ``udp/11211/52cc1de1c0b0a7e5``. At most 26 characters."""
    digest = hashlib.blake2b(head, digest_size=8, salt=proto.to_bytes(2, "big") + dest_port.to_bytes(2, "big"))
    return f"{PROTOCOLS.get(proto, str(proto))}/{dest_port}/{digest.hexdigest()}"


def number_of(name: str) -> int:
    """What the kernel program writes into its events for this vaccine: 32 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") or 1


def objection(proto: int, dest_port: int, head: bytes) -> str:
    """Why packets that begin like this must not be dropped from everybody; empty when they may."""
    if proto not in PROTOCOLS:
        return f"protocol {proto} has no payload that is told by its port"
    if not 0 < dest_port < 65_536:
        return "it names no port"
    if not LEAST_BYTES <= len(head) <= HEAD_BYTES:
        return f"{len(head)} bytes are too few or too many to know a payload by ({LEAST_BYTES} to {HEAD_BYTES})"
    kinds = set(head)
    if len(kinds) < LEAST_KINDS:
        return f"it has only {len(kinds)} different bytes, at least {LEAST_KINDS} are needed"
    most = max(head.count(byte) for byte in kinds)
    if most > MOST_OF_ONE * len(head):
        return f"one byte makes up {most} of its {len(head)}"
    ordinary = next((what for what, pattern in _ORDINARY if pattern.match(head)), "")
    return f"{ordinary} begins like this" if ordinary else ""
