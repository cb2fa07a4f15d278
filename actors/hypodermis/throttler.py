"""Throttler — the adaptive rate-limiting cell.

Once a second it reads how strained the host is and tightens or loosens the budgets of the kernel program, which every
source has; shapes what the node sends, where that is configured; and, where a Redis joins the nodes of a fleet, has
sources charged here for what they send there. It also answers rate-limit questions of other cells.

What it wishes it has to go on wishing: when this cell is gone for good, the budgets return to what is configured.
"""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from actors.core.asks import Deferred
from actors.core.cell import Cell, answers, receives
from actors.core.errors import Refused
from actors.core.messages import Answer, KernelCounters, SetBudgets, SpentElsewhere
from actors.hypodermis import token_bucket
from actors.hypodermis.control import ControlLoop
from actors.hypodermis.control_gauges import Gauges
from actors.hypodermis.leases import LoopLimiter
from actors.hypodermis.redis_bucket import RedisAway, open_buckets
from actors.hypodermis.throttler_fleet import SHARE, Fleet, FlowUsage
from actors.hypodermis.throttler_flows import PATIENCE_S, open_flows
from actors.hypodermis.throttler_shaping import Shaping

TICK_S = 1.0
#: How long tightened budgets hold without another word, and how often the word is repeated.
VALID_S, REPEAT_S = 30.0, 10.0
#: One late answer on a busy host is no outage.
FAILURES = 2
REFLEX = "reflex_arc"
KEY_MAX = 256
NO_REDIS = "limits hold on this node alone: no Redis is configured"


