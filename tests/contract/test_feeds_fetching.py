"""Fetching from a real server over a real socket, and what a feed's cycle makes of it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import stamina

from actors.epidermis import feed_sources, prefixes
from actors.epidermis.feed_client import FetchError, fetch, make_client, read_file
from actors.epidermis.feed_health import OwnNetworks
from actors.epidermis.feed_sources import FeedSource
from actors.epidermis.feed_store import FeedStore
from actors.epidermis.feeds import Feed, FeedKeeper
from tests.support.feed_server import Page, Publisher, serving

LIST = b"# sample\n" + b"\n".join(b"203.0.113.%d" % number for number in range(60))


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with serving(Publisher) as server:
        yield server


@pytest.fixture(autouse=True)
def retries_do_not_wait() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3):
        yield


def run(work: Callable[[httpx2.AsyncClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with make_client(timeout_s=2.0) as client:
            return await work(client)

    return asyncio.run(main())


def get(url: str, max_bytes: int = 1_000_000, timeout_s: float = 2.0, **known: str) -> Any:
    return run(lambda client: fetch(client, url, max_bytes=max_bytes, timeout_s=timeout_s, **known))


def test_a_list_comes_with_its_tag_and_is_not_sent_again_while_it_is_the_same(publisher: Publisher) -> None:
    publisher.pages["/list"] = Page(LIST)

    first = get(publisher.url + "/list")
    second = get(publisher.url + "/list", etag=first.etag)

    assert first.data == LIST
    assert second is None
    assert publisher.statuses() == [200, 304]
    assert publisher.requests[0][1]["User-Agent"].startswith("tegumentar/")


def test_compressed_answers_are_unpacked_and_bombs_are_not(publisher: Publisher) -> None:
    publisher.pages |= {"/list": Page(LIST, "gzip"), "/bomb": Page(behaviour="bomb")}

    assert get(publisher.url + "/list").data == LIST
    with pytest.raises(FetchError, match="longer than the 1000000 bytes"):
        get(publisher.url + "/bomb")


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(behaviour="404"), "answered 404"),
        (Page(behaviour="500"), "answered 500"),
        (Page(LIST, "truncated"), "connection failed"),
        (Page(behaviour="endless"), "longer than"),
        (Page(LIST, "slow"), "no complete answer|not answer in time"),
        (Page(behaviour="302", location="/list"), "too many redirects"),
        (Page(behaviour="302", location="file:///etc/passwd"), "refused to follow"),
    ],
)
def test_every_misbehaviour_is_one_kind_of_error(publisher: Publisher, page: Page, reason: str) -> None:
    publisher.pages["/list"] = page

    with pytest.raises(FetchError, match=reason):
        get(publisher.url + "/list", timeout_s=0.4)


def test_a_server_that_stumbles_is_asked_again(publisher: Publisher) -> None:
    publisher.pages["/list"] = Page(LIST, failures=2)

    assert get(publisher.url + "/list").data == LIST
    assert publisher.statuses() == [503, 503, 200]


def test_a_redirect_is_followed(publisher: Publisher) -> None:
    publisher.pages |= {"/old": Page(behaviour="301", location="/list"), "/list": Page(LIST)}

    assert get(publisher.url + "/old").data == LIST


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/list", "http://[::1/list", "http://name.invalid./list"])
def test_a_place_that_cannot_be_reached_is_the_same_kind_of_error(url: str) -> None:
    with pytest.raises(FetchError):
        get(url)


def test_a_local_file_is_read_up_to_its_limit_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(LIST)

    assert read_file(tmp_path / "list", 10_000).data == LIST
    for path, limit in ((tmp_path / "list", 10), (tmp_path, 10), (tmp_path / "absent", 10), (Path("/dev/zero"), 10)):
        with pytest.raises(FetchError):
            read_file(path, limit)


# --- a feed's cycle ----------------------------------------------------------------------------------------------


class Desk:
    """One feed with a store on disk and the publisher's address."""

    def __init__(self, publisher: Publisher, directory: Path, **changes: Any) -> None:
        values = {"name": "sample", "url": publisher.url + "/list", "enabled": True} | changes
        self.feed = Feed(FeedSource.model_validate(values))
        self.store = FeedStore(directory)

    def refresh(self, **options: Any) -> bool:
        return bool(run(lambda client: self._keeper(client).refresh(self.feed, **options)))

    def restore(self) -> None:
        run(lambda client: self._keeper(client).restore(self.feed))

    def _keeper(self, client: httpx2.AsyncClient) -> FeedKeeper:
        return FeedKeeper(self.store, lambda: client, OwnNetworks)


