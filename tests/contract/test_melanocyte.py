"""The feed cell, in this process: what it answers, what it tells the enforcing cells, and how it recovers."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina

from actors.core.errors import NotFound, Refused
from actors.core.lifecycle import Reload
from actors.core.messages import CellState, FeedCompiled
from actors.epidermis import feed_sum, melanocyte, own_networks
from actors.epidermis.feed_health import OwnNetworks
from actors.epidermis.melanocyte import Melanocyte
from bpf.blocklist_image import read_image
from config.settings import FeedSettings, Settings
from tests.support.core import SUPERVISOR_PID, Dish
from tests.support.feed_server import FakeLapi, Page, Publisher, serving

LIST = "\n".join(f"203.0.113.{number}" for number in range(60))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Dish]]:
    """Makes the cell with these feed settings; its directories are the test's."""
    monkeypatch.setattr(feed_sum, "GATHER_S", 0.01)
    monkeypatch.setattr(own_networks, "read", OwnNetworks)  # not those of the machine that runs the test
    (tmp_path / "lists").mkdir()
    made: list[Dish] = []

    def make(**feeds: Any) -> Dish:
        settings = Settings(
            state_dir=tmp_path / "state", run_dir=tmp_path / "run", feeds=FeedSettings.model_validate(feeds)
        )
        dish = Dish(Melanocyte, settings, name="melanocyte")
        dish.peer("keratinocyte", FeedCompiled)
        made.append(dish)
        return dish

    with stamina.set_testing(True, attempts=1):
        yield make
        for dish in made:
            dish.cell.end()


def told(dish: Dish, count: int = 1) -> FeedCompiled:
    """The latest news for the enforcing cells, once there have been so many different ones."""
    assert dish.run_until(lambda: len({m.generation for m in dish.sent(FeedCompiled)}) >= count, 10)
    return dish.sent(FeedCompiled)[-1]


def prefixes(news: FeedCompiled) -> list[str]:
    return Path(news.prefixes).read_text().split()


def test_a_default_node_asks_nobody_and_is_off_with_words(node: Callable[..., Dish]) -> None:
    dish = node()

    news = told(dish)

    assert (news.entries_v4, news.entries_v6) == (0, 0)
    assert prefixes(news) == []
    assert dish.last_report().state is CellState.OFF
    assert "feeds.enable" in dish.last_report().remedy
    assert "firehol_level1" in dish.ask("feeds.list")["known"]


def test_switched_off_it_empties_what_an_earlier_life_left_in_force(node: Callable[..., Dish]) -> None:
    dish = node(enabled=False)

    assert told(dish).entries_v4 == 0
    assert dish.last_report().state is CellState.OFF
    with pytest.raises(Refused):
        dish.ask("feeds.reload")


def test_local_lists_are_compiled_at_once_and_explained(node: Callable[..., Dish], tmp_path: Path) -> None:
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    (tmp_path / "lists" / "two.txt").write_text("203.0.113.0/28\n2001:db8::/48\n")

    dish = node(directory=str(tmp_path / "lists"))
    news = told(dish)

    assert (news.entries_v4, news.entries_v6) == (45, 1)
    assert news.classes == ["one.txt", "two.txt"]
    assert read_image(Path(news.snapshot), 4, 10_000).entries == 61
    assert read_image(Path(news.snapshot6), 6, 10_000).entries == 1
    assert "2001:db8::/48" in prefixes(news)
    assert {Path(p).stat().st_mode & 0o777 for p in (news.snapshot, news.snapshot6, news.prefixes)} == {0o600}
    answer = dish.ask("feeds.explain", {"address": "203.0.113.7"})
    assert answer["feeds"] == [
        {"feed": "one.txt", "entries": ["203.0.113.7"]},
        {"feed": "two.txt", "entries": ["203.0.113.0/28"]},
    ]
    assert dish.ask("feeds.explain", {"address": "2001:db8:0:5::1"})["listed"]
    assert not dish.ask("feeds.explain", {"address": "192.0.2.1"})["listed"]
    assert dish.last_report().state is CellState.HEALTHY


def test_a_quarantined_list_degrades_the_cell_and_the_others_stay(node: Callable[..., Dish], tmp_path: Path) -> None:
    (tmp_path / "lists" / "good.txt").write_text(LIST)
    (tmp_path / "lists" / "bad.txt").write_text("127.0.0.0/8\n")

    dish = node(directory=str(tmp_path / "lists"))
    news = told(dish)

    assert news.entries_v4 == 60
    rows = {row["name"]: row for row in dish.ask("feeds.list")["feeds"]}
    assert rows["bad.txt"]["state"] == "quarantined"
    assert "127.0.0.0/8" in rows["bad.txt"]["reason"]
    assert rows["good.txt"]["entries"] == 60
    report = dish.last_report()
    assert report.state is CellState.DEGRADED
    assert "bad.txt is quarantined" in report.reason
    assert (report.gauges["feed_good_txt_entries"], report.gauges["feed_bad_txt_healthy"]) == (60, 0)


