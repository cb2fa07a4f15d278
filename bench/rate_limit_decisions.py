"""Rate-limit decisions per second: leased blocks against a script per call and two well-known libraries.

    .venv/bin/python -m bench.rate_limit_decisions [--quick] [--rounds 5] [--json FILE]

One process asks about 100 keys in turn, over a Unix socket to a Redis server of its own. Every candidate runs in every
round, in an order that changes. Where the limits are wide every decision passes, which is the dear case for leases: a
refusal is remembered. ``limits`` counts fixed windows with one INCRBY per decision, its quickest strategy;
``pyrate-limiter`` runs its token bucket in Redis. Over-admission is what several processes pass beyond the one bucket
that they share, with Redis and with Redis killed in the middle of the time.
"""

import itertools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.hypodermis.leases import BLOCK_MAX, Limiter
from actors.hypodermis.redis_bucket import Ask, RedisBuckets
from actors.hypodermis.token_bucket import Limit, limit
from bench.claims import Claim, Options, script

KEYS = [f"client {number}" for number in range(100)]
WIDE = limit(1_000_000, 1.0)
TIGHT = limit(10, 1.0)
PROCESSES = 4
SHARED = limit(5_000, 1.0, burst=1_000)
Decide = Callable[[str], object]


class Server:
    """A Redis server on a Unix socket, without a disk."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed: deploy/packages.sh test")
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([program, *options, "--dir", str(directory)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            if time.monotonic() > deadline:
                raise SystemExit("redis-server did not start within 10 s")
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as directory:
        running = Server(Path(directory))
        try:
            yield running
        finally:
            running.kill()


def leased(url: str, rule: Limit) -> Decide:
    limiter = Limiter(RedisBuckets(url, f"bench {rule}"))
    return lambda key: limiter.take(key, rule)


def embedded() -> Decide:
    limiter = Limiter(None)
    return lambda key: limiter.take(key, WIDE)


def script_per_call(url: str) -> Decide:
    """The same script, one token at a time."""
    buckets = RedisBuckets(url, "bench one by one")
    return lambda key: buckets.lease(Ask(key, WIDE)).granted


def library_limits(url: str) -> Decide:
    from limits import RateLimitItemPerSecond
    from limits.storage import RedisStorage
    from limits.strategies import FixedWindowRateLimiter

    limiter = FixedWindowRateLimiter(RedisStorage(url.replace("unix://", "redis+unix://")))
    item = RateLimitItemPerSecond(1_000_000)
    return lambda key: limiter.hit(item, key)


def library_pyrate(url: str) -> Decide:
    import pyrate_limiter as pyrate
    from redis import Redis

    client = Redis.from_url(url)
    rates = [pyrate.Rate(1_000_000, pyrate.Duration.SECOND)]
    limiters = {
        key: pyrate.Limiter(pyrate.StateBucket(rates, pyrate.TokenBucket(), pyrate.RedisStateStore(client, key)))
        for key in KEYS
    }
    return lambda key: limiters[key].try_acquire(key, blocking=False)


def per_second(decide: Decide, seconds: float) -> float:
    """Decisions in one process; the clock is read once in a hundred."""
    done = 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for key in KEYS:
            decide(key)
        done += len(KEYS)
    return done / took


def speeds(options: Options) -> dict[str, float]:
    """Medians over the rounds."""
    seconds = 0.05 if options.quick else 0.7
    with server() as redis:
        candidates = {
            "leases": leased(redis.url, WIDE),
            "leases, most refused": leased(redis.url, TIGHT),
            "without Redis": embedded(),
            "script": script_per_call(redis.url),
            "limits": library_limits(redis.url),
            "pyrate-limiter": library_pyrate(redis.url),
        }
        found: dict[str, list[float]] = {name: [] for name in candidates}
        names = itertools.cycle(candidates)
        for _ in range(options.rounds):
            for name in [next(names) for _ in candidates]:
                found[name].append(per_second(candidates[name], seconds))
            next(names)
    return {name: statistics.median(rounds) for name, rounds in found.items()}


def crowd(seconds: float, *, kill: bool) -> tuple[int, float, float]:
    """So many processes on one bucket: how many passed, what the bucket held, and the longest decision in seconds."""
    context = multiprocessing.get_context("fork")
    with server() as redis:
        answers: Any = context.Queue()
        workers = [
            context.Process(target=_rush, args=(redis.url, seconds, answers), daemon=True) for _ in range(PROCESSES)
        ]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        timer = threading.Timer(seconds / 2, redis.kill)
        if kill:
            timer.start()
        found = [answers.get(timeout=60) for _ in workers]
        took = time.monotonic() - began
        for worker in workers:
            worker.join()
        timer.cancel()
    held = SHARED.burst + SHARED.per_second * took
    return sum(passed for passed, _ in found), held, max(longest for _, longest in found)


def _rush(url: str, seconds: float, answers: Any) -> None:
    limiter = Limiter(RedisBuckets(url, f"process {os.getpid()}"))
    end = time.monotonic() + seconds
    passed, longest, before = 0, 0.0, time.monotonic()
    while before < end:
        passed += limiter.take("shared", SHARED).allowed
        now = time.monotonic()
        longest, before = max(longest, now - before), now
    answers.put((passed, longest))


def _speed(what: str, ours: float, peer: str = "", theirs: float | None = None, limit: float | None = None) -> Claim:
    return Claim(
        what=what, entries=len(KEYS), ours=ours, unit="decisions/s", peer=peer, theirs=theirs, limit=limit,
        more_is_better=True,
    )  # fmt: skip


def measure(options: Options) -> list[Claim]:
    speed = speeds(options)
    ours = speed["leases"]
    seconds = 0.5 if options.quick else 4.0
    passed, held, _ = crowd(seconds, kill=False)
    passed_alone, held_alone, longest = crowd(seconds, kill=True)
    peers = {"a script per call": "script", "limits, fixed window": "limits"}
    peers |= {"pyrate-limiter, token bucket": "pyrate-limiter"}
    return [
        _speed("leases over Redis", ours, limit=400_000),
        _speed("leases, most refused", speed["leases, most refused"]),
        _speed("no Redis at all", speed["without Redis"]),
        *(_speed("leases over Redis", ours, peer, speed[name]) for peer, name in peers.items()),
        Claim(
            what=f"passed by {PROCESSES} processes on one bucket",
            entries=0,
            ours=passed,
            unit="tokens",
            peer="what the bucket held",
            theirs=held,
            limit=1.0,
        ),
        Claim(
            what=f"the same, Redis killed half-way (stated: twice, and {PROCESSES} x {BLOCK_MAX})",
            entries=0,
            ours=passed_alone,
            unit="tokens",
            peer="what the bucket held",
            theirs=held_alone,
            limit=round(2.0 + PROCESSES * BLOCK_MAX / held_alone, 3),
        ),
        Claim(what="longest decision when Redis is killed", entries=0, ours=longest * 1000, unit="ms"),
    ]


if __name__ == "__main__":
    sys.exit(script(measure, __doc__))