def test_a_feed_is_used_once_and_costs_nothing_while_unchanged(publisher: Publisher, tmp_path: Path) -> None:
    publisher.pages["/list"] = Page(LIST)
    desk = Desk(publisher, tmp_path)

    changes = [desk.refresh(), desk.refresh()]
    publisher.pages["/list"] = Page(LIST + b"\n# another comment", "gzip")
    changes.append(desk.refresh())

    assert changes == [True, False, True]
    assert publisher.statuses() == [200, 304, 200]
    assert (desk.feed.state, desk.feed.entries) == ("healthy", 60)


def test_without_a_network_the_copy_on_disk_protects(publisher: Publisher, tmp_path: Path) -> None:
    publisher.pages["/list"] = Page(LIST)
    Desk(publisher, tmp_path).refresh()
    publisher.pages["/list"] = Page(behaviour="500")
    later = Desk(publisher, tmp_path)

    later.restore()
    changed = later.refresh()

    assert not changed
    assert (later.feed.state, later.feed.entries) == ("stale", 60)
    assert "answered 500" in later.feed.reason
    publisher.pages["/list"] = Page(LIST)
    later.refresh()
    assert later.feed.state == "healthy"


def test_a_feed_that_never_came_has_failed_and_says_why(publisher: Publisher, tmp_path: Path) -> None:
    desk = Desk(publisher, tmp_path)

    desk.refresh()

    assert desk.feed.state == "failed"
    assert "404" in desk.feed.reason
    assert desk.feed.remedy


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"<html>sorry</html>", "web page"),
        (b"0.0.0.0/0", "0.0.0.0/8"),
        (b"203.0.113.1", "shrank from 60 to 1"),
        (b"", "empty"),
    ],
)
def test_a_list_gone_bad_is_quarantined_and_the_last_good_one_stays(
    publisher: Publisher, tmp_path: Path, bad: bytes, reason: str
) -> None:
    publisher.pages["/list"] = Page(LIST)
    desk = Desk(publisher, tmp_path)
    desk.refresh()
    publisher.pages["/list"] = Page(bad)

    changed = desk.refresh()
    again = desk.refresh()

    assert (changed, again) == (False, False)
    assert desk.feed.state == "quarantined"
    assert reason in desk.feed.reason
    assert "60 entries from before" in desk.feed.reason
    assert desk.feed.entries == 60
    assert desk.feed.refused == 1, "the same bad list is judged once"
    restarted = Desk(publisher, tmp_path)
    restarted.restore()
    assert restarted.feed.entries == 60


def test_an_absurd_change_is_used_once_the_operator_accepts_it(publisher: Publisher, tmp_path: Path) -> None:
    publisher.pages["/list"] = Page(LIST)
    desk = Desk(publisher, tmp_path)
    desk.refresh()
    publisher.pages["/list"] = Page(b"203.0.113.1")
    desk.refresh()

    changed = desk.refresh(accept=True)

    assert changed
    assert (desk.feed.state, desk.feed.entries) == ("healthy", 1)


def test_a_publisher_that_shuts_out_the_impatient_is_asked_once_an_hour(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.pages["/list"] = Page(LIST)
    monkeypatch.setattr(feed_sources, "_is_spamhaus", lambda url: True)
    desk = Desk(publisher, tmp_path)

    for _ in range(3):
        desk.refresh(accept=True)
    restarted = Desk(publisher, tmp_path)
    restarted.restore()
    restarted.refresh()
    os.utime(tmp_path / "sample.copy", (1, 1))
    restarted.restore()
    restarted.refresh()

    assert publisher.statuses() == [200, 304]


def test_a_feed_recovers_when_its_publisher_goes_back(publisher: Publisher, tmp_path: Path) -> None:
    publisher.pages["/list"] = Page(LIST)
    desk = Desk(publisher, tmp_path)
    desk.refresh()
    publisher.pages["/list"] = Page(b"<html>")
    desk.refresh()
    publisher.pages["/list"] = Page(LIST)

    desk.refresh()

    assert desk.feed.state == "healthy"


def test_a_copy_from_another_place_is_not_used(publisher: Publisher, tmp_path: Path) -> None:
    publisher.pages["/list"] = Page(LIST)
    Desk(publisher, tmp_path).refresh()
    moved = Desk(publisher, tmp_path, url=publisher.url + "/elsewhere")

    moved.restore()

    assert moved.feed.entries == 0


def test_a_disk_that_takes_no_copy_does_not_stop_protection(publisher: Publisher, tmp_path: Path) -> None:
    publisher.pages["/list"] = Page(LIST)
    (tmp_path / "file").write_text("in the way")
    desk = Desk(publisher, tmp_path / "file" / "feeds")

    changed = desk.refresh()

    assert changed
    assert desk.feed.entries == 60
    assert "no copy could be kept" in desk.feed.reason
    assert prefixes.to_text(desk.feed.healthy.v4)[0] == "203.0.113.0"
