"""Blocks and tolerance: list, add, remove, explain. Policy decides about every change, not the gateway."""

import ipaddress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from actors.hypodermis.gateway.context import TheContext, authorized, client
from actors.hypodermis.gateway.forms import BlockForm, Subject, SubjectsForm, TolerateForm
from actors.hypodermis.gateway.problem import Problem
from actors.hypodermis.gateway.skin import READ_LIMIT_S

router = APIRouter(prefix="/api/tegumentar", tags=["blocks"])


@router.get("/blocks")
async def blocks(
    context: TheContext,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    after: Annotated[str, Query(max_length=60)] = "",
) -> Any:
    """A page of the blocks in force; ``after`` is the last subject of the page before."""
    return await context.skin.ask("blocks.list", {"limit": limit, "after": after}, "gateway", READ_LIMIT_S)


@router.post("/blocks", dependencies=[authorized])
async def block(form: BlockForm, request: Request, context: TheContext) -> Any:
    _spare_the_client(form.subjects, client(request))
    return await context.change("block", form.model_dump(exclude_none=True), request)


@router.delete("/blocks", dependencies=[authorized])
async def release(form: SubjectsForm, request: Request, context: TheContext) -> Any:
    return await context.change("release", form.model_dump(), request)


@router.delete("/blocks/{subject:path}", dependencies=[authorized])
async def release_one(subject: Subject, request: Request, context: TheContext) -> Any:
    return await context.change("release", {"subjects": [subject]}, request)


@router.get("/explain")
async def explain(context: TheContext, address: Annotated[Subject, Query()]) -> Any:
    """Why an address is blocked, or why it is not."""
    return await context.skin.ask("why", {"address": address}, "gateway", READ_LIMIT_S)


@router.get("/tolerance")
async def tolerance(context: TheContext) -> Any:
    return (await context.memory.read("tolerance.list"))[0]


@router.post("/tolerance", dependencies=[authorized])
async def tolerate(form: TolerateForm, request: Request, context: TheContext) -> Any:
    return await context.change("tolerate", form.model_dump(exclude_none=True), request)


@router.delete("/tolerance", dependencies=[authorized])
async def tolerate_no_more(form: SubjectsForm, request: Request, context: TheContext) -> Any:
    return await context.change("tolerate", form.model_dump() | {"remove": True}, request)


def _spare_the_client(subjects: list[str], address: str) -> None:
    """Nobody blocks the very address the wish comes from: the next one could not be sent."""
    try:
        asking = ipaddress.ip_address(address)
    except ValueError:
        return
    for subject in subjects:
        if asking in ipaddress.ip_network(subject):
            raise Problem(409, f"{subject} holds the address this request comes from, {asking}; nothing was blocked")
