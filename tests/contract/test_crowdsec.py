"""The CrowdSec bouncer against a small API over a real socket, and its table of decisions."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.epidermis import crowdsec, crowdsec_usage
from actors.epidermis.crowdsec import (
    USER_AGENT,
    Answer,
    Bouncer,
    CrowdSecError,
    Decision,
    Decisions,
    KeyRefused,
    duration_s,
    read_answer,
)
from tests.support.feed_server import FakeLapi, serving


@pytest.fixture
def lapi() -> Iterator[FakeLapi]:
    with serving(FakeLapi) as server:
        yield server


@dataclass
class Bench:
    """A bouncer whose questions are put one by one, with a clock set by hand."""

    lapi: FakeLapi
    key: str = "good-key"
    now: float = 1_000_000.0
    changes: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bouncer = Bouncer(
            self.lapi.url,
            self.key,
            on_change=lambda values: self.changes.append(set(values)),
            on_state=lambda problem, remedy: None,
            clock=lambda: self.now,
            timeout_s=0.5,
        )

    def poll(self) -> None:
        async def once() -> None:
            async with httpx2.AsyncClient(timeout=0.5, headers=self.bouncer._headers) as client:
                await self.bouncer.poll(client)

        asyncio.run(once())

    @property
    def banned(self) -> set[str]:
        return set(self.bouncer.decisions.values())


def test_everything_is_asked_once_and_then_only_changes(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    first = lapi.decide("192.0.2.1")
    lapi.decide("198.51.100.0/24")

    bench.poll()
    bench.poll()
    lapi.decide("2001:db8::1")
    lapi.delete(first)
    bench.poll()

    assert bench.changes == [
        {"192.0.2.1", "198.51.100.0/24"},
        {"198.51.100.0/24", "2001:db8::1"},
    ]
    assert [method for method, _, _ in lapi.requests] == ["HEAD", "GET", "GET", "GET"]
    assert ["startup=true" in query for method, query, _ in lapi.requests if method == "GET"] == [True, False, False]
    assert all("scopes=ip%2Crange" in query or "scopes=ip,range" in query for _, query, _ in lapi.requests[1:])


def test_the_api_learns_who_asks(lapi: FakeLapi) -> None:
    bench = Bench(lapi)

    bench.poll()

    headers = lapi.requests[0][2]
    assert headers["User-Agent"] == USER_AGENT
    assert USER_AGENT.count("/") == 1
    assert headers["X-Api-Key"] == "good-key"


def test_a_wrong_key_is_found_out_without_moving_what_the_server_remembers(lapi: FakeLapi) -> None:
    bench = Bench(lapi, key="bad-key")
    lapi.decide("192.0.2.1")

    with pytest.raises(KeyRefused) as refused:
        bench.poll()

    assert [method for method, _, _ in lapi.requests] == ["HEAD"]
    assert "bad-key" not in str(refused.value) + refused.value.remedy


@pytest.mark.parametrize("trouble", ["500", "truncated", "slow"])
def test_after_a_broken_answer_everything_is_asked_again_and_nothing_is_forgotten(lapi: FakeLapi, trouble: str) -> None:
    bench = Bench(lapi)
    lapi.decide("192.0.2.1")
    bench.poll()
    lapi.decide("192.0.2.2")
    lapi.trouble = [trouble]

    with pytest.raises(CrowdSecError):
        bench.poll()
    during = bench.banned
    lapi.released.set()
    bench.poll()

    assert during == {"192.0.2.1"}
    assert bench.banned == {"192.0.2.1", "192.0.2.2"}
    assert "startup=true" in lapi.requests[-1][1]


def test_a_resync_that_lost_most_decisions_is_believed_only_the_second_time(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    for number in range(100):
        lapi.decide(f"192.0.2.{number}")
    bench.poll()
    lapi.trouble = ["short"]

    bench.bouncer.resync()
    bench.poll()
    kept = len(bench.banned)
    lapi.trouble = ["short"]
    bench.bouncer.resync()
    bench.poll()

    assert kept == 100
    assert len(bench.banned) == 10


def test_a_resync_forgets_what_was_deleted_unseen(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    numbers = [lapi.decide(f"192.0.2.{number}") for number in range(20)]
    bench.poll()
    del lapi.live[numbers[0]]

    bench.bouncer.resync()
    bench.poll()

    assert len(bench.banned) == 19


def test_decisions_run_out_by_themselves(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    lapi.decide("192.0.2.1", "10m")
    lapi.decide("192.0.2.2", "2h")
    bench.poll()

    bench.now += 601
    bench.poll()

    assert bench.changes[-1] == {"192.0.2.2"}


def test_an_address_is_free_only_when_its_last_decision_is_gone(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    mine = lapi.decide("192.0.2.1")
    theirs = lapi.decide("192.0.2.1", origin="CAPI")
    bench.poll()

    lapi.delete(mine)
    bench.poll()
    still = bench.banned
    lapi.delete(theirs)
    bench.poll()

    assert still == {"192.0.2.1"}
    assert bench.banned == set()


def test_what_is_no_ban_of_an_address_is_passed_over(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    lapi.decide("192.0.2.1", type="captcha")
    lapi.decide("192.0.2.2", simulated=True)
    lapi.decide("XX", scope="Country")
    lapi.decide("192.0.2.3", duration="soon")
    lapi.decide("192.0.2.4", scope="ip")
    lapi.decide("192.0.2.5", duration="-3s")

    bench.poll()

    assert bench.banned == {"192.0.2.4"}
    assert bench.bouncer.skipped == 4


def test_one_decision_of_another_shape_costs_none_of_the_others(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    lapi.decide("192.0.2.1")
    lapi.decide("192.0.2.2", simulated="perhaps")
    lapi.decide("192.0.2.3", scope=None)
    lapi.decide("192.0.2.4", origin=None, scenario=None, uuid="new in 1.5")

    bench.poll()

    assert bench.banned == {"192.0.2.1", "192.0.2.4"}
    assert bench.bouncer.skipped == 2


def test_answers_are_read_beside_the_loop_so_that_a_long_one_stops_nothing(
    lapi: FakeLapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(lapi)
    lapi.decide("192.0.2.1")
    read_by: list[int] = []

    def reading(data: bytes, now_unix_s: float) -> Answer:
        read_by.append(threading.get_ident())
        return read_answer(data, now_unix_s)

    monkeypatch.setattr(crowdsec, "read_answer", reading)
    bench.poll()

    assert bench.banned == {"192.0.2.1"}
    assert len(read_by) == 1
    assert read_by[0] != threading.get_ident()


def test_what_expires_soonest_is_known_through_changes_and_resyncs() -> None:
    table = Decisions()
    table.apply(Answer((Decision("192.0.2.1", "1", 50.0), Decision("192.0.2.2", "2", 20.0)), (), 0), 0.0)

    early, first = table.expire(19.0), table.expire(20.0)
    table.replace(Answer((Decision("192.0.2.3", "3", 30.0),), (), 0), 21.0)
    second, third = table.expire(29.0), table.expire(30.0)

    assert (early, first, second, third) == (False, True, False, True)
    assert table.values() == []


def test_the_conversation_goes_on_through_trouble_and_says_its_state(lapi: FakeLapi) -> None:
    lapi.decide("192.0.2.1")
    lapi.trouble = ["500", "truncated"]
    states: list[str] = []
    seen = asyncio.Event()

    async def main() -> None:
        bouncer = Bouncer(
            lapi.url,
            "good-key",
            every_s=0.02,
            on_change=lambda values: seen.set(),
            on_state=lambda problem, remedy: states.append(problem),
        )
        task = asyncio.create_task(bouncer.run())
        await asyncio.wait_for(seen.wait(), 10)
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert states[:2] == ["the CrowdSec API answered 500", states[1]]
    assert states[-1] == ""


def test_an_api_that_is_away_is_one_kind_of_error() -> None:
    lapi = FakeLapi(url="http://127.0.0.1:1")

    with pytest.raises(CrowdSecError, match="cannot be asked"):
        Bench(lapi).poll()


def told(bench: Bench, times: int = 1, every_s: float = crowdsec_usage.EVERY_S) -> None:
    async def tell() -> None:
        async with httpx2.AsyncClient(timeout=2, headers=bench.bouncer._headers) as client:
            for _ in range(times):
                bench.now += every_s
                await bench.bouncer.tell_usage(client)

    asyncio.run(tell())


def test_the_api_is_told_every_half_hour_who_we_are_and_how_much_we_hold(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    for value in ("192.0.2.1", "198.51.100.0/24", "2001:db8::1"):
        lapi.decide(value)
    bench.poll()
    started = bench.now

    told(bench, times=2)
    told(bench, every_s=60)

    assert len(lapi.usage) == 2, "not before the half hour is over"
    [component] = lapi.usage[1]["remediation_components"]
    [window] = component["metrics"]
    assert f"{component['type']}/{component['version']}" == USER_AGENT
    assert component["utc_startup_timestamp"] == started
    assert window["meta"] == {"utc_now_timestamp": started + 3600, "window_size_seconds": 1800}
    assert {(i["name"], i["unit"], i["labels"]["ip_type"]): i["value"] for i in window["items"]} == {
        ("active_decisions", "ip", "ipv4"): 2,
        ("active_decisions", "ip", "ipv6"): 1,
    }


def test_an_api_that_does_not_know_usage_metrics_is_not_asked_again(lapi: FakeLapi) -> None:
    bench = Bench(lapi)
    lapi.knows_usage = False

    told(bench, times=3)

    assert lapi.usage == [{}]


def test_nothing_that_the_api_says_to_usage_metrics_disturbs_the_decisions(lapi: FakeLapi) -> None:
    refused, away = Bench(lapi, key="bad-key"), Bench(FakeLapi(url="http://127.0.0.1:1"))

    told(refused, times=2)
    told(away, times=2)

    assert lapi.usage == [{}, {}]


# --- pure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h59m51.2s", 14391.2), ("24h0m0s", 86400), ("-5s", -5), ("1.5h", 5400), ("150ms", 0.15), ("2m", 120)],
)
def test_go_durations_are_understood(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "h", "1h-5m", "1d", "1e9s", "9" * 500 + "s", "1..5s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(CrowdSecError):
        duration_s(text)


def test_deleting_twice_or_deleting_the_unknown_is_no_error() -> None:
    table = Decisions()
    ban = Decision("192.0.2.1", "7", 50.0)
    table.apply(Answer((ban,), (), 0), 0.0)

    changes = [table.apply(Answer((), (ban, Decision("192.0.2.9", "8", 0.0)), 0), 0.0) for _ in range(2)]

    assert changes == [True, False]
    assert table.values() == []


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["new", "deleted", "value", "scope", "type", "duration", "id", "origin", "simulated"]),
            inner,
        )
    ),
    max_leaves=15,
)


@given(st.one_of(st.binary(max_size=300), json_values.map(lambda v: __import__("json").dumps(v).encode())))
def test_whatever_the_api_says_is_an_answer_or_an_error(data: bytes) -> None:
    try:
        answer = read_answer(data, 0.0)
    except CrowdSecError:
        return
    table = Decisions()
    table.apply(answer, 0.0)
    table.replace(answer, 0.0)
    table.expire(1e9)
