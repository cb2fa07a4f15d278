"""Redis buckets: one token bucket for many processes and nodes. The only file that knows the Redis client.

Every call is one round trip of one script, timed by the server's own clock, so that nodes whose clocks differ agree.
A call ends within the time limit or raises ``RedisAway``; after a failure the breaker answers in Redis' place, at
once, and lets one call through when ``retry_s`` has passed: half a second first, doubling to five.
Scripts are loaded when the server does not know them (it forgets them when it restarts).

``Buckets`` is the Protocol; tests/contract holds this one and the fake in tests/support to the same promises.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from actors.core.errors import Unavailable
from actors.hypodermis.token_bucket import Limit

TIMEOUT_S = 0.08
RETRY_FIRST_S, RETRY_CAP_S = 0.5, 5.0
#: A process that has asked for nothing for so long is no member any more.
MEMBER_S = 30
ATTEND_EVERY_S = 1.0
#: A heavy source is forgotten when no node has spoken of it for so long.
HEAVY_S = 15
PREFIX = "tegumentar:"
REMEDY = "check that Redis runs and that the [redis] settings are right; limits hold for each process alone meanwhile"


class Ask(NamedTuple):
    """A wish for tokens. cost: how many are needed at least; want: how many would be useful; unused: tokens of the
    last block that were not spent, which go back into the bucket."""

    key: str
    limit: Limit
    cost: int = 1
    want: int = 1
    unused: int = 0


class Grant(NamedTuple):
    """granted: 0, or at least the cost. remaining: whole tokens left for everybody. wait_ns: until the cost is there.
    members: processes that take part, this one included."""

    granted: int
    remaining: int
    wait_ns: int
    members: int


class RedisAway(Unavailable):
    """No answer from Redis. ``retry_s``: when to ask again."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message, remedy=REMEDY)
        self.retry_s = retry_s


class Buckets(Protocol):
    """Buckets shared with others. Raises RedisAway and nothing else. One object belongs to one thread."""

    def lease(self, ask: Ask) -> Grant:
        """Take a block of tokens. Near the limit blocks get shorter: never more than half of what is left, divided
        among the members, but always the cost when that is there."""
        ...

    def spend(self, packets: Mapping[str, int]) -> dict[str, int]:
        """Add to the fleet-wide totals of heavy sources and read them. A total that nobody feeds is forgotten.

        With nothing to add it still finds out whether Redis answers."""
        ...

    def close(self) -> None: ...


#: KEYS: bucket. ARGV: tokens, period (us), burst, cost, want, unused, members.
#: The bucket is text, "level at": tokens times period, and server time in us; absent means full.
_LEASE = """
local tokens, period, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local cost, want = tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full = burst * period
local level, at = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
level = math.min(full, tonumber(level or full) + math.max(0, now - (at or now)) * tokens + ARGV[6] * period)
local have = math.floor(level / period)
local granted = 0
if have >= cost then
    granted = math.max(cost, math.min(want, math.floor(have / (2 * ARGV[7]))))
    level = level - granted * period
end
local rest = string.format('%.0f %.0f', level, now)
redis.call('SET', KEYS[1], rest, 'PX', string.format('%.0f', math.ceil((full - level) / tokens / 1000) + 1))
local wait = math.max(0, math.ceil((cost * period - level) / tokens))
return {granted, math.floor(level / period), granted > 0 and 0 or wait}
"""

#: KEYS: members. ARGV: this member, seconds that a member is remembered.
_ATTEND = """
local now = redis.call('TIME')[1]
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[2] * 2)
return redis.call('ZCARD', KEYS[1])
"""

#: KEYS: totals. ARGV: seconds that a total is remembered, then what to add to each.
_SPEND = """
local totals = {}
for i, key in ipairs(KEYS) do
    totals[i] = redis.call('INCRBY', key, ARGV[i + 1])
    redis.call('EXPIRE', key, ARGV[1])
end
return totals
"""


def open_buckets(redis: Any) -> "RedisBuckets | None":
    """The shared buckets that the settings section ``redis`` names; None when it names no server."""
    target = redis.target()
    if target is None:
        return None
    return RedisBuckets(target.url(), f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}")


class RedisBuckets:
    """The real ones. ``member``: a name for this process that no other has."""

    def __init__(self, url: str, member: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Contacts nothing, and loads the client (10 MB), only when the first call comes."""
        self._url, self._member, self._clock = url, member, clock
        self._client: Any = None
        self._errors: tuple[type[Exception], ...] = ()
        self._scripts: dict[str, Any] = {}
        self.members = 1
        self._attended_s = float("-inf")
        self._open_until_s = float("-inf")
        self._pause_s = 0.0
        self._cause = ""

    def lease(self, ask: Ask) -> Grant:
        limit = ask.limit
        period_us = max(1, limit.period_ns // 1000)
        key = f"{PREFIX}limit:{limit.tokens}/{period_us}/{limit.burst}:{ask.key}"
        self._be_counted()
        arguments = [limit.tokens, period_us, limit.burst, ask.cost, ask.want, ask.unused, self.members]
        granted, remaining, wait_us = self._run(_LEASE, [key], arguments)
        return Grant(granted, remaining, wait_us * 1000, self.members)

    def spend(self, packets: Mapping[str, int]) -> dict[str, int]:
        names = list(packets)
        keys = [f"{PREFIX}heavy:{name}" for name in names]
        totals = self._run(_SPEND, keys, [HEAVY_S, *packets.values()])
        return dict(zip(names, totals, strict=True))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _be_counted(self) -> None:
        """Say now and then that this process takes part, and hear how many do."""
        now = self._clock()
        if now - self._attended_s >= ATTEND_EVERY_S:
            self.members = max(1, int(self._run(_ATTEND, [f"{PREFIX}members"], [self._member, MEMBER_S])))
            self._attended_s = now

    def _load(self) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise RedisAway("the Redis client is not installed (pip install 'tegumentar[redis]')", 3600.0) from error
        self._errors = (redis.RedisError, OSError)
        self._client = redis.Redis.from_url(
            self._url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            max_connections=1,
            decode_responses=True,
        )
        self._scripts = {text: self._client.register_script(text) for text in (_LEASE, _ATTEND, _SPEND)}

    def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        """One script, behind the breaker."""
        now = self._clock()
        if now < self._open_until_s:
            raise RedisAway(self._cause, self._open_until_s - now)
        if self._client is None:
            self._load()
        try:
            answer = self._scripts[script](keys=keys, args=arguments)
        except self._errors as error:
            self._pause_s = min(max(2 * self._pause_s, RETRY_FIRST_S), RETRY_CAP_S)
            self._open_until_s = self._clock() + self._pause_s
            self._cause = f"Redis does not answer: {str(error)[:200]}"
            raise RedisAway(self._cause, self._pause_s) from error
        self._pause_s = 0.0
        return answer
