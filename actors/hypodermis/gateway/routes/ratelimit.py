"""Rate limits for applications: one question, one decision, made in this process from leased tokens.

No question costs a message to another cell, and most cost no round trip to Redis either (``leases.py``). The answers
carry the ``RateLimit`` and ``RateLimit-Policy`` fields of the IETF draft and, when refused, ``Retry-After``.

nginx asks with ``auth_request``, which understands 2xx and 403 only; docs/RATELIMIT.md has the lines for its settings.
"""

import math
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import AliasChoices, Field

from actors.hypodermis import token_bucket
from actors.hypodermis.gateway.context import Context, TheContext, client, near_or_authorized
from actors.hypodermis.gateway.forms import Duration, Form
from actors.hypodermis.gateway.problem import MEDIA_TYPE, Problem, document
from actors.hypodermis.leases import Decision
from actors.hypodermis.token_bucket import Limit

router = APIRouter(prefix="/api/tegumentar", tags=["rate limit"], dependencies=[Depends(near_or_authorized)])

Key = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Tokens = Annotated[int, Field(ge=1, le=token_bucket.TOKENS_MAX)]
Period = Annotated[Duration, Field(ge=0.001, le=token_bucket.PERIOD_MAX_S)]


class RateLimitForm(Form):
    """``cost`` tokens of ``key``. ``limit`` tokens come in per ``per`` (seconds, or ``1m``), ``burst`` may wait; what
    is not given comes from the node's settings. The same key under another limit is another bucket."""

    key: Key
    limit: Tokens | None = None
    per_s: Annotated[Period | None, Field(validation_alias=AliasChoices("per", "per_s", "window", "window_s"))] = None
    burst: Tokens | None = None
    cost: Tokens = 1


@router.post("/ratelimit", responses={429: {"description": "Over the limit"}})
async def take(form: RateLimitForm, context: TheContext) -> Response:
    """Spend tokens: 200 when they were there, 429 when not. Nothing is spent then."""
    rule = _rule(context, form.limit, form.per_s, form.burst, form.cost)
    decision = await context.limiter.take(form.key, rule, form.cost)
    body: dict[str, Any] = {
        "allowed": decision.allowed,
        "remaining": decision.remaining,
        "retry_after_s": round(decision.wait_ns / 1e9, 3),
        "shared": not decision.alone,
    }
    if decision.allowed:
        return Response(orjson.dumps(body), headers=_fields(rule, decision), media_type="application/json")
    said = document(429, f"{form.key} has used up its limit", **body)
    return Response(orjson.dumps(said | body), 429, headers=_fields(rule, decision), media_type=MEDIA_TYPE)


@router.get("/ratelimit", include_in_schema=False)
@router.get("/ratelimit/auth", status_code=204, responses={403: {"description": "Over the limit"}})
async def auth(
    request: Request,
    context: TheContext,
    key: Annotated[Key | None, Query()] = None,
    limit: Annotated[Tokens | None, Query()] = None,
    per: Annotated[Period | None, Query()] = None,
    burst: Annotated[Tokens | None, Query()] = None,
    cost: Annotated[Tokens, Query()] = 1,
    x_real_ip: Annotated[Key | None, Header()] = None,
) -> Response:
    """For nginx' ``auth_request``: 204 to allow, 403 to deny. Without ``key`` the client in ``X-Real-IP`` counts."""
    rule = _rule(context, limit, per, burst, cost)
    decision = await context.limiter.take(key or x_real_ip or client(request), rule, cost)
    return Response(status_code=204 if decision.allowed else 403, headers=_fields(rule, decision))


def _rule(context: Context, tokens: int | None, per_s: float | None, burst: int | None, cost: int) -> Limit:
    rule = token_bucket.limit_or_usual(context.limit, tokens, per_s, burst)
    if cost > rule.burst:
        raise Problem(
            422,
            f"a cost of {cost} can never be paid: at most {rule.burst} tokens wait",
            remedy="ask for less at once, or give a larger burst",
        )
    return rule


def _fields(rule: Limit, decision: Decision) -> dict[str, str]:
    """Seconds are rounded up: who comes back then is not too early."""
    wait_s = math.ceil(decision.wait_ns / 1e9)
    window_s = max(1, math.ceil(rule.period_ns / 1e9))
    fields = {
        "RateLimit-Policy": f'"default";q={rule.tokens};w={window_s}',
        "RateLimit": f'"default";r={decision.remaining if decision.allowed else 0};t={wait_s or window_s}',
        "Cache-Control": "no-store",
    }
    return fields if decision.allowed else fields | {"Retry-After": str(max(1, wait_s))}
