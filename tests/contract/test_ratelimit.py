"""Rate limits over real HTTP: answers, header fields, nginx' form, who may ask, and Redis killed in the middle."""

import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.hypodermis.gateway.context import near_or_authorized
from actors.hypodermis.gateway.problem import Problem
from actors.hypodermis.leases import LoopLimiter
from actors.hypodermis.redis_bucket import RedisBuckets
from tests.support.gateway import AUTHORIZED, TOKEN, Running, gateway
from tests.support.redis import redis_server

PATH = "/api/tegumentar/ratelimit"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with gateway() as made:
        yield made


def ask(running: Running, **form: Any) -> Any:
    return running.http.post(PATH, json=form)


def test_the_limit_passes_and_then_refuses_with_all_fields(running: Running) -> None:
    answers = [ask(running, key="fields", limit=3, per="1h") for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.json()["remaining"] for answer in answers] == [2, 1, 0, 0]
    assert answers[0].headers["RateLimit-Policy"] == '"default";q=3;w=3600'
    assert answers[0].headers["RateLimit"] == '"default";r=2;t=3600'
    assert "Retry-After" not in answers[0].headers
    refused = answers[3]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["allowed"] is False
    assert 1100 < int(refused.headers["Retry-After"]) <= 1200
    assert re.fullmatch(r'"default";r=0;t=1[12]\d\d', refused.headers["RateLimit"])


def test_a_cost_is_paid_whole_and_a_burst_may_be_larger(running: Running) -> None:
    first = ask(running, key="cost", limit=1, per=3600, burst=10, cost=8)
    second = ask(running, key="cost", limit=1, per=3600, burst=10, cost=3)
    third = ask(running, key="cost", limit=1, per=3600, burst=10, cost=2)

    assert [answer.status_code for answer in (first, second, third)] == [200, 429, 200]


def test_without_a_limit_of_its_own_a_question_has_that_of_the_node(running: Running) -> None:
    answer = ask(running, key="usual")

    assert answer.headers["RateLimit-Policy"] == '"default";q=100;w=1'


def test_nginx_hears_204_and_403_and_never_429(running: Running) -> None:
    query = "limit=2&per=1h"
    first = [running.http.get(f"{PATH}/auth?{query}", headers={"X-Real-IP": "203.0.113.7"}) for _ in range(3)]
    other = running.http.get(f"{PATH}/auth?{query}", headers={"X-Real-IP": "203.0.113.8"})
    named = running.http.get(f"{PATH}/auth?{query}&key=alice", headers={"X-Real-IP": "203.0.113.7"})

    assert [answer.status_code for answer in first] == [204, 204, 403]
    assert int(first[2].headers["Retry-After"]) > 1000
    assert first[2].headers["RateLimit"].startswith('"default";r=0;t=')
    assert first[2].headers["RateLimit-Policy"] == '"default";q=2;w=3600'
    assert (other.status_code, named.status_code) == (204, 204)


def test_no_decision_asks_another_cell(running: Running) -> None:
    running.node.asked.clear()

    for number in range(20):
        ask(running, key=f"silent {number}")

    assert running.node.asked == []


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"key": ""},
        {"key": "k" * 257},
        {"key": "a\nb"},
        {"key": "a", "limit": 0},
        {"key": "a", "per": 0},
        {"key": "a", "per": "2d"},
        {"key": "a", "cost": 0},
        {"key": "a", "limit": 5, "cost": 6},
        {"key": "a", "unknown": 1},
        {"key": "a", "limit": 10**12},
    ],
    ids=str,
)
def test_a_question_without_sense_is_refused_in_words(running: Running, form: dict[str, Any]) -> None:
    answer = ask(running, **form)

    assert answer.status_code == 422
    assert answer.json()["detail"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.dictionaries(
        st.sampled_from(["key", "limit", "per", "burst", "cost", "window"]),
        st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)),
    )
)
def test_whatever_is_sent_the_answer_is_one_of_three(running: Running, form: dict[str, Any]) -> None:
    assert ask(running, **form).status_code in {200, 422, 429}


def request_from(address: str, running: Running, headers: dict[str, str]) -> Request:
    fields = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    app = SimpleNamespace(state=SimpleNamespace(context=running.context))
    return Request({"type": "http", "client": (address, 1), "headers": fields, "app": app})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_programs_of_this_host_need_no_token(running: Running, address: str) -> None:
    near_or_authorized(request_from(address, running, {}))


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "testclient"])
def test_others_need_the_token(running: Running, address: str) -> None:
    with pytest.raises(Problem) as refused:
        near_or_authorized(request_from(address, running, {}))

    assert refused.value.status == 401
    near_or_authorized(request_from(address, running, {"Authorization": f"Bearer {TOKEN}"}))
    assert AUTHORIZED["Authorization"].endswith(TOKEN)


def test_two_gateways_share_a_bucket_and_go_on_when_redis_is_killed() -> None:
    with redis_server() as server, gateway() as left, gateway() as right:
        for number, made in enumerate((left, right)):
            made.context.limiter = LoopLimiter(RedisBuckets(server.url, f"gateway {number}"))
        rule = {"limit": 30, "per": "1h"}
        shared = [ask(made, key="a", **rule) for _ in range(30) for made in (left, right)]
        server.kill()
        began = time.monotonic()
        alone = [ask(left, key="b", **rule) for _ in range(40)]
        took_s = time.monotonic() - began
        server.start()
        left.http.post(PATH, json={"key": "b", **rule})
        deadline = time.monotonic() + 10
        while not (back := ask(left, key=f"c{time.monotonic()}", **rule)).json()["shared"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

        assert sum(answer.status_code == 200 for answer in shared) == 30
        assert all(answer.json()["shared"] for answer in shared)
        assert sum(answer.status_code == 200 for answer in alone) in (15, 30)
        assert {answer.status_code for answer in alone} == {200, 429}
        assert took_s < 5
        assert back.status_code == 200
        for made in (left, right):
            made.context.limiter.close()
