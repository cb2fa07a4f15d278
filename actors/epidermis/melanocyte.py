"""Melanocyte — the IP reputation feed cell.

Fetches, checks, keeps and compiles blocklists, and tells the cells that enforce where the result lies. It reads what
strangers publish and therefore runs without privileges. Fetching, parsing and compiling happen in the cell's loop and
its threads; the actor thread only decides what is due. What fails leaves the last good list in force.
"""

import asyncio
import ipaddress
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from actors.core.capability import service_identity
from actors.core.cell import Cell, answers, receives
from actors.core.errors import NotFound, Refused
from actors.core.lifecycle import Reload
from actors.core.messages import FeedCompiled
from actors.epidermis import own_networks
from actors.epidermis.crowdsec_feed import NAME as CROWDSEC
from actors.epidermis.crowdsec_feed import CrowdSecFeed
from actors.epidermis.feed_client import make_client
from actors.epidermis.feed_health import Healthy
from actors.epidermis.feed_sources import FeedSource, Sources, load_sources
from actors.epidermis.feed_store import FeedStore
from actors.epidermis.feed_sum import FeedSum
from actors.epidermis.feeds import BlocklistFiles, Compiled, Feed, FeedKeeper
from actors.epidermis.prefixes import Address

#: who enforces blocklists: told again whenever one of them starts
ENFORCERS = ("reflex_arc", "keratinocyte")
#: a local file costs one read to look at, so it is looked at more often than a server is asked
LOCAL_SECONDS = 30.0
#: an answer to ``feeds.reload`` waits so long for the feeds to come in
RELOAD_ANSWER_S = 1.5
ILL = ("stale", "failed", "quarantined")