def test_a_changed_file_is_taken_in_by_reload_and_an_unchanged_one_tells_nobody(
    node: Callable[..., Dish], tmp_path: Path
) -> None:
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    dish = node(directory=str(tmp_path / "lists"))
    first = told(dish)

    unchanged = dish.ask("feeds.reload")
    dish.run(0.1)
    silent = len({m.generation for m in dish.sent(FeedCompiled)})
    (tmp_path / "lists" / "one.txt").write_text(LIST + "\n198.51.100.7\n")
    (tmp_path / "lists" / "new.txt").write_text("192.0.2.0/24\n")
    changed = dish.ask("feeds.reload")
    news = told(dish, 2)

    assert unchanged["done"]
    assert changed["done"]
    assert silent == 1
    assert news.generation > first.generation
    assert {"198.51.100.7", "192.0.2.0/24"} <= set(prefixes(news))


def test_a_list_that_is_no_longer_there_is_no_longer_in_force(node: Callable[..., Dish], tmp_path: Path) -> None:
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    (tmp_path / "lists" / "two.txt").write_text("192.0.2.1")
    dish = node(directory=str(tmp_path / "lists"))
    told(dish)
    (tmp_path / "lists" / "two.txt").unlink()

    dish.ask("feeds.reload")

    assert "192.0.2.1" not in prefixes(told(dish, 2))


def test_a_directory_that_is_away_for_a_moment_ends_no_protection(node: Callable[..., Dish], tmp_path: Path) -> None:
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    dish = node(directory=str(tmp_path / "lists"))
    told(dish)
    (tmp_path / "lists").rename(tmp_path / "away")

    answer = dish.ask("feeds.reload")
    dish.run(0.2)

    assert dish.sent(FeedCompiled)[-1].entries_v4 == 60
    assert "cannot be read" in answer["problems"][0]
    assert dish.last_report().state is CellState.DEGRADED
    reborn = node(directory=str(tmp_path / "lists"))
    reborn.run(0.3)
    assert not reborn.sent(FeedCompiled), "what an earlier life put in force is better than nothing"
    (tmp_path / "away").rename(tmp_path / "lists")
    reborn.ask("feeds.reload")
    assert told(reborn).entries_v4 == 60


def test_reload_of_a_feed_that_is_not_on_is_refused(node: Callable[..., Dish]) -> None:
    dish = node()
    told(dish)

    with pytest.raises(NotFound, match="nonsense"):
        dish.ask("feeds.reload", {"feed": "nonsense"})
    for address in (None, "", "203.0.113.0/24", 7, "x" * 500):
        with pytest.raises(Refused):
            dish.ask("feeds.explain", {"address": address})


def test_new_settings_are_taken_in_without_a_restart(node: Callable[..., Dish], tmp_path: Path) -> None:
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    dish = node(directory=str(tmp_path / "lists"))
    told(dish)
    on = dish.cell.settings

    def settings_now(**feeds: Any) -> None:
        dish.cell.read_settings = lambda: on.model_copy(update={"feeds": on.feeds.model_copy(update=feeds)})
        dish._hear(Reload(), "basal_layer", SUPERVISOR_PID, 1)

    settings_now(enabled=False)
    off = told(dish, 2)
    state_off = dish.last_report().state
    settings_now(enabled=True)
    assert dish.run_until(lambda: dish.sent(FeedCompiled)[-1].entries_v4 == 60, 10)

    assert (off.entries_v4, state_off) == (0, CellState.OFF)
    assert dish.last_report().state is CellState.HEALTHY


def definitions(path: Path, url: str) -> str:
    path.write_text(f'[remote]\nurl = "{url}/list"\nenabled = true\n')
    return str(path)


def test_a_remote_feed_is_fetched_and_survives_a_restart_without_its_server(
    node: Callable[..., Dish], tmp_path: Path
) -> None:
    with serving(Publisher) as publisher:
        publisher.pages["/list"] = Page(LIST.encode())
        mine = definitions(tmp_path / "feeds.toml", publisher.url)
        first = node(definitions=mine)
        assert first.run_until(lambda: any(m.entries_v4 == 60 for m in first.sent(FeedCompiled)), 10)
        first.cell.on_stop()

    later = node(definitions=mine)
    news = told(later)

    assert news.entries_v4 == 60
    row = later.ask("feeds.reload")["feeds"][0]
    assert (row["state"], row["entries"]) == ("stale", 60)
    assert later.last_report().state is CellState.DEGRADED


