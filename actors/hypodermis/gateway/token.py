"""The bearer token that guards every change over HTTP: made at the first start, kept in one file only root reads."""

import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from actors.core.errors import Unavailable

FILE_NAME = "gateway.token"
#: 32 random bytes as URL-safe text; shorter contents were put there by somebody else and are not trusted.
MIN_LENGTH = 32
MAX_BYTES = 512


def read_or_make(directory: Path) -> str:
    """The token in ``directory``; made with mode 0600 when absent. Called before privileges are dropped.

    A half-written file cannot be seen: the file is complete before it gets its name, and the first of two makers
    wins. A file that others may read, or that holds no token, is refused with a remedy rather than used."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as exc:
        raise Unavailable(
            f"the token file {path} cannot be read or made: {exc.strerror}",
            remedy=f"make {directory} writable for the service, or remove {path} and start again",
        ) from exc


def matches(presented: str, token: str) -> bool:
    """Compare without telling by the time it takes how much was right. Where there is no token nothing matches it."""
    return bool(token) and hmac.compare_digest(presented.encode("utf-8", "surrogateescape"), token.encode())


def _make(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):  # another process was quicker: its token counts
            path.hardlink_to(draft)
    finally:
        draft.unlink()


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        content = stream.read(MAX_BYTES + 1)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise Unavailable(
            f"the token file {path} may be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
            remedy=f"chmod 600 {path}, or remove it to have a new one made",
        )
    token = content.decode("ascii", "replace").strip()
    if not MIN_LENGTH <= len(token) <= MAX_BYTES or not token.isascii() or not token.isprintable():
        raise Unavailable(f"the token file {path} holds no token", remedy=f"remove {path} to have a new one made")
    return token
