"""Melanocyte — the IP reputation feed cell.

Fetches, checks, keeps and compiles blocklists, and tells the cells that enforce where the result lies. It reads what
strangers publish and therefore runs without privileges. Fetching and parsing happen in the cell's loop and its threads;
the actor thread only decides what is due. What fails leaves the last good list in force.
"""

import asyncio
import ipaddress
import os
import random
import secrets
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np

from actors.core.capability import service_identity
from actors.core.cell import Cell, answers
from actors.core.errors import NotFound, Refused
from actors.core.messages import FeedCompiled
from actors.epidermis.blocklist import BlocklistError
from actors.epidermis.crowdsec import Bouncer
from actors.epidermis.feed_client import make_client
from actors.epidermis.feed_formats import Format, Parsed
from actors.epidermis.feed_health import Healthy, Quarantined, judge
from actors.epidermis.feed_lines import read_addresses
from actors.epidermis.feed_sources import FeedSource, Sources, load_sources
from actors.epidermis.feed_store import Copy, FeedStore
from actors.epidermis.feeds import BlocklistFiles, Compiled, Feed, FeedKeeper, compile_feeds
from actors.epidermis.own_networks import own_networks
from actors.epidermis.prefixes import Address

#: who enforces blocklists: told again whenever one of them starts
ENFORCERS = ("reflex_arc", "keratinocyte")
#: a local file costs one read to look at, so it is looked at more often than a server is asked
LOCAL_SECONDS = 30.0
#: several feeds that change together are compiled once
GATHER_S = 0.2
#: an answer to ``feeds.reload`` waits so long for the feeds to come in
RELOAD_ANSWER_S = 1.5
#: a full disk is tried again by itself
WRITE_AGAIN_S = 30.0
CROWDSEC = "crowdsec"


