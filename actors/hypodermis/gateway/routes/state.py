"""Reading the node: status, qualia, cells. Answers come from the gateway's memory and are at most a second old."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from actors.core.pages import STATUS_PARTS
from actors.hypodermis.gateway.context import TheContext, authorized

router = APIRouter(prefix="/api/tegumentar", tags=["state"])


@router.get("/status")
async def status(context: TheContext) -> dict[str, Any]:
    """The whole node on one page. A part whose cell does not answer holds a ``problem`` instead."""
    parts = await asyncio.gather(*(context.part(verb) for verb in STATUS_PARTS.values()))
    return dict(zip(STATUS_PARTS, parts, strict=True))


@router.get("/qualia")
async def qualia(context: TheContext) -> Any:
    """What the skin feels: pressure, temperature, pain, integrity, each 0 to 1."""
    return (await context.memory.read("qualia"))[0]


@router.get("/cells")
async def cells(context: TheContext) -> Any:
    return {"cells": (await context.memory.read("cells"))[0]}


@router.get("/cells/wiring")
async def wiring(context: TheContext) -> Any:
    """Who hears which message and who answers which verb."""
    return (await context.memory.read("wiring"))[0]


@router.post("/cells/{name}/restart", dependencies=[authorized])
async def restart(name: str, request: Request, context: TheContext) -> Any:
    return await context.change("cell.restart", {"name": name[:64]}, request)
