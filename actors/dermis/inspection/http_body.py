"""Readings of an HTTP body: every way in which some receiver may take it apart. Pure and bounded.

Browsers and servers disagree about odd chunk lines, missing lengths, doubled or misspelt encodings, and attackers
use the difference: the inspector reads what the victim does not, or the other way round. So a body is not decoded
once, by the book, but read in each plausible way, and a signature may match any of them. A plain message has one
reading.

Weakness: a body that only looks compressed is decoded in vain (bounded by ``OUTPUT_MAX``); encodings that need a
library of their own (br, zstd) are not read. Source: RFC 9112 section 7 (chunks), RFC 1950-1952 (deflate, gzip).
"""

import re
import zlib
from contextlib import suppress
from dataclasses import dataclass

#: Decoded bytes of one reading; beyond them a receiver's memory, not our rules, is what is attacked.
OUTPUT_MAX = 262_144
READINGS_MAX = 12
_LAYERS_MAX = 3
_GZIP = b"\x1f\x8b"
#: The size line of a chunk: hexadecimal digits, then whatever the sender likes up to the end of the line.
_CHUNK_LINE = re.compile(rb"[\s\x00]{0,8}(?:0[xX])?([0-9A-Fa-f]{1,8})([^\r\n]{0,256})(\r\n|\n|\r)")


@dataclass(slots=True)
class Work:
    """Bytes that may still be looked at and made for one flow: beyond them its messages are no longer taken apart, and
    only the raw stream is inspected. It keeps one byte of an attacker from costing us many."""

    left: int = 4 << 20

    def spend(self, size: int) -> bool:
        """Whether there was any left."""
        enough = self.left > 0
        self.left -= size
        return enough


def unchunk(data: bytes) -> tuple[bytes, int, bool] | None:
    """The chunks put together, how many bytes were read, and whether the last chunk was there. None: no chunks here.

    Takes any line end, white space, extensions and junk after the size; a body cut short gives what there is."""
    parts: list[bytes] = []
    at = 0
    while line := _CHUNK_LINE.match(data, at):
        size = int(line.group(1), 16)
        at = line.end()
        if size == 0:
            tail = re.compile(rb"(?:[^\r\n]+(?:\r\n|\n|\r))*(?:\r\n|\n|\r)?").match(data, at)
            return b"".join(parts), tail.end() if tail else at, True
        parts.append(data[at : at + size])
        at += size
        if at >= len(data):
            return b"".join(parts), len(data), False
        if data[at : at + 2] == b"\r\n":
            at += 2
        elif data[at : at + 1] in (b"\n", b"\r"):
            at += 1
    return (b"".join(parts), at, False) if parts else None


def inflate(data: bytes, window: int) -> bytes:
    """What zlib makes of it, up to the first error or ``OUTPUT_MAX``; empty when it makes nothing."""
    decoder = zlib.decompressobj(window)
    out = bytearray()
    try:
        for at in range(0, len(data), 512):  # in pieces, so that what came before damage is kept
            out += decoder.decompress(data[at : at + 512], OUTPUT_MAX - len(out))
            if decoder.eof or len(out) >= OUTPUT_MAX:
                break
        else:
            out += decoder.flush()
    except zlib.error:
        return bytes(out) or _by_bytes(data, window)
    return bytes(out[:OUTPUT_MAX])


def _by_bytes(data: bytes, window: int) -> bytes:
    """Again, byte by byte: damage within the first piece must not hide what stands before it."""
    decoder, out = zlib.decompressobj(window), bytearray()
    with suppress(zlib.error):  # the damage begins here; what came before it is the answer
        for at in range(min(512, len(data))):
            out += decoder.decompress(data[at : at + 1], OUTPUT_MAX)
    return bytes(out)


def _gzip_payload(data: bytes) -> bytes:
    """What follows a gzip header, whatever its flags and checksum say; empty when there is none."""
    if not data.startswith(_GZIP) or len(data) < 10:
        return b""
    flags, at = data[3], 10
    if flags & 4:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for bit in (8, 16):
        if flags & bit:
            end = data.find(b"\0", at)
            if end < 0:
                return b""
            at = end + 1
    return data[at + (2 if flags & 2 else 0) :]


def decoded(data: bytes, hinted: bool, work: Work) -> list[bytes]:
    """One layer of compression taken off, in each way that yields something. hinted: the head speaks of compression."""
    if work.left <= 0:
        return []
    if data.startswith(_GZIP):
        found = [inflate(data, 31), inflate(_gzip_payload(data), -15), inflate(data[10:], -15)]
    elif data[:1] == b"\x78" and len(data) > 2 and int.from_bytes(data[:2], "big") % 31 == 0:
        found = [inflate(data, 15), inflate(data[2:], -15)]
    elif hinted:
        found = [inflate(data, -15), inflate(data, 15)]
    else:
        return []
    work.spend(sum(map(len, found)))
    return list(dict.fromkeys(one for one in found if one))


def readings(
    starts: list[bytes], length: int | None, chunked: bool, hints: bytes, odd: bool, work: Work
) -> list[bytes]:
    """All readings of a body, the most ordinary one first.

    starts: the bytes behind the head, more than one where the end of the head can be read in several ways. length: the
    declared one. chunked: declared so. hints: the head in lower case. odd: something about the head was not by the
    book, so what it declares is not to be trusted."""
    bases: dict[bytes, None] = {}
    for rest in starts:
        taken_apart = unchunk(rest) if chunked or odd or b"chunk" in hints else None
        plain = rest if length is None or odd else rest[:length]
        if taken_apart is not None:
            bases[taken_apart[0]] = None
            if odd:
                bases[plain] = None
        else:
            bases[plain] = None
    hinted = any(word in hints for word in (b"deflate", b"gzip", b"zip", b"compress"))
    found: dict[bytes, None] = {}
    for base in bases:
        layer = {base: None}
        for _ in range(_LAYERS_MAX):
            found.update(layer)
            layer = dict.fromkeys(one for each in layer for one in decoded(each, hinted, work) if one not in found)
            if not layer or len(found) >= READINGS_MAX:
                break
        found.update(layer)
    ordered = list(found)[:READINGS_MAX]
    if hinted and len(ordered) > 1 and not odd:  # decoded before encoded: rules speak of what the receiver sees
        ordered = [*ordered[1:], ordered[0]]
    return ordered