class Melanocyte(Cell):
    """Keeps the feeds, and their compiled sum."""

    uses_asyncio = True

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
        self._crowdsec: Future[Any] | None = None
        self._told: FeedCompiled | None = None
        self._compiling = self._again = self._gathering = False
        self._trouble, self._trouble_remedy = "", ""
        self._random = np.random.default_rng(secrets.randbits(128))
        self._store = FeedStore(self._store_directory())
        self._keeper: FeedKeeper
        if not self.settings.feeds.enabled:
            self.off("feeds are switched off", "set feeds.enabled = true")
            self._compile()
            return
        self.call(self._open, then=self._opened)

    def on_stop(self) -> None:
        if self._crowdsec is not None:
            self._crowdsec.cancel()

    def on_peer_up(self, name: str) -> None:
        if name in ENFORCERS and self._told is not None:
            self.tell(name, self._told)

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

    # --- definitions and schedule ------------------------------------------------------------------------------

    async def _open(self) -> None:
        """In the loop: the tools that live there."""
        await asyncio.to_thread(self._store.forget_drafts)
        self._keeper = FeedKeeper(self._store, make_client(), own_networks)

    def _opened(self, done: "Future[None]") -> None:
        done.result()
        self._define()
        feeds = [feed for feed in self._feeds.values() if feed.source.name != CROWDSEC]
        self.call(self._restore_all, feeds, then=self._restored)
        self._start_crowdsec()

    async def _restore_all(self, feeds: list[Feed]) -> None:
        await asyncio.gather(*(self._first_look(feed) for feed in feeds))

    async def _first_look(self, feed: Feed) -> None:
        """Local files are read at once; of remote feeds the copy on disk protects until they are asked."""
        await self._keeper.restore(feed)
        if feed.source.path is not None:
            await self._keeper.refresh(feed)

    def _restored(self, done: "Future[None]") -> None:
        done.result()
        self._compile()
        for name, feed in self._feeds.items():
            age = time.time() - feed.copy.fetched_unix_s if feed.copy else float("inf")
            self._schedule(name, first=max(0.0, self._period(feed.source) - age) if age >= 0 else 0.0)
        self._say()

    def _define(self) -> None:
        """Take in the definitions as they are now; feeds that are no longer on are dropped."""
        self._sources = load_sources(self.settings.feeds)
        wanted = {source.name: source for source in self._sources.feeds}
        for name in [name for name in self._feeds if name not in wanted and name != CROWDSEC]:
            del self._feeds[name]
            self.cancel(self._timers.pop(name, 0))
            self._compile_soon()
        for name, source in wanted.items():
            known = self._feeds.get(name)
            if known is None:
                self._feeds[name] = Feed(source)
            elif known.source != source:
                known.source, known.seen = source, ""  # what was refused may be right now, and the other way round

    def _period(self, source: FeedSource) -> float:
        seconds = source.refresh_minutes * 60
        return min(seconds, LOCAL_SECONDS) if source.path is not None else seconds

    def _schedule(self, name: str, first: float | None = None) -> None:
        """The next look at this feed, a little early or late so that a fleet does not ask in step."""
        feed = self._feeds.get(name)
        if feed is None or name == CROWDSEC:
            return
        self.cancel(self._timers.pop(name, 0))
        delay = self._period(feed.source) if first is None else first
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads requests, hides nothing
        self._timers[name] = self.after(delay * jitter + random.uniform(0.0, 2.0), self._refresh, name)  # noqa: S311

    def _refresh(self, name: str, *, accept: bool = False, then: Any = None) -> None:
        feed = self._feeds.get(name)
        if feed is None or name in self._busy:
            if then is not None:
                then(name)
            return
        self._busy.add(name)

        def done(future: "Future[bool]") -> None:
            self._busy.discard(name)
            self._refreshed(name, future)
            if then is not None:
                then(name)

        self.call(self._refresh_one, feed, accept, then=done)

    async def _refresh_one(self, feed: Feed, accept: bool) -> bool:
        return await self._keeper.refresh(feed, accept=accept)

    def _refreshed(self, name: str, done: "Future[bool]") -> None:
        try:
            changed = done.result()
        except CancelledError:
            return
        self.counters["feeds_checked"] += 1
        if changed:
            self.counters["feeds_changed"] += 1
            self._compile_soon()
        self._schedule(name)
        self._say()

    # --- CrowdSec --------------------------------------------------------------------------------------------

    def _start_crowdsec(self) -> None:
        settings = self.settings.feeds
        key = settings.crowdsec_key.get_secret_value() if settings.crowdsec_key else ""
        if not settings.crowdsec_url or not key:
            return
        source = FeedSource.model_construct(
            name=CROWDSEC,
            url=settings.crowdsec_url,
            format=Format.JSON,
            special="allow" if settings.allow_private else "subtract",
            max_share=settings.max_share,
            refresh_minutes=settings.crowdsec_seconds / 60,
            shrink=0.0,
            grow=float("inf"),
            note="decisions of the CrowdSec local API",
        )
        self._feeds[CROWDSEC] = Feed(source)
        bouncer = Bouncer(
            settings.crowdsec_url,
            key,
            every_s=settings.crowdsec_seconds,
            on_change=lambda values: self.post(self._crowdsec_changed, values),
            on_state=lambda problem, remedy: self.post(self._crowdsec_state, problem, remedy),
        )
        self._crowdsec = self.call(bouncer.run)

    def _crowdsec_changed(self, values: list[str]) -> None:
        self.call(self._judge_crowdsec, self._feeds[CROWDSEC].source, values, then=self._crowdsec_judged)

    async def _judge_crowdsec(self, source: FeedSource, values: list[str]) -> Healthy | Quarantined:
        def work() -> Healthy | Quarantined:
            v4, v6, _ = read_addresses(values)
            try:
                return judge(Parsed(v4, v6, Format.JSON), source, own_networks())
            except Quarantined as verdict:
                return verdict if values else Healthy(v4, v6)

        return await asyncio.to_thread(work)

    def _crowdsec_judged(self, done: "Future[Healthy | Quarantined]") -> None:
        feed, verdict = self._feeds[CROWDSEC], done.result()
        if isinstance(verdict, Quarantined):
            feed.quarantine("", verdict.reason, verdict.remedy)
        else:
            feed.accept(verdict, Copy(digest="", entries=verdict.entries, fetched_unix_s=time.time()))
        self._compile_soon()
        self._say()

    def _crowdsec_state(self, problem: str, remedy: str) -> None:
        feed = self._feeds[CROWDSEC]
        feed.checked_unix_s = time.time()
        if problem:
            feed.state, feed.reason, feed.remedy = ("stale" if feed.healthy else "failed"), problem, remedy
        elif feed.state != "quarantined":
            feed.state, feed.reason, feed.remedy = "healthy", "", ""
        self._say()

    # --- compiling -------------------------------------------------------------------------------------------

    def _compile_soon(self) -> None:
        if not self._gathering:
            self._gathering = True
            self.after(GATHER_S, self._compile)

    def _compile(self) -> None:
        """One at a time; what changes meanwhile is compiled after it."""
        self._gathering = False
        if self._compiling:
            self._again = True
            return
        self._compiling = True
        lists = [(name, feed.healthy) for name, feed in sorted(self._feeds.items()) if feed.healthy is not None]
        self.call(self._compile_and_write, lists, then=self._compiled)

    async def _compile_and_write(self, lists: list[tuple[str, Healthy]]) -> Compiled:
        def work() -> Compiled:
            compiled = compile_feeds([(name, h.v4, h.v6) for name, h in lists], own_networks(), self._random)
            self._files().write(compiled)
            return compiled

        return await asyncio.to_thread(work)

    def _compiled(self, done: "Future[Compiled]") -> None:
        self._compiling = False
        try:
            compiled = done.result()
        except CancelledError:
            return
        except BlocklistError as exc:
            self._in_trouble(str(exc), "switch a feed off; the lists from before stay in force")
        except OSError as exc:
            directory = self._files().directory
            self._in_trouble(f"the compiled lists cannot be written: {exc}", f"make room in {directory}")
            self.after(WRITE_AGAIN_S, self._compile_soon)
        else:
            self._in_trouble("", "")
            self._publish(compiled)
        if self._again:
            self._again = False
            self._compile_soon()

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

    def _in_trouble(self, reason: str, remedy: str) -> None:
        self._trouble, self._trouble_remedy = reason, remedy
        self._say()

    # --- mode ------------------------------------------------------------------------------------------------

    def _say(self) -> None:
        """The worst of what is known, once per change."""
        for name, feed in self._feeds.items():
            self.gauges[f"feed_{_metric(name)}_entries"] = feed.entries
            self.gauges[f"feed_{_metric(name)}_healthy"] = feed.state == "healthy"
        if not self.settings.feeds.enabled:
            return
        ill = [feed for feed in self._feeds.values() if feed.state in ("stale", "failed", "quarantined")]
        if self._trouble:
            self.degraded(self._trouble, self._trouble_remedy)
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


def _address(value: Any) -> Address:
    try:
        return ipaddress.ip_address(str(value).strip())
    except ValueError as exc:
        raise Refused(f"{str(value)[:60]!r} is no address", remedy="give one address, like 203.0.113.7") from exc


def _metric(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
