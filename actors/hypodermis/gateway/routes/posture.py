"""The posture of the node, and the healing that the higher control system asks for."""

from typing import Any

from fastapi import APIRouter, Request

from actors.hypodermis.gateway.context import TheContext, authorized
from actors.hypodermis.gateway.forms import PostureForm
from actors.hypodermis.gateway.problem import Problem

router = APIRouter(prefix="/api/tegumentar", tags=["posture"])


@router.get("/posture")
async def get(context: TheContext) -> Any:
    return (await context.memory.read("posture.get"))[0]


@router.post("/posture", dependencies=[authorized])
async def set_posture(form: PostureForm, request: Request, context: TheContext) -> Any:
    return await context.change("posture.set", form.model_dump(exclude_none=True, mode="json"), request)


@router.post("/posture/confirm", dependencies=[authorized])
async def confirm(request: Request, context: TheContext) -> Any:
    return await context.change("posture.confirm", {}, request)


@router.post("/wound-healing", dependencies=[authorized])
async def wound_healing() -> None:
    """Starts a playbook on a node that has the healing cell."""
    raise Problem(
        501,
        "this node has no healing cell yet, so no playbook was started",
        remedy="use the posture and the blocks of this interface until then",
    )