def test_an_enforcing_cell_that_starts_later_is_told_as_well(node: Callable[..., Dish], tmp_path: Path) -> None:
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    dish = node(directory=str(tmp_path / "lists"))
    news = told(dish)

    dish.peer("reflex_arc", FeedCompiled)

    assert dish.sent(FeedCompiled, to="reflex_arc") == [news]


def test_a_server_that_hangs_does_not_hold_up_the_answer_to_reload(
    node: Callable[..., Dish], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(melanocyte, "RELOAD_ANSWER_S", 0.1)
    with serving(Publisher) as publisher:
        publisher.pages["/list"] = Page(LIST.encode(), "slow")
        dish = node(definitions=definitions(tmp_path / "feeds.toml", publisher.url))
        told(dish)

        answer = dish.ask("feeds.reload")

        assert not answer["done"]
        publisher.released.set()
        assert dish.run_until(lambda: dish.sent(FeedCompiled)[-1].entries_v4 == 60, 10)


def test_servers_that_hang_do_not_hold_up_other_lists(node: Callable[..., Dish], tmp_path: Path) -> None:
    with serving(Publisher) as publisher:
        publisher.pages["/list"] = Page(LIST.encode(), "slow")
        (tmp_path / "feeds.toml").write_text(
            "".join(f'[slow{n}]\nurl = "{publisher.url}/list"\nenabled = true\n' for n in range(6))
        )
        dish = node(definitions=str(tmp_path / "feeds.toml"), directory=str(tmp_path / "lists"))
        told(dish)
        dish.ask("feeds.reload", limit_s=5)

        (tmp_path / "lists" / "one.txt").write_text(LIST)
        answer = dish.ask("feeds.reload", {"feed": "one.txt"})

        assert answer["done"]
        assert answer["feeds"][0]["entries"] == 60
        publisher.released.set()


def test_decisions_of_crowdsec_come_into_force_and_go_again(node: Callable[..., Dish]) -> None:
    with serving(FakeLapi) as lapi:
        number = lapi.decide("203.0.113.7")
        lapi.decide("198.51.100.0/24")
        lapi.decide("10.0.0.1")
        dish = node(crowdsec_url=lapi.url, crowdsec_key="good-key", crowdsec_seconds=1)
        assert dish.run_until(lambda: any(m.entries_v4 == 2 for m in dish.sent(FeedCompiled)), 10)
        before = set(prefixes(dish.sent(FeedCompiled)[-1]))
        lapi.delete(number)

        assert dish.run_until(lambda: dish.sent(FeedCompiled)[-1].entries_v4 == 1, 10)

        assert before == {"203.0.113.7", "198.51.100.0/24"}
        assert prefixes(dish.sent(FeedCompiled)[-1]) == ["198.51.100.0/24"]
        assert dish.ask("feeds.explain", {"address": "198.51.100.9"})["feeds"][0]["feed"] == "crowdsec"


def test_a_refused_crowdsec_key_is_said_and_never_printed(node: Callable[..., Dish]) -> None:
    with serving(FakeLapi) as lapi:
        dish = node(crowdsec_url=lapi.url, crowdsec_key="very-secret", crowdsec_seconds=1)

        assert dish.run_until(lambda: dish.last_report().state is CellState.DEGRADED, 10)

    report = dish.last_report()
    assert "refuses the key" in report.reason
    assert "very-secret" not in report.reason + report.remedy + str(dish.ask("feeds.list"))


def test_a_run_directory_that_cannot_be_written_degrades_and_recovers(
    node: Callable[..., Dish], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_sum, "WRITE_AGAIN_S", 0.2)
    (tmp_path / "lists" / "one.txt").write_text(LIST)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "feeds").write_text("in the way")
    dish = node(directory=str(tmp_path / "lists"))

    assert dish.run_until(lambda: dish.last_report().state is CellState.DEGRADED, 10)
    assert "cannot be written" in dish.last_report().reason
    (tmp_path / "run" / "feeds").unlink()

    assert told(dish).entries_v4 == 60
    assert dish.last_report().state is CellState.HEALTHY


def test_a_hundred_thousand_entries_are_in_force_quickly_and_the_cell_stays_responsive(
    node: Callable[..., Dish], tmp_path: Path
) -> None:
    lines = [f"{16 + (i >> 16)}.{(i >> 8) & 255}.{i & 255}.9" for i in range(100_000)]
    (tmp_path / "lists" / "many.txt").write_text("\n".join(lines))
    started = time.monotonic()

    dish = node(directory=str(tmp_path / "lists"))
    news = told(dish)

    assert news.entries_v4 == 100_000
    assert time.monotonic() - started < 10
    assert Path(news.snapshot).stat().st_size < 8_000_000
