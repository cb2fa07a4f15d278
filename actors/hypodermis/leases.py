"""Leases: rate-limit decisions from blocks of tokens that were taken from the shared bucket beforehand.

A decision costs no round trip while the block lasts. Blocks hold 10 to 100 tokens, as many as the key uses up within
a lease; near the limit Redis grants shorter ones. What is left of a block after ``LEASE_NS`` goes back.

How far more may pass than the limit says:
- With Redis, tokens leave the shared bucket before they are spent, so since the bucket began never more than
  ``burst + rate x time``. Any later window may see up to 100 tokens more per process: blocks leased just before it.
- Without Redis each process gives its share, the limit divided by the members it last knew. Together that is once more
  ``burst + rate x time`` for the time of the outage (at least a token for each process), besides the blocks they held.
  A process that never reached Redis knows of nobody: it applies the whole limit alone.

``Leases`` decides and does no input or output; ``Limiter`` and ``LoopLimiter`` ask Redis when it says so.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from actors.hypodermis import token_bucket
from actors.hypodermis.redis_bucket import Ask, Buckets, Grant, RedisAway
from actors.hypodermis.token_bucket import Bucket, Limit

BLOCK_MIN, BLOCK_MAX = 10, 100
LEASE_NS = token_bucket.SECOND_NS
#: A refusal is repeated without asking again at most so long: others may have given tokens back.
REFUSAL_NS = token_bucket.SECOND_NS
#: About 30 MB. Beyond it the keys at rest go first, then the oldest.
KEYS_MAX = 65_536


class Decision(NamedTuple):
    """remaining: whole tokens left, an estimate where others share the bucket. wait_ns: until it is worth asking again.
    alone: decided without the others, because Redis is not configured or does not answer."""

    allowed: bool
    remaining: int
    wait_ns: int
    alone: bool


class _Slot:
    """What this process knows of one key."""

    __slots__ = ("block", "bucket", "ends_ns", "refused_cost", "refused_until_ns", "remaining", "want")

    def __init__(self) -> None:
        self.block = 0  #: leased tokens not yet spent
        self.ends_ns = 0  #: until when the block may be spent
        self.want = BLOCK_MIN
        self.remaining = 0
        self.refused_until_ns = 0
        self.refused_cost = 0
        self.bucket: Bucket | None = None  #: while Redis is away


class Leases:
    """Decides from memory. ``shared`` False: there is no Redis, every bucket is this process's own."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.members = 1
        self._slots: dict[tuple[str, Limit], _Slot] = {}
        self._away_until_ns = 0
        self._trying = False

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def alone(self) -> bool:
        return not self.shared or self._away_until_ns > 0

    def decide(self, key: str, limit: Limit, now_ns: int, cost: int = 1) -> Decision | None:
        """The decision, or None: ask the shared bucket (``ask``), tell what came of it, and decide again."""
        slot = self._slots.get((key, limit))
        if slot is None:
            slot = self._new(key, limit, now_ns)
        if now_ns < slot.ends_ns and slot.block >= cost:
            slot.block -= cost
            return Decision(True, slot.block + slot.remaining, 0, False)
        if now_ns < slot.refused_until_ns and cost >= slot.refused_cost:
            return Decision(False, slot.block, slot.refused_until_ns - now_ns, False)
        if self.shared and (not self._away_until_ns or (now_ns >= self._away_until_ns and not self._trying)):
            return None
        return self._decide_alone(slot, limit, now_ns, cost)

    def ask(self, key: str, limit: Limit, now_ns: int, cost: int = 1) -> Ask:
        """What to ask for after ``decide`` said None. A block that was used up quickly is followed by a larger one."""
        slot = self._slots[key, limit]
        in_time = now_ns < slot.ends_ns
        if in_time and slot.block < slot.want // 2:
            slot.want = min(2 * slot.want, BLOCK_MAX)
        elif not in_time and 2 * slot.block > slot.want:
            slot.want = max(slot.want // 2, BLOCK_MIN)
        unused, slot.block = slot.block, 0
        self._trying = True
        return Ask(key, limit, cost, max(slot.want, cost), unused)

    def granted(self, ask: Ask, grant: Grant, now_ns: int) -> None:
        """Redis answered."""
        self._trying = False
        self._away_until_ns = 0
        self.members = grant.members
        slot = self._slots.setdefault((ask.key, ask.limit), _Slot())
        slot.bucket = None
        slot.remaining = grant.remaining
        if grant.granted:
            slot.block += grant.granted
            slot.ends_ns = now_ns + LEASE_NS
            slot.refused_until_ns = 0
        else:
            slot.refused_until_ns = now_ns + max(1, min(grant.wait_ns, REFUSAL_NS))
            slot.refused_cost = ask.cost

    def lost(self, retry_s: float, now_ns: int) -> None:
        """Redis did not answer: decide alone until then. The unused tokens of the last ask are lost with it."""
        self._trying = False
        self._away_until_ns = now_ns + max(1, int(retry_s * token_bucket.SECOND_NS))

    def _decide_alone(self, slot: _Slot, limit: Limit, now_ns: int, cost: int) -> Decision:
        share = limit.share(self.members)
        bucket = slot.bucket or token_bucket.full(share, now_ns)
        slot.bucket, allowed = token_bucket.take(bucket, share, now_ns, cost)
        wait_ns = 0 if allowed else token_bucket.wait_ns(slot.bucket, share, cost)
        return Decision(allowed, token_bucket.left(slot.bucket, share), wait_ns, True)

    def _new(self, key: str, limit: Limit, now_ns: int) -> _Slot:
        if len(self._slots) >= KEYS_MAX:
            self._make_room(now_ns)
        slot = self._slots[key, limit] = _Slot()
        return slot

    def _make_room(self, now_ns: int) -> None:
        """Forget what is as good as new; of the rest the oldest eighth. Their tokens refill in Redis."""
        self._slots = {name: slot for name, slot in self._slots.items() if not self._at_rest(name[1], slot, now_ns)}
        for name in list(self._slots)[: max(0, len(self._slots) - KEYS_MAX * 7 // 8)]:
            del self._slots[name]

    @staticmethod
    def _at_rest(limit: Limit, slot: _Slot, now_ns: int) -> bool:
        if slot.bucket is not None and now_ns - slot.bucket.at_ns < limit.fill_ns:
            return False
        return now_ns >= slot.ends_ns and now_ns >= slot.refused_until_ns


class Limiter:
    """Decisions for one thread. A call returns within the time limit of Redis, and mostly within a microsecond."""

    def __init__(self, buckets: Buckets | None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.leases = Leases(shared=buckets is not None)
        self._buckets = buckets
        self._clock = clock

    def take(self, key: str, limit: Limit, cost: int = 1) -> Decision:
        """Whether ``cost`` tokens of ``key`` may be spent now; they are spent then. Never raises for Redis' sake."""
        now_ns = self._clock()
        decision = self.leases.decide(key, limit, now_ns, cost)
        while decision is None:
            ask = self.leases.ask(key, limit, now_ns, cost)
            assert self._buckets is not None
            try:
                self.leases.granted(ask, self._buckets.lease(ask), now_ns)
            except RedisAway as away:
                self.leases.lost(away.retry_s, now_ns)
            decision = self.leases.decide(key, limit, now_ns, cost)
        return decision


class LoopLimiter:
    """Decisions in an asyncio loop: Redis is asked in one thread beside it, once at a time for each key."""

    def __init__(self, buckets: Buckets | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.leases = Leases(shared=buckets is not None)
        self._buckets = buckets
        self._clock = clock
        self._asking: dict[tuple[str, Limit], asyncio.Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, "redis") if buckets is not None else None

    async def take(self, key: str, limit: Limit, cost: int = 1) -> Decision:
        """As ``Limiter.take``."""
        while (decision := self.leases.decide(key, limit, self._clock(), cost)) is None:
            name = (key, limit)
            if name not in self._asking:
                task = asyncio.ensure_future(self._lease(key, limit, cost))
                self._asking[name] = task
                task.add_done_callback(lambda _, name=name: self._asking.pop(name, None))  # type: ignore[misc]
            await asyncio.shield(self._asking[name])
        return decision

    async def _lease(self, key: str, limit: Limit, cost: int) -> None:
        ask = self.leases.ask(key, limit, self._clock(), cost)
        assert self._buckets is not None
        try:
            grant = await asyncio.get_running_loop().run_in_executor(self._thread, self._buckets.lease, ask)
        except RedisAway as away:
            self.leases.lost(away.retry_s, self._clock())
        else:
            self.leases.granted(ask, grant, self._clock())

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
