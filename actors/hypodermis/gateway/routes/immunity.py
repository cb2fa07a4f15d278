"""What was learned, for programs: antigens, sessions, the worst offenders."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from actors.hypodermis.gateway.context import TheContext
from actors.hypodermis.gateway.skin import READ_LIMIT_S

router = APIRouter(prefix="/api/tegumentar", tags=["immunity"])
Limit = Annotated[int, Query(ge=1, le=200)]


@router.get("/antigens")
async def antigens(context: TheContext, limit: Limit = 50) -> Any:
    """What this node learned, what others taught it, whom it believes, and what it refused."""
    return await context.skin.ask("antigens.list", {"limit": limit}, "gateway", READ_LIMIT_S)


@router.get("/sessions")
async def sessions(context: TheContext, limit: Limit = 50, by: Literal["bytes", "packets"] = "bytes") -> Any:
    """The conversations of this moment, the heaviest first."""
    return await context.skin.ask("sessions.list", {"limit": limit, "by": by}, "gateway", READ_LIMIT_S)


@router.get("/attackers")
async def attackers(context: TheContext, limit: Limit = 20, hours: Annotated[int, Query(ge=1, le=8784)] = 24) -> Any:
    """The sources that the journal names most."""
    return await context.skin.ask("memory.attackers", {"limit": limit, "hours": hours}, "gateway", READ_LIMIT_S)
