"""Leases over a real Redis: several processes on one bucket, and the server killed in the middle."""

import multiprocessing
import os
import threading
import time
from typing import Any

from actors.hypodermis.leases import BLOCK_MAX, Limiter
from actors.hypodermis.redis_bucket import RedisBuckets
from actors.hypodermis.token_bucket import limit
from tests.support.redis import RedisServer, redis_server

PROCESSES = 3


def take_for(url: str, rule: Any, seconds: float, answers: Any) -> None:
    """As fast as it goes; how many passed, and the longest that one decision took."""
    limiter = Limiter(RedisBuckets(url, f"process {os.getpid()}"))
    limiter.take("warm", limit(1_000_000))
    end = time.monotonic() + seconds
    passed = decisions = 0
    longest = 0.0
    while (began := time.monotonic()) < end:
        passed += limiter.take("shared", rule).allowed
        decisions += 1
        longest = max(longest, time.monotonic() - began)
    answers.put((passed, decisions, longest))


def crowd(server: RedisServer, rule: Any, seconds: float) -> tuple[list[Any], float]:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    began = time.monotonic()
    workers = [
        context.Process(target=take_for, args=(server.url, rule, seconds, answers), daemon=True)
        for _ in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(10)
    return found, time.monotonic() - began


def test_processes_that_share_a_bucket_pass_no_more_than_it_holds() -> None:
    rule = limit(2_000, 1.0, burst=1_000)
    with redis_server() as server:
        found, took_s = crowd(server, rule, 1.5)

    passed = sum(row[0] for row in found)
    assert passed <= rule.burst + rule.tokens * took_s
    assert passed >= rule.burst + rule.tokens * 1.5 * 0.5
    assert sum(row[1] for row in found) > passed


def test_redis_killed_in_the_middle_stops_nothing_and_the_bound_holds() -> None:
    rule = limit(2_000, 1.0, burst=1_000)
    with redis_server() as server:
        killer = threading.Timer(0.8, server.kill)
        killer.start()
        found, took_s = crowd(server, rule, 2.0)
        killer.join()

    passed = sum(row[0] for row in found)
    once = rule.burst + rule.tokens * took_s
    assert passed <= 2 * once + PROCESSES * BLOCK_MAX
    assert passed >= rule.tokens * 2.0 * 0.5
    assert max(row[2] for row in found) < 2.0


def test_when_redis_is_back_the_shared_bucket_counts_again() -> None:
    rule = limit(5, 3600.0)
    with redis_server() as server:
        limiter = Limiter(RedisBuckets(server.url, "one"))
        limiter.take("a", rule)
        server.kill()
        alone = limiter.take("b", rule)
        server.start()

        deadline = time.monotonic() + 10
        while (decision := limiter.take("b", rule)).alone and time.monotonic() < deadline:
            time.sleep(0.05)

        assert alone.alone
        assert not decision.alone


def test_nobody_listens_there_and_decisions_go_on() -> None:
    limiter = Limiter(RedisBuckets("redis://127.0.0.1:1/0", "one"))

    decisions = [limiter.take("a", limit(5, 3600.0)) for _ in range(10)]

    assert sum(decision.allowed for decision in decisions) == 5
    assert all(decision.alone for decision in decisions)


def test_alone_each_process_gives_the_share_of_those_it_last_met() -> None:
    with redis_server() as server:
        first, second = (Limiter(RedisBuckets(server.url, name)) for name in ("first", "second"))
        rule = limit(100, 3600.0)
        for limiter in (first, second):  # the first has met nobody yet, the second has met the first
            limiter.take("acquainted", rule)
        server.kill()

        passed = [sum(limiter.take("a", rule).allowed for _ in range(200)) for limiter in (first, second)]

    assert passed == [100, 50]
