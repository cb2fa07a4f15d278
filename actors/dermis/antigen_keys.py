"""The key ring: this node's Ed25519 key, and the public keys of the nodes it knows.

The own key is made once, in ``<state_dir>/lymph/node.key`` (0600). Other nodes' keys come from the settings and from
``keyring`` beside it: lines ``name key`` with 64 hex digits, ``#`` comments, written by nobody but its owner; a changed
file is read again. Asymmetric on purpose: a node that was taken over can lie, but only in its own name. This is the one
file that imports ``cryptography``, and only where keys are used. Raises ``KeyRingError`` with a sentence.
"""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.core.errors import TegumentarError

MAX_RING_BYTES = 1 << 20
LOOK_EVERY_S = 1.0
_LINE = re.compile(r"([0-9A-Za-z._-]{1,63})[\s=]+([0-9A-Fa-f]{64})")


class KeyRingError(TegumentarError):
    """A key cannot be used; nothing is signed or believed with it."""


def make_key(path: Path) -> None:
    """Make the node's key unless it is there. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w") as file:
        file.write(os.urandom(32).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())


class NodeKey:
    """The private key of this node; signs."""

    def __init__(self, node: str, path: Path) -> None:
        """Read the key that ``make_key`` made. Raises KeyRingError."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.node = node
        try:
            if path.stat().st_mode & 0o077:
                raise KeyRingError(f"others may read the key {path}", remedy=f"chmod 600 {path}, or remove it")
            seed = bytes.fromhex(path.read_text().strip())
            self._key = Ed25519PrivateKey.from_private_bytes(seed)
        except (OSError, ValueError) as exc:
            raise KeyRingError(
                f"the key {path} cannot be used: {exc}", remedy="remove it; the next start makes a new one"
            ) from exc
        self.public = self._key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


class KeyRing:
    """Who is known, and whether a signature is theirs."""

    def __init__(self, path: Path, settled: Iterable[str] = ()) -> None:
        """settled: ``name=key`` pairs that the settings name; a file may add to them, not change them."""
        self.path, self.problem = path, ""
        self._settled = dict(_pair(text) for text in settled)
        self._keys: dict[str, Any] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")
        self._texts: dict[str, str] = {}
        self._take(self._settled)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(sorted(self._texts))

    def add(self, node: str, public: str) -> None:
        """Know one more node; its key cannot be changed by the file."""
        self._settled[node] = public.lower()
        self._stamp = None
        self._take(self._settled)

    def knows(self, node: str) -> bool:
        """Reads the file again when it has changed; looks at most once a second."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._look()
        return node in self._texts

    def verify(self, node: str, signature: bytes, data: bytes) -> bool:
        """Whether ``node`` signed these bytes; False for a node that is not known."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if node not in self._texts:
            return False
        try:
            if node not in self._keys:
                self._keys[node] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self._texts[node]))
            self._keys[node].verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _look(self) -> None:
        try:
            found = self.path.stat()
        except OSError:
            if self._stamp is not None:
                self._stamp = None
                self._take(self._settled)
            return
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(_read_ring(self.path) | self._settled)
            self.problem = ""
        except (OSError, UnicodeDecodeError, KeyRingError) as exc:
            self.problem = f"the key ring {self.path} is not used: {exc}"
            self._take(self._settled)

    def _take(self, texts: dict[str, str]) -> None:
        self._texts, self._keys = dict(texts), {}


def _read_ring(path: Path) -> dict[str, str]:
    found = path.stat()
    if found.st_mode & 0o022 or found.st_size > MAX_RING_BYTES:
        raise KeyRingError("others may write it, or it is too large")
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return dict(_pair(line) for line in lines if line)


def _pair(line: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise KeyRingError("a line is not of the form: name key (64 hex digits)")
    return match[1], match[2].lower()
