"""What happens, as it happens: a stream of server-sent events, resumed with ``Last-Event-ID``."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from actors.hypodermis.gateway.context import TheContext
from actors.hypodermis.gateway.problem import Problem

router = APIRouter(prefix="/api/tegumentar", tags=["events"])

RETRY_MS = 3000


def _room(context: TheContext) -> None:
    if context.events.full:
        raise Problem(503, "as many readers as are allowed follow the events already", headers={"Retry-After": "10"})


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_room)])
async def events(
    context: TheContext, last_event_id: Annotated[str | None, Header(max_length=20)] = None
) -> AsyncIterator[ServerSentEvent]:
    """Cell states, postures, bans, reflexes and qualia. The first event is a greeting: the reader knows it is on."""
    after = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else None
    yield ServerSentEvent(event="hello", data={"resumed": after is not None}, retry=RETRY_MS)
    async for number, kind, body in context.events.follow(after):
        yield ServerSentEvent(id=str(number), event=kind, data=body)
        await asyncio.sleep(0)