class Throttler(Cell):
    """Adapts budgets to strain and shares limits with other nodes."""

    uses_asyncio = True

    def before_drop(self) -> None:
        """As root still: the kernel's flow table, and the queues of an earlier life."""
        chosen = self.settings.throttler
        self._usage: FlowUsage | None = None
        if self.settings.redis.target() is not None:
            table = open_flows(self.settings.bpf_dir, PATIENCE_S)
            self._usage = FlowUsage(table) if table is not None else None
        self._shaping = Shaping(chosen.shape_egress_mbit, self.settings.interfaces, self.settings.state_dir)
        self._shaping.begin()

    def on_start(self) -> None:
        chosen = self.settings.throttler
        self._control = ControlLoop(chosen.floor)
        self._gauges = Gauges()
        self._kernel_packets: int | None = None
        self._told, self._told_s = 1.0, float("-inf")
        self._usual = token_bucket.limit(chosen.limit, chosen.limit_period_s, chosen.limit_burst)
        self._fleet = Fleet()
        # two connections: questions never wait behind the exchange
        self._redis = open_buckets(self.settings.redis)
        self._limiter = LoopLimiter(open_buckets(self.settings.redis))
        self._exchanging = self._restarting = False
        self._failed_in_a_row = 0
        self._redis_problem = self._redis_remedy = ""
        self.every(TICK_S, self._tick)
        self._tick()

    def on_stop(self) -> None:
        self._limiter.close()
        self._shaping.close()

    def on_peer_up(self, name: str) -> None:
        if name != REFLEX:
            return
        if self._told < 1.0:
            self._tell_budgets(self._told, time.monotonic())
        if self._redis is not None and self._usage is None and not self._restarting:
            self._restarting = True  # only a life that begins as root can open the tables that are there now
            self.ask("cell.restart", {"name": self.name}, self._restart_answered)

    def _restart_answered(self, answer: Answer) -> None:
        self._restarting = not answer.problem

    def on_peer_down(self, name: str) -> None:
        if name == REFLEX and self._kernel_packets is not None:
            self._kernel_packets = None
            self._control.other_source()

    @receives(KernelCounters)
    def on_counters(self, message: KernelCounters, source: str) -> None:
        """The kernel program sees what the interfaces' own counters may not."""
        if source != REFLEX:
            self.counters["bad_input"] += 1
            return
        if self._kernel_packets is None:
            self._control.other_source()
        self._kernel_packets = sum(message.packets.values())

    # --- once a second ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        scale = 1.0
        if self.settings.throttler.adapt:
            scale = round(self._control.step(self._gauges.read(now, self._kernel_packets)), 2)
            self.gauges["budget_scale"] = scale
        if scale != self._told or (scale < 1.0 and now - self._told_s >= REPEAT_S):
            self._tell_budgets(scale, now)
        self._shaping.keep(scale, now)
        self._exchange()
        self._show_state()

    def _tell_budgets(self, scale: float, now: float) -> None:
        if scale < self._told:
            self.counters["tightened"] += 1
        self._told, self._told_s = scale, now
        self.publish(SetBudgets(scale=scale, valid_s=VALID_S))

    # --- the fleet --------------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Tell Redis what heavy sources sent here, and hear what they sent everywhere."""
        if self._redis is None or self._exchanging:
            return
        self._exchanging = True
        reflex = self.settings.reflex
        least = {"total": reflex.total_rate * SHARE, "udp": reflex.udp_rate * SHARE}
        own = self._fleet.tell(self._usage.look(time.monotonic_ns(), least) if self._usage is not None else {})
        self.gauges["heavy_sources"] = float(len(own))
        self.call(asyncio.to_thread, self._redis.spend, own, then=lambda future: self._exchanged(own, future))

    def _exchanged(self, own: dict[str, int], future: "Future[dict[str, int]]") -> None:
        self._exchanging = False
        try:
            totals = future.result()
        except RedisAway as away:
            self.counters["redis_failures"] += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILURES:
                self._redis_problem, self._redis_remedy = str(away), away.remedy
        else:
            self._failed_in_a_row = 0
            self._redis_problem = self._redis_remedy = ""
            charges = self._fleet.charges(own, totals)
            if charges:
                self.counters["charged"] += len(charges)
                self.publish(SpentElsewhere(sources=charges))
        self._show_state()

    # --- state and verbs --------------------------------------------------------------------------------------------

    def _show_state(self) -> None:
        wrong = self.settings.problems.get("throttler", "") or self.settings.problems.get("redis", "")
        if wrong:
            self.degraded(wrong, "correct the section and restart")
        elif self._redis_problem:
            self.degraded(f"limits hold on this node alone: {self._redis_problem}", self._redis_remedy)
        elif self._shaping.problem:
            self.degraded(self._shaping.problem, self._shaping.remedy)
        elif self._redis is not None and self._usage is None:
            self.degraded(
                "heavy sources are not added up over the fleet: the kernel's flow table could not be opened",
                "make `doctor` content with XDP; this cell looks again when reflex_arc is there",
            )
        else:
            budgets = "budgets as configured" if self._told >= 1.0 else "budgets tightened under strain"
            self.healthy(f"{budgets}; {NO_REDIS if self._redis is None else 'limits are shared through Redis'}")

    @answers("throttle.status")
    def status(self, args: dict[str, Any], by: str) -> Any:
        """Scale of the budgets and why, the shaper, Redis, the fleet."""
        loop, strain = self._control, self._control.strain
        return {
            "scale": self._told,
            "why": loop.why() if self.settings.throttler.adapt else "budgets are never adapted: throttler.adapt is off",
            "rate_pps": round(loop.rate_pps, 1),
            "baseline_pps": round(loop.baseline_pps, 1),
            "surging": loop.surging,
            "strain": {name: round(getattr(strain, name), 3) for name in type(strain).__dataclass_fields__},
            "shaper": {"bits_per_s": self._shaping.rates, "problem": self._shaping.problem},
            "redis": self._redis_problem or ("answers" if self._redis is not None else "not configured"),
            "members": self._limiter.leases.members,
            "keys": len(self._limiter.leases),
            "heavy_sources": int(self.gauges.get("heavy_sources", 0)),
            "charged": self.counters["charged"],
        }

    @answers("ratelimit.take")
    def take(self, args: dict[str, Any], by: str) -> Deferred:
        """Spend ``cost`` tokens of ``key``: ``limit`` per ``per_s`` seconds with ``burst``, or the configured limit."""
        key, cost = args.get("key"), args.get("cost", 1)
        if not isinstance(key, str) or not 1 <= len(key) <= KEY_MAX:
            raise Refused(f"a rate limit needs a key of 1 to {KEY_MAX} characters")
        try:
            rule = token_bucket.limit_or_usual(
                self._usual,
                *(_number(args, name) for name in ("limit", "per_s", "burst")),  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise Refused(str(error)) from error
        if type(cost) is not int or not 1 <= cost <= rule.burst:
            raise Refused(f"a cost is 1 to {rule.burst} tokens, as many as ever wait")
        deferred = self.defer()
        self.call(self._limiter.take, key, rule, cost, then=lambda future: deferred.reply(_told(future.result())))
        return deferred


def _number(args: dict[str, Any], name: str) -> int | float | None:
    value = args.get(name)
    if value is None or (type(value) is int and value > 0) or (name == "per_s" and type(value) is float):
        return value
    raise ValueError(f"{name} must be a number above 0")


def _told(decision: Any) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "remaining": decision.remaining,
        "retry_after_s": decision.wait_ns / token_bucket.SECOND_NS,
        "shared": not decision.alone,
    }