class Melanocyte(Cell):
    """Keeps the feeds, and their compiled sum."""

    uses_asyncio = True
    section = "feeds"

    def before_drop(self) -> None:
        """The directories belong to whoever this cell becomes."""
        identity = service_identity(self.settings.user)
        for directory in (self._store_directory(), self._files().directory):
            try:
                directory.mkdir(mode=0o750, parents=True, exist_ok=True)
                if os.geteuid() == 0 and not directory.is_symlink():
                    for path in (directory, *directory.iterdir()):
                        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
            except OSError as exc:
                self.log.warning("feed_directory", path=str(directory), problem=exc.strerror)

    def on_start(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._sources = Sources((), (), ())
        self._timers: dict[str, int] = {}
        self._busy: set[str] = set()
        self._crowdsec: CrowdSecFeed | None = None
        self._told: FeedCompiled | None = None
        self._trouble, self._trouble_remedy = "", ""
        self._again = 0
        self._store = FeedStore(self._store_directory())
        self._keeper: FeedKeeper | None = None
        self._sum = FeedSum(self, self._files(), self._in_force, own_networks.read, self._compiled)
        self._begin()

    def on_stop(self) -> None:
        if self._crowdsec is not None:
            self._crowdsec.stop()

    def on_peer_up(self, name: str) -> None:
        if name in ENFORCERS and self._told is not None:
            self.tell(name, self._told)

    @receives(Reload)
    def on_reload(self, message: Reload, source: str) -> None:
        """The settings may say something else about feeds now."""
        if self._crowdsec is not None:
            self._crowdsec.stop()
            self._crowdsec = None
            self._feeds.pop(CROWDSEC, None)
        self._begin()

    def _begin(self) -> None:
        if not self.settings.feeds.enabled:
            for name in list(self._feeds):
                self._forget(name)
            self._sum.now()
            self._say()
        elif self._keeper is None:
            self.call(self._open, then=self._opened)
        else:
            self._define()
            self._start_crowdsec()
            if self._sources.whole:
                self._sum.soon()
            for name in self._feeds:
                self._refresh(name)

    # --- verbs -----------------------------------------------------------------------------------------------

    @answers("feeds.list")
    def list_feeds(self, args: dict[str, Any], by: str) -> Any:
        """Every feed that is on with how it fares, names of those that are off, and what is in force."""
        told = self._told
        return {
            "feeds": [feed.row() for _, feed in sorted(self._feeds.items())],
            "known": list(self._sources.known),
            "problems": list(self._sources.problems),
            "generation": told.generation if told else 0,
            "entries_v4": told.entries_v4 if told else 0,
            "entries_v6": told.entries_v6 if told else 0,
        }

    @answers("feeds.explain")
    def explain(self, args: dict[str, Any], by: str) -> Any:
        """Which feeds list an address, and by which entries."""
        address = _address(args.get("address"))
        found = [
            {"feed": name, "entries": entries[:20]}
            for name, feed in sorted(self._feeds.items())
            if (entries := feed.listing(address))
        ]
        return {"address": str(address), "listed": bool(found), "feeds": found}

    @answers("feeds.reload")
    def reload_feeds(self, args: dict[str, Any], by: str) -> Any:
        """Read the definitions again and ask for every feed, or for one, now.

        accept: use what comes even if its size changed absurdly. The answer waits a moment for feeds that are quick;
        ``done`` says whether all have come in."""
        if not self.settings.feeds.enabled:
            raise Refused("feeds are switched off", remedy="set feeds.enabled = true")
        name, accept = args.get("feed"), args.get("accept") is True
        self._define()
        if name is not None and name not in self._feeds:
            raise NotFound(f"no feed {str(name)[:60]!r} is on", remedy="see `python run.py feeds`")
        chosen = [name] if name is not None else list(self._feeds)
        answer = self.defer()
        waiting = {feed for feed in chosen if feed != CROWDSEC}
        timer = self.after(RELOAD_ANSWER_S, lambda: answer.reply(self._reloaded(chosen, done=False)))

        def one_done(feed: str) -> None:
            waiting.discard(feed)
            if not waiting:
                self.cancel(timer)
                answer.reply(self._reloaded(chosen, done=True))

        for feed in list(waiting):
            self._refresh(feed, accept=accept, then=one_done)
        if not waiting:
            one_done("")
        return answer

    def _reloaded(self, names: list[str], *, done: bool) -> dict[str, Any]:
        rows = [self._feeds[name].row() for name in names if name in self._feeds]
        return {"done": done, "feeds": rows, "problems": list(self._sources.problems)}

    # --- definitions -----------------------------------------------------------------------------------------

    async def _open(self) -> FeedKeeper:
        """In the loop, where its tools live."""
        await asyncio.to_thread(self._store.forget_drafts)
        return FeedKeeper(self._store, make_client, own_networks.read)

    def _opened(self, done: "Future[FeedKeeper]") -> None:
        self._keeper = done.result()
        self._define()
        feeds = list(self._feeds.values())
        self._start_crowdsec()
        self.call(self._first_looks, self._keeper, feeds, then=self._looked)

    async def _first_looks(self, keeper: FeedKeeper, feeds: list[Feed]) -> None:
        """Local files are read at once; of remote feeds the copy on disk protects until they are asked."""

        async def look(feed: Feed) -> None:
            await keeper.restore(feed)
            if feed.source.path is not None:
                await keeper.refresh(feed)

        await asyncio.gather(*map(look, feeds))

    def _looked(self, done: "Future[None]") -> None:
        done.result()
        if self._sources.whole or not self._files().prefixes.exists():
            self._sum.now()  # else an earlier life's whole sum is in force, and better than a part of it
        for name, feed in self._feeds.items():
            age = time.time() - feed.checked_unix_s
            self._schedule(name, after_s=max(0.0, _period(feed.source) - max(age, 0.0)))
        self._say()

    def _define(self) -> None:
        """Take in the definitions as they are now. Feeds that are no longer on are dropped, save when not all
        definitions could be read: a directory that is away for a moment must not end protection."""
        self._sources = load_sources(self.settings.feeds)
        self.cancel(self._again)
        if not self._sources.whole:
            self._again = self.after(LOCAL_SECONDS, self._begin)
        wanted = {source.name: source for source in self._sources.feeds if source.name != CROWDSEC}
        gone = [name for name in self._feeds if name not in wanted and name != CROWDSEC]
        for name in gone if self._sources.whole else ():
            self._forget(name)
            self._sum.soon()
        for name, source in wanted.items():
            known = self._feeds.get(name)
            if known is None:
                self._feeds[name] = Feed(source)
            elif known.source != source:
                known.source, known.seen = source, ""  # what was refused may be right now, and the other way round

    def _forget(self, name: str) -> None:
        self._feeds.pop(name, None)
        self.cancel(self._timers.pop(name, 0))
        for gauge in ("entries", "healthy"):
            self.gauges.pop(f"feed_{_metric(name)}_{gauge}", None)

    def _start_crowdsec(self) -> None:
        settings = self.settings.feeds
        if self._crowdsec is None and CrowdSecFeed.wanted(settings):
            self._crowdsec = CrowdSecFeed(self, settings, own_networks.read, self._sum.soon, self._say)
            self._feeds[CROWDSEC] = self._crowdsec.feed

    # --- schedule --------------------------------------------------------------------------------------------

    def _schedule(self, name: str, after_s: float | None = None) -> None:
        """The next look at this feed, a little early or late so that a fleet does not ask in step."""
        feed = self._feeds.get(name)
        if feed is None or name == CROWDSEC:
            return
        self.cancel(self._timers.pop(name, 0))
        wait = _period(feed.source) if after_s is None else after_s
        spread = wait * random.uniform(1.0, 1.1) + random.uniform(0.0, 2.0)  # noqa: S311 - spreads, hides nothing
        self._timers[name] = self.after(spread, self._refresh, name)

    def _refresh(self, name: str, *, accept: bool = False, then: Callable[[str], None] | None = None) -> None:
        feed, keeper = self._feeds.get(name), self._keeper
        if feed is None or keeper is None or name in self._busy or name == CROWDSEC:
            if then is not None:
                then(name)
            return
        self._busy.add(name)

        async def cycle() -> bool:
            return await keeper.refresh(feed, accept=accept)

        def done(future: "Future[bool]") -> None:
            self._busy.discard(name)
            self._refreshed(name, future)
            if then is not None:
                then(name)

        self.call(cycle, then=done)

    def _refreshed(self, name: str, done: "Future[bool]") -> None:
        try:
            changed = done.result()
        except CancelledError:
            return
        self.counters["feeds_checked"] += 1
        if changed:
            self.counters["feeds_changed"] += 1
            self._sum.soon()
        self._schedule(name)
        self._say()

    # --- what is in force --------------------------------------------------------------------------------------

    def _in_force(self) -> list[tuple[str, Healthy]]:
        return [(name, feed.healthy) for name, feed in sorted(self._feeds.items()) if feed.healthy is not None]

    def _compiled(self, compiled: Compiled | None, problem: str, remedy: str) -> None:
        self._trouble, self._trouble_remedy = problem, remedy
        if compiled is not None:
            self._publish(compiled)
        self._say()

    def _publish(self, compiled: Compiled) -> None:
        files = self._files()
        self._told = FeedCompiled(
            generation=max(time.time_ns() // 1_000_000, self._told.generation + 1 if self._told else 0),
            snapshot=str(files.snapshot4),
            snapshot6=str(files.snapshot6),
            prefixes=str(files.prefixes),
            entries_v4=compiled.entries_v4,
            entries_v6=compiled.entries_v6,
            classes=list(compiled.classes),
        )
        self.publish(self._told)
        self.counters["compiled"] += 1
        self.gauges["entries_v4"], self.gauges["entries_v6"] = compiled.entries_v4, compiled.entries_v6
        self.log.info("feeds_compiled", v4=compiled.entries_v4, v6=compiled.entries_v6, feeds=len(compiled.classes))

    def _say(self) -> None:
        """The mode of this cell: the worst of what is known."""
        for name, feed in self._feeds.items():
            self.gauges[f"feed_{_metric(name)}_entries"] = feed.entries
            self.gauges[f"feed_{_metric(name)}_healthy"] = feed.state == "healthy"
        ill = [feed for feed in self._feeds.values() if feed.state in ILL]
        if self._trouble:
            self.degraded(self._trouble, self._trouble_remedy)
        elif not self.settings.feeds.enabled:
            self.off("feeds are switched off", "set feeds.enabled = true")
        elif ill:
            said = "; ".join(f"{feed.source.name} is {feed.state}: {feed.reason}" for feed in ill[:5])
            self.degraded(said, ill[0].remedy)
        elif self._sources.problems:
            self.degraded("; ".join(self._sources.problems[:5]), "mend the definition; see `python run.py feeds`")
        elif not self._feeds:
            self.off("no feed is on", "name some in feeds.enable, or put lists into feeds.directory")
        else:
            self.healthy()

    def _store_directory(self) -> Path:
        return Path(self.settings.state_dir) / "feeds"

    def _files(self) -> BlocklistFiles:
        return BlocklistFiles(Path(self.settings.run_dir) / "feeds")


def _period(source: FeedSource) -> float:
    seconds = source.refresh_minutes * 60
    return min(seconds, LOCAL_SECONDS) if source.path is not None else seconds


def _address(value: Any) -> Address:
    try:
        return ipaddress.ip_address(str(value).strip())
    except ValueError as exc:
        raise Refused(f"{str(value)[:60]!r} is no address", remedy="give one address, like 203.0.113.7") from exc


def _metric(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
