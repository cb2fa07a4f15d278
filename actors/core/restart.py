"""Restart policy: when a dead cell is started again. Pure: time and chance are arguments.

A cell that dies after a healthy life comes back at once; the next deaths wait 0.1 s doubling to 30 s, with jitter so
that several do not come back in step. A stable minute forgets the past. More than five failures in a minute turn the
cell ``degraded``: it is tried for ever, but slowly; a critical one may give up on the whole node instead.
Compared with OTP's restart intensity and Pekko's backoff supervision; the source of the idea is both.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

#: A cell that gave up is tried again once a minute, give or take a quarter.
SLOW_RETRY_S = 60.0
_SLOW_JITTER = 0.25
#: Slow retries of a critical cell, one after another, before the supervisor gives up on the node.
CRITICAL_RETRIES = 3


@dataclass(frozen=True)
class Policy:
    """Seconds, and failures per window."""

    backoff_first_s: float = 0.1
    backoff_cap_s: float = 30.0
    stable_s: float = 60.0
    failures_max: int = 5
    failures_window_s: float = 60.0


def policy_of(rules: Any) -> Policy:
    """What ``settings.supervisor`` asks for."""
    return Policy(**{each.name: getattr(rules, each.name) for each in fields(Policy)})


@dataclass(frozen=True)
class History:
    """What the policy remembers of one cell. failures: times of those inside the window."""

    failures: tuple[float, ...] = ()
    attempts: int = 0
    slow_retries: int = 0


@dataclass(frozen=True)
class Decision:
    """Start again after ``delay_s``. degraded: too many failures. escalate: a critical cell is beyond hope."""

    delay_s: float
    degraded: bool = False
    escalate: bool = False


def after_failure(
    history: History, policy: Policy, now: float, *, lived_s: float, critical: bool, chance: float
) -> tuple[History, Decision]:
    """What to do about a cell that has just died.

    now: monotonic seconds. lived_s: from its hello to its death, 0 when it never said hello. chance: uniform in [0, 1).
    Returns the history to keep and the decision."""
    if lived_s >= policy.stable_s:
        history = History()
    failures = (*(at for at in history.failures if now - at < policy.failures_window_s), now)
    if len(failures) > policy.failures_max or history.slow_retries:
        slow = history.slow_retries + 1
        # Only the newest failures are kept: one more death within the window is slow again, a stable life is not.
        kept = replace(history, failures=failures[-policy.failures_max :], attempts=0, slow_retries=slow)
        delay = SLOW_RETRY_S * (1 - _SLOW_JITTER + 2 * _SLOW_JITTER * chance)
        return kept, Decision(delay, degraded=True, escalate=critical and slow > CRITICAL_RETRIES)
    if history.attempts == 0 and lived_s > 0:
        delay = 0.0
    else:
        doublings = min(history.attempts - (1 if lived_s > 0 else 0), 30)
        delay = min(policy.backoff_cap_s, policy.backoff_first_s * 2 ** max(0, doublings)) * (0.5 + chance / 2)
    return replace(history, failures=failures, attempts=history.attempts + 1), Decision(delay)
