"""Token bucket: how many may pass, exactly. Pure; time is an argument.

The level is counted in tokens times nanoseconds of the period: whole numbers in which any rate, from one a day to a
billion a second, refills without rounding. The same arithmetic runs in the Lua script that Redis executes
(``redis_bucket.py``; tests/contract holds the two together) and, in its own fixed point, in the kernel program
(``bpf/budgets.h``).

Source: RFC 2697 section 3, with one rate and one bucket.
"""

from typing import NamedTuple

SECOND_NS = 1_000_000_000
TOKENS_MAX = 1_000_000_000
#: A longer period than a day belongs into a quota that survives restarts, which a bucket in memory does not.
PERIOD_MAX_S = 86_400.0


class Limit(NamedTuple):
    """``tokens`` come in per ``period_ns``; at most ``burst`` wait in the bucket. Use ``limit()`` to make one."""

    tokens: int
    period_ns: int
    burst: int

    @property
    def per_second(self) -> float:
        return self.tokens * SECOND_NS / self.period_ns

    @property
    def fill_ns(self) -> int:
        """How long an empty bucket takes to be full; one at rest for so long can be forgotten."""
        return -(-self.burst * self.period_ns // self.tokens)

    def share(self, members: int) -> "Limit":
        """One of so many equal parts: what each of them may do when they cannot ask each other.

        The rate is divided exactly (the period grows); a burst is at least one token, so ``members`` of them may have
        up to ``members`` tokens where the burst is smaller than that."""
        return Limit(self.tokens, self.period_ns * members, max(1, self.burst // members))


class Bucket(NamedTuple):
    """level: tokens left, times ``period_ns``. at_ns: the moment up to which the refill has been counted."""

    level: int
    at_ns: int


def limit(tokens: int, period_s: float = 1.0, burst: int = 0) -> Limit:
    """A checked limit; without ``burst`` the bucket holds one period's worth. Raises ValueError in words."""
    if not 1 <= tokens <= TOKENS_MAX:
        raise ValueError(f"a limit is 1 to {TOKENS_MAX} tokens, not {tokens}")
    if not 0.001 <= period_s <= PERIOD_MAX_S:
        raise ValueError(f"the period of a limit is a millisecond to a day, not {period_s:g} s")
    if not 0 <= burst <= TOKENS_MAX:
        raise ValueError(f"a burst is 1 to {TOKENS_MAX} tokens, not {burst}")
    return Limit(tokens, round(period_s * SECOND_NS), burst or tokens)


def limit_or_usual(usual: Limit, tokens: int | None, period_s: float | None, burst: int | None) -> Limit:
    """The limit of a question; what it leaves out is the usual one's, but a limit of its own has a burst of its own.
    Raises ValueError in words."""
    if tokens is None and period_s is None and burst is None:
        return usual
    return limit(tokens or usual.tokens, usual.period_ns / SECOND_NS if period_s is None else period_s, burst or 0)


def full(limit: Limit, now_ns: int) -> Bucket:
    return Bucket(limit.burst * limit.period_ns, now_ns)


def refill(bucket: Bucket, limit: Limit, now_ns: int) -> Bucket:
    """Count what has come in since; never above the burst. A clock that steps back refills nothing."""
    elapsed = now_ns - bucket.at_ns
    if elapsed <= 0:
        return bucket
    return Bucket(min(bucket.level + elapsed * limit.tokens, limit.burst * limit.period_ns), now_ns)


def take(bucket: Bucket, limit: Limit, now_ns: int, tokens: int = 1) -> tuple[Bucket, bool]:
    """Spend tokens if the bucket has them; never waits.

    now_ns: monotonic, same origin for all calls on this bucket.
    Returns the new bucket and whether the tokens were spent; more tokens than the burst are never there.
    Raises ValueError if tokens < 1. Weakness: a burst right after idle passes whole (that is what burst means), so
    one period may see up to ``burst + tokens`` of them.
    """
    if tokens < 1:
        raise ValueError(f"one can take 1 token or more, not {tokens}")
    bucket = refill(bucket, limit, now_ns)
    spent = tokens * limit.period_ns
    if bucket.level < spent:
        return bucket, False
    return Bucket(bucket.level - spent, bucket.at_ns), True


def left(bucket: Bucket, limit: Limit) -> int:
    """Whole tokens in the bucket."""
    return bucket.level // limit.period_ns


def wait_ns(bucket: Bucket, limit: Limit, tokens: int = 1) -> int:
    """How long from the bucket's moment until so many tokens are there; 0 when they are."""
    return -(-max(tokens * limit.period_ns - bucket.level, 0) // limit.tokens)
