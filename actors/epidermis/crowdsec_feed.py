"""CrowdSec's decisions as one more feed of the feed cell."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from actors.core.cell import Cell
from actors.epidermis.crowdsec import Bouncer
from actors.epidermis.feed_formats import Format, Parsed
from actors.epidermis.feed_health import Healthy, OwnNetworks, Quarantined, judge
from actors.epidermis.feed_lines import read_addresses
from actors.epidermis.feed_sources import FeedSource
from actors.epidermis.feed_store import Copy
from actors.epidermis.feeds import Feed
from config.settings import FeedSettings

NAME = "crowdsec"


class CrowdSecFeed:
    """Runs the bouncer in the cell's loop; ``feed`` is what is in force. All callbacks come on the actor thread.

    changed(): what is listed has changed. said(): the state has. Nothing runs unless URL and key are both set."""

    def __init__(
        self,
        cell: Cell,
        settings: FeedSettings,
        own: Callable[[], OwnNetworks],
        changed: Callable[[], None],
        said: Callable[[], None],
    ) -> None:
        self._cell, self._own, self._changed, self._said = cell, own, changed, said
        self.feed = Feed(
            FeedSource.model_construct(
                name=NAME,
                url=settings.crowdsec_url,
                format=Format.JSON,
                special="allow" if settings.allow_private else "subtract",
                max_share=settings.max_share,
                refresh_minutes=settings.crowdsec_seconds / 60,
                note="decisions of the CrowdSec local API",
            )
        )
        bouncer = Bouncer(
            settings.crowdsec_url,
            settings.crowdsec_key.get_secret_value() if settings.crowdsec_key else "",
            every_s=settings.crowdsec_seconds,
            on_change=lambda values: cell.post(self._take, values),
            on_state=lambda problem, remedy: cell.post(self._state, problem, remedy),
        )
        self._running: Future[Any] = cell.call(bouncer.run)

    @staticmethod
    def wanted(settings: FeedSettings) -> bool:
        """Whether the settings name an API and a key."""
        key = settings.crowdsec_key.get_secret_value() if settings.crowdsec_key else ""
        return bool(settings.crowdsec_url and key)

    def stop(self) -> None:
        self._running.cancel()

    def _take(self, values: list[str]) -> None:
        self._cell.call(self._judge, values, then=self._judged)

    async def _judge(self, values: list[str]) -> Healthy | Quarantined:
        return await asyncio.to_thread(self._verdict, values)

    def _verdict(self, values: list[str]) -> Healthy | Quarantined:
        v4, v6, _ = read_addresses(values)
        try:
            return judge(Parsed(v4, v6, Format.JSON), self.feed.source, self._own())
        except Quarantined as verdict:
            return verdict if values else Healthy(v4, v6)  # nobody is banned: no fault of the list

    def _judged(self, done: "Future[Healthy | Quarantined]") -> None:
        verdict = done.result()
        if isinstance(verdict, Quarantined):
            self.feed.quarantine("", verdict.reason, verdict.remedy)
        else:
            self.feed.accept(verdict, Copy(digest="", entries=verdict.entries, fetched_unix_s=time.time()))
        self._changed()
        self._said()

    def _state(self, problem: str, remedy: str) -> None:
        self.feed.checked_unix_s = time.time()
        if problem:
            self.feed.say("stale" if self.feed.healthy else "failed", problem, remedy)
        elif self.feed.state != "quarantined":
            self.feed.say("healthy")
        self._said()
