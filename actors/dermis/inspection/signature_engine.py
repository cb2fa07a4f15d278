"""Many patterns at once over streams and blocks of bytes: hyperscan where it is installed, Python's ``re`` where it
is not.

``build`` compiles what can be compiled and says of the rest why not. With hyperscan the compiled database is kept on
disk under a hash of the patterns, so that a restart takes milliseconds; each pattern is told once per stream or
block; one scratch space belongs to one engine and so to one thread. Without it all still works, many times slower,
and patterns that may take exponential time are refused.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.dermis.inspection.suricata_options import explosive

#: ``re`` looks back so far for the beginning of a pattern that began in earlier bytes.
TAIL = 4_096
_CACHED_FILES = 8


#: Number of a pattern, and where a match of it ends.
Found = tuple[int, int]


class Scan(Protocol):
    """One stream of bytes, given piece by piece."""

    def feed(self, data: bytes) -> list[Found]:
        """The patterns that the new bytes completed, with their ends counted from the beginning of the stream."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """Compiled patterns, by number in the order given to ``build``."""

    name: str

    def stream(self) -> Scan: ...

    def block(self, data: bytes) -> list[Found]:
        """The patterns that occur in these bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Built:
    """refused: number of the pattern → reason."""

    engine: Engine
    refused: dict[int, str]
    cached: bool = False


def build(
    patterns: Sequence[bytes], cache: Path | None = None, *, literal: bool = False, streams: bool = True
) -> Built:
    """Compile. literal: the patterns are plain bytes in lower case, found in any case. streams: ``stream`` will be
    used."""
    try:
        import hyperscan
    except ImportError:
        return _build_re(patterns, literal=literal)
    return _HyperscanBuild(hyperscan, patterns, cache, literal=literal, streams=streams).build()


# --- hyperscan --------------------------------------------------------------------------------------------


class _HyperscanBuild:
    def __init__(
        self, hyperscan: Any, patterns: Sequence[bytes], cache: Path | None, *, literal: bool, streams: bool
    ) -> None:
        self._hs, self._patterns, self._cache = hyperscan, list(patterns), cache
        self._literal, self._streams = literal, streams
        self._flags = hyperscan.HS_FLAG_SINGLEMATCH | (
            hyperscan.HS_FLAG_CASELESS if literal else hyperscan.HS_FLAG_DOTALL
        )

    def build(self) -> Built:
        refused: dict[int, str] = {}
        cached = True
        databases = []
        for mode in (self._hs.HS_MODE_BLOCK, self._hs.HS_MODE_STREAM)[: 2 if self._streams else 1]:
            database = self._load(mode, refused)
            if database is None:
                cached = False
                database = self._compiled(mode, refused)
            databases.append(database)
        return Built(_Hyperscan(self._hs, databases), refused, cached)

    def _compiled(self, mode: int, refused: dict[int, str]) -> Any:
        """All at once; only when that fails one by one, to learn who is to blame."""
        if not self._patterns:
            return None
        try:
            database = self._compile(mode, range(len(self._patterns)))
        except self._hs.HyperscanError:
            good = []
            for number in range(len(self._patterns)):
                try:
                    self._compile(mode, [number])
                    good.append(number)
                except self._hs.HyperscanError as error:
                    refused[number] = _reason(error)
            database = self._compile(mode, good) if good else None
        if database is not None and not refused:
            self._save(mode, database)
        return database

    def _compile(self, mode: int, numbers: Sequence[int]) -> Any:
        database = self._hs.Database(mode=mode)
        database.compile(
            expressions=[_quoted(self._patterns[n]) if self._literal else self._patterns[n] for n in numbers],
            ids=list(numbers),
            elements=len(numbers),
            flags=[self._flags] * len(numbers),
        )
        return database

    # --- the copy on disk: only of sets without a bad pattern, so that reasons are always told ---

    def _path(self, mode: int) -> Path | None:
        if self._cache is None:
            return None
        digest = hashlib.sha256(f"{self._hs.__version__} {os.uname().machine} {mode} {self._flags}".encode())
        for pattern in self._patterns:
            digest.update(len(pattern).to_bytes(4, "big") + pattern)
        return self._cache / f"{digest.hexdigest()[:32]}.hsdb"

    def _load(self, mode: int, refused: dict[int, str]) -> Any:
        path = self._path(mode)
        if path is None or refused or not self._patterns:
            return None
        try:
            data = path.read_bytes()
            os.utime(path)
            return self._hs.loadb(data, mode)
        except (OSError, self._hs.HyperscanError, ValueError):
            return None

    def _save(self, mode: int, database: Any) -> None:
        path = self._path(mode)
        if path is None:
            return
        with suppress(OSError, self._hs.HyperscanError):  # without a copy the next start compiles again
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(self._hs.dumpb(database))
            part.replace(path)
            kept = sorted(path.parent.glob("*.hsdb"), key=lambda each: each.stat().st_mtime)
            for old in kept[:-_CACHED_FILES]:
                old.unlink()


