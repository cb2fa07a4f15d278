"""The file that carries a compiled blocklist from the cell that builds it to the one that loads it.

One 4096-byte header page, then the pages of the inner map exactly as ``blocklist.h`` reads them. Little-endian.

    offset  bytes
    0       8      magic "TGBLOCKS"
    8       4      version, 1
    12      4      family, 4 or 6
    16      4      pages that follow; 0: nothing is listed
    20      4      CRC-32 of those pages
    24      8      entries, for people

The writer is unprivileged and the reader is root, so the reader trusts nothing: it follows no link, reads no more
than the map holds, takes its own copy before it checks it, and raises ``ImageError`` and nothing else. A forged image
could make the program block the wrong address, never read outside its map.
"""

import os
import stat
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096
MAGIC = b"TGBLOCKS"
VERSION = 1
_HEADER = struct.Struct("<8sIIIIQ")

Bytes = npt.NDArray[np.uint8]


class ImageError(ValueError):
    """The file is no blocklist image that can be loaded. ``str()`` says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """pages: uint8[n, 4096], the contents of the inner map from its first page on. entries: listed prefixes."""

    family: int
    entries: int
    pages: Bytes


def write_image(path: Path, image: Image) -> None:
    """Replace the file in one step: a reader sees the old image or the new one. Mode 0600. Raises OSError."""
    payload = np.ascontiguousarray(image.pages).reshape(-1).data
    header = _HEADER.pack(MAGIC, VERSION, image.family, len(payload) // PAGE_BYTES, zlib.crc32(payload), image.entries)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(header.ljust(PAGE_BYTES, b"\0"))
            file.write(payload)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_image(path: Path, family: int, max_pages: int) -> Image:
    """Read and check an image of this family that fits a map of ``max_pages``. Raises ImageError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(f"{path} is no regular file")
            return _read(file.read(PAGE_BYTES), handle, info.st_size, path, family, max_pages)
    except OSError as exc:
        raise ImageError(f"cannot read the blocklist image {path}: {exc.strerror}") from exc


def _read(head: bytes, handle: int, size: int, path: Path, family: int, max_pages: int) -> Image:
    if len(head) < PAGE_BYTES:
        raise ImageError(f"{path} is too short for a blocklist image")
    magic, version, its_family, pages, checksum, entries = _HEADER.unpack_from(head)
    if magic != MAGIC:
        raise ImageError(f"{path} is no blocklist image")
    if version != VERSION:
        raise ImageError(f"{path} has format {version}; this version reads format {VERSION}")
    if its_family != family:
        raise ImageError(f"{path} is an IPv{its_family} image where an IPv{family} one belongs")
    if pages > max_pages:
        raise ImageError(f"{path} has {pages} pages; the map holds {max_pages}")
    if size != PAGE_BYTES * (1 + pages):
        raise ImageError(f"{path} has {size} bytes; its header says {PAGE_BYTES * (1 + pages)}")
    payload = bytearray(PAGE_BYTES * pages)
    if _fill(handle, payload) != len(payload):
        raise ImageError(f"{path} ended early")
    if zlib.crc32(payload) != checksum:
        raise ImageError(f"{path} is damaged: its checksum does not fit")
    return Image(family, entries, np.frombuffer(payload, np.uint8).reshape(pages, PAGE_BYTES))


def _fill(handle: int, buffer: bytearray) -> int:
    """Read from behind the header until the buffer is full or the file ends; returns how much came."""
    done = 0
    while done < len(buffer):
        got = os.preadv(handle, [memoryview(buffer)[done:]], PAGE_BYTES + done)
        if got == 0:
            break
        done += got
    return done
