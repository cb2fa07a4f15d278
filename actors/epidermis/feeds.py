"""The book of feeds: what each lists, how it fares, and all of them compiled into what the kernel reads.

One cycle of one feed: fetch (conditional) → same bytes as before? then nothing → parse → judge → keep a copy → use.
What fails leaves the last good list in force and says why. Heavy work runs in threads; the rest in the cell's loop.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from actors.epidermis import prefixes
from actors.epidermis.blocklist import CLASS_MIXED, Classes, compile4
from actors.epidermis.blocklist6 import compile6
from actors.epidermis.feed_client import Fetched, FetchError, fetch, read_file
from actors.epidermis.feed_formats import FeedError, parse
from actors.epidermis.feed_health import Healthy, OwnNetworks, Quarantined, judge, protect
from actors.epidermis.feed_sources import FeedSource
from actors.epidermis.feed_store import Copy, FeedStore, digest
from actors.epidermis.prefixes import Address, Prefixes
from bpf.blocklist_image import Image, write_image

#: the shortest prefixes that the nft filter takes; wider ones are handed to it in pieces
NFT_SHORTEST = {4: 8, 6: 16}
#: the last class is for addresses that several feeds share; feeds beyond the others share one
_LAST_CLASS = CLASS_MIXED - 1


@dataclass(slots=True, eq=False)
class Feed:
    """One feed that is on. state: ``new``, ``healthy``, ``stale`` (an old list is in force), ``quarantined`` (the last
    good one is in force, if there was one) or ``failed`` (nothing is)."""

    source: FeedSource
    state: str = "new"
    reason: str = ""
    remedy: str = ""
    healthy: Healthy | None = None
    copy: Copy | None = None
    seen: str = ""  #: digest of what was examined last, good or bad
    checked_unix_s: float = 0.0
    refused: int = 0

    @property
    def entries(self) -> int:
        return self.healthy.entries if self.healthy else 0

    def row(self) -> dict[str, Any]:
        """For ``feeds.list``."""
        return {
            "name": self.source.name,
            "state": self.state,
            "reason": self.reason or "; ".join(self.healthy.notes if self.healthy else ()),
            "remedy": self.remedy,
            "entries": self.entries,
            "entries_v4": len(self.healthy.v4) if self.healthy else 0,
            "entries_v6": len(self.healthy.v6) if self.healthy else 0,
            "place": self.source.place,
            "format": self.source.format.value,
            "refresh_minutes": self.source.refresh_minutes,
            "fetched_unix_s": self.copy.fetched_unix_s if self.copy else 0.0,
            "checked_unix_s": self.checked_unix_s,
            "note": self.source.note,
        }

    def listing(self, address: Address) -> list[str]:
        """The entries that contain the address, as text."""
        if self.healthy is None:
            return []
        part = self.healthy.v4 if address.version == 4 else self.healthy.v6
        return prefixes.to_text(prefixes.covering(part, address))

    def say(self, state: str, reason: str = "", remedy: str = "") -> None:
        self.state, self.reason, self.remedy = state, reason, remedy

    def accept(self, healthy: Healthy, copy: Copy) -> None:
        self.healthy, self.copy, self.seen = healthy, copy, copy.digest
        self.say("healthy")

    def quarantine(self, seen: str, reason: str, remedy: str) -> None:
        self.seen = seen
        self.refused += 1
        kept = f"; the copy of {self.entries} entries from before stays in force" if self.healthy else ""
        self.say("quarantined", reason + kept, remedy)

    def not_fetched(self, reason: str) -> None:
        """What was quarantined stays so: that the server is away now is the lesser news."""
        if self.state != "quarantined":
            remedy = f"check {self.source.place} and the name resolution of this host; it is tried again by itself"
            self.say("stale" if self.healthy else "failed", reason, remedy)

    def unchanged(self) -> None:
        if self.state in ("stale", "failed"):
            self.say("healthy" if self.healthy else "failed", "" if self.healthy else self.reason, "")


class FeedKeeper:
    """Brings feeds up to date. own: reads what this node must never block. clock: wall time in seconds.

    make_client: called before the first list is fetched from a server; a client and its certificates are 7 MB."""

    def __init__(
        self,
        store: FeedStore,
        make_client: Callable[[], httpx2.AsyncClient],
        own: Callable[[], OwnNetworks],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._make_client, self._own, self._clock = store, make_client, own, clock
        self._turn = asyncio.Semaphore(2)  # a list being parsed may take 200 MB

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        return self._make_client()

    async def restore(self, feed: Feed) -> None:
        """Use the copy on disk, judged anew: definitions and own networks may have changed since."""
        loaded = await asyncio.to_thread(self._store.load, feed.source.name, feed.source.max_bytes)
        if loaded is None:
            return
        copy, data = loaded
        if copy.place != feed.source.place:
            return
        feed.checked_unix_s = self._store.asked(feed.source.name)
        async with self._turn:
            await self._examine(feed, Fetched(data, copy.etag, copy.last_modified), copy=copy)

    async def refresh(self, feed: Feed, *, accept: bool = False) -> bool:
        """One cycle; returns whether what the feed lists has changed. accept: whatever its size was before."""
        now = self._clock()
        if 0 <= now - feed.checked_unix_s < feed.source.patience_s:
            return False  # its publisher shuts out who asks more often
        feed.checked_unix_s = now
        self._store.note_asked(feed.source.name, now)
        try:
            fetched = await self._fetch(feed, conditional=not accept)
        except FetchError as exc:
            feed.not_fetched(str(exc))
            return False
        if fetched is None or (not accept and digest(fetched.data) == feed.seen):
            feed.unchanged()
            return False
        async with self._turn:
            return await self._examine(feed, fetched, accept=accept)

    async def _fetch(self, feed: Feed, *, conditional: bool) -> Fetched | None:
        source = feed.source
        if source.path is not None:
            return await asyncio.to_thread(read_file, source.path, source.max_bytes)
        known = feed.copy if conditional and feed.copy and feed.seen == feed.copy.digest else None
        return await fetch(
            self._client,
            source.url,
            etag=known.etag if known else "",
            last_modified=known.last_modified if known else "",
            max_bytes=source.max_bytes,
        )

    async def _examine(self, feed: Feed, fetched: Fetched, *, copy: Copy | None = None, accept: bool = False) -> bool:
        """Parse, judge and use. copy: where the data came from when it is the one on disk."""
        seen = digest(fetched.data)
        previous = 0 if accept or copy or feed.copy is None else feed.copy.entries
        try:
            healthy = await asyncio.to_thread(self._judged, feed.source, fetched.data, previous)
        except FeedError as exc:
            feed.quarantine(
                seen, str(exc), "the format may have changed: look at the list, set its format, or remove it"
            )
            return False
        except Quarantined as exc:
            feed.quarantine(seen, exc.reason, exc.remedy)
            return False
        if copy is None:
            copy = Copy(
                digest=seen,
                entries=healthy.entries,
                fetched_unix_s=self._clock(),
                place=feed.source.place,
                etag=fetched.etag,
                last_modified=fetched.last_modified,
            )
            feed.accept(healthy, copy)
            try:
                await asyncio.to_thread(self._store.save, feed.source.name, copy, fetched.data)
            except OSError as exc:
                feed.reason = f"in force, but no copy could be kept: {exc.strerror}"
                feed.remedy = f"make room in {self._store.directory} and see that it is writable"
        else:
            feed.accept(healthy, copy)
        return True

    def _judged(self, source: FeedSource, data: bytes, previous: int) -> Healthy:
        return judge(parse(data, source.format, max_bytes=source.max_bytes), source, self._own(), previous)


# --- all feeds together ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """image4, image6: for the kernel program. text: one host or prefix a line, without overlaps, for nft.
    classes: the feed behind each class number."""

    image4: Image
    image6: Image
    text: bytes
    entries_v4: int
    entries_v6: int
    classes: tuple[str, ...]


def compile_feeds(
    lists: Sequence[tuple[str, Prefixes, Prefixes]], own: OwnNetworks, random: np.random.Generator
) -> Compiled:
    """Merge and compile (name, IPv4, IPv6) of each feed. Raises BlocklistError. A million take a second."""
    v4, classes4 = _merged(4, [four for _, four, _ in lists], own)
    v6, classes6 = _merged(6, [six for _, _, six in lists], own)
    flat4, flat6 = prefixes.collapse(v4), prefixes.collapse(v6)
    names = [name for name, _, _ in lists]
    return Compiled(
        compile4(v4, classes4),
        compile6(v6, classes6, random),
        _text(flat4) + _text(flat6),
        len(flat4),
        len(flat6),
        tuple(names[:_LAST_CLASS] + ["other"] * (len(names) > _LAST_CLASS)),
    )


def _merged(family: int, parts: Sequence[Prefixes], own: OwnNetworks) -> tuple[Prefixes, Classes]:
    """All entries with the number of their feed as class."""
    kept = [protect(part, own) for part in parts]
    numbers = np.minimum(np.arange(len(kept)), _LAST_CLASS).astype(np.uint8)
    return prefixes.concat(family, kept), np.repeat(numbers, np.array([len(part) for part in kept], np.int64))


def _text(flat: Prefixes) -> bytes:
    lines = prefixes.to_text(prefixes.no_shorter_than(flat, NFT_SHORTEST[flat.family]))
    return ("\n".join(lines) + "\n").encode() if lines else b""


@dataclass(frozen=True, slots=True)
class BlocklistFiles:
    """Where the compiled lists lie, in the run directory. Each file is replaced in one step."""

    directory: Path

    @property
    def snapshot4(self) -> Path:
        return self.directory / "snapshot4.image"

    @property
    def snapshot6(self) -> Path:
        return self.directory / "snapshot6.image"

    @property
    def prefixes(self) -> Path:
        return self.directory / "prefixes.txt"

    def write(self, compiled: Compiled) -> None:
        """Raises OSError."""
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        write_image(self.snapshot4, compiled.image4)
        write_image(self.snapshot6, compiled.image6)
        draft = self.directory / ".prefixes.txt"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_bytes(compiled.text)
        draft.replace(self.prefixes)