def _quoted(data: bytes) -> bytes:
    return b"".join(rb"\x%02x" % byte for byte in data)


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else error
    return (text.decode("latin-1") if isinstance(text, bytes) else str(text))[:200]


class _Hyperscan:
    name = "hyperscan"

    def __init__(self, hyperscan: Any, databases: Sequence[Any]) -> None:
        self._block, self._stream = databases[0], databases[-1] if len(databases) > 1 else None
        for database in databases:
            if database is not None:
                database.scratch = hyperscan.Scratch(database)

    def stream(self) -> Scan:
        return _HyperscanStream(self._stream) if self._stream is not None else _Nothing()

    def block(self, data: bytes) -> list[Found]:
        if self._block is None:
            return []
        found: list[Found] = []

        def note(number: int, _start: int, end: int, *_rest: Any) -> None:
            found.append((number, end))

        self._block.scan(data, match_event_handler=note)
        return found


class _HyperscanStream:
    """The binding keeps no reference to callback and database: this object does, and lets go of them after the
    stream."""

    def __init__(self, database: Any) -> None:
        found: list[Found] = []

        def note(number: int, _start: int, end: int, *_rest: Any) -> None:
            found.append((number, end))

        self._stream = database.stream(match_event_handler=note)
        self._found, self._note, self._database = found, note, database
        self._stream.__enter__()
        self._open = True

    def feed(self, data: bytes) -> list[Found]:
        self._found.clear()
        self._stream.scan(data)
        return list(self._found)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._stream.__exit__(None, None, None)


class _Nothing:
    """No pattern at all."""

    def feed(self, data: bytes) -> list[Found]:
        return []

    def close(self) -> None:
        """Nothing is open."""


# --- re ---------------------------------------------------------------------------------------------------


def _build_re(patterns: Sequence[bytes], *, literal: bool) -> Built:
    compiled: dict[int, re.Pattern[bytes]] = {}
    refused: dict[int, str] = {}
    for number, pattern in enumerate(patterns):
        if literal:
            compiled[number] = re.compile(re.escape(pattern), re.I)
            continue
        if explosive(pattern.decode("latin-1")):
            refused[number] = "nested endless repetitions may take exponential time without hyperscan"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                compiled[number] = re.compile(pattern, re.S)
            except (re.error, OverflowError, RecursionError, Warning) as error:
                refused[number] = str(error)[:200]
    return Built(_PlainRe(compiled), refused)


class _PlainRe:
    name = "re"

    def __init__(self, patterns: dict[int, re.Pattern[bytes]]) -> None:
        self._patterns = patterns

    def stream(self) -> Scan:
        return _ReStream(self)

    def block(self, data: bytes) -> list[Found]:
        tried = ((number, pattern.search(data)) for number, pattern in self._patterns.items())
        return [(number, match.end()) for number, match in tried if match is not None]


class _ReStream:
    """Looks again at the last ``TAIL`` bytes: a longer pattern that was split is not found (blind spot of this
    engine)."""

    def __init__(self, engine: _PlainRe) -> None:
        self._engine, self._tail, self._before = engine, b"", 0
        self._told: set[int] = set()

    def feed(self, data: bytes) -> list[Found]:
        window = self._tail + data
        fresh = [(n, self._before + end) for n, end in self._engine.block(window) if n not in self._told]
        self._told.update(number for number, _ in fresh)
        self._tail = window[-TAIL:]
        self._before += len(window) - len(self._tail)
        return fresh

    def close(self) -> None:
        """Nothing is open."""
