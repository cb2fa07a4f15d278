"""Signatures that other nodes taught: read as files are, proved on more than their own samples, kept apart. Pure.

A node that was taken over, or an operator with a careless pattern, must not turn every other node against its guests.
So such a signature may find neither the innocent samples of any signature here nor the ordinary payloads below; it
never vaccinates; it never takes the name of one that lies in files of this node.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from actors.dermis.inspection.signatures import Problem, Shelf, Signature, read_text

#: Compiling takes the longer the longer a pattern is, and here somebody else chose it.
PATTERN_MAX = 512
#: What people and machines say every day: a signature of others that finds one of these is too broad.
ORDINARY = (
    b"GET / HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\n\r\n",
    b"GET /search?q=shoes&page=2 HTTP/1.1\r\nHost: shop.example.org\r\nCookie: session=8f2a; theme=dark\r\n\r\n",
    b"POST /login HTTP/1.1\r\nHost: example.org\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 27\r\n\r\nuser=ann&password=letmein99",
    b'POST /api/items HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{"id": 17, "name": "chair", "tags": ["a"]}',
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<!doctype html><title>Hello</title><p>Hi",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)) + b"\x20" + bytes(range(64, 96)),
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    b"\x1a\x2b\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01",
    b"\x23\x00\x06\xec" + bytes(44),
    b"EHLO mail.example.org\r\nMAIL FROM:<ann@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n",
    b"a1 LOGIN ann secret\r\na2 SELECT INBOX\r\n",
    b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n",
    b"REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7:5060\r\nFrom: <sip:ann@example.org>\r\n",
    bytes(64),
    bytes(range(256)),
)

Block = Callable[[bytes], list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Taught:
    """One signature as it was taught. subject: its name among antigens."""

    subject: str
    node: str
    text: str
    until_unix_s: float


def shelve(taught: Iterable[Taught], shelf: Shelf) -> None:
    """Add what was taught to the shelf; what is not exactly one good signature becomes a problem of that subject."""
    for one in taught:
        apart = Shelf()
        read_text(one.text, one.subject, apart)
        known = {signature.name for signature in shelf.signatures}
        if apart.problems or len(apart.signatures) != 1:
            reason = apart.problems[0].reason if apart.problems else "it must be exactly one signature"
            shelf.problems.append(Problem(one.subject, "", reason))
        elif len(apart.signatures[0].pattern) > PATTERN_MAX:
            reason = f"its pattern is longer than the {PATTERN_MAX} bytes that are taken from others"
            shelf.problems.append(Problem(one.subject, apart.signatures[0].name, reason))
        elif apart.signatures[0].name in known:
            name = apart.signatures[0].name
            shelf.problems.append(Problem(one.subject, name, "another signature has this name"))
        else:
            shelf.signatures.append(replace(apart.signatures[0], node=one.node, vaccinate=False))


def too_broad(signatures: Sequence[Signature], block: Block, innocent: Iterable[bytes] = ()) -> dict[int, str]:
    """Of those that were taught, by number, which find what is innocent, and what they find."""
    found: dict[int, str] = {}
    if not any(signature.node for signature in signatures):
        return found
    own = (miss for signature in signatures for miss in signature.miss if not signature.node)
    samples = [*ORDINARY, *innocent, *own]
    for sample in samples:
        for number, _ in block(sample):
            if signatures[number].node:
                found.setdefault(number, f"it is too broad: it finds the innocent {sample[:60]!r}")
    return found
