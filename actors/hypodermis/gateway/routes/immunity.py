"""What was learned, for programs: antigens, vaccines, sessions, the worst offenders."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request

from actors.hypodermis.gateway.context import TheContext, authorized
from actors.hypodermis.gateway.skin import READ_LIMIT_S

router = APIRouter(prefix="/api/tegumentar", tags=["immunity"])
Limit = Annotated[int, Query(ge=1, le=200)]


@router.get("/antigens")
async def antigens(context: TheContext, limit: Limit = 50) -> Any:
    """What this node learned, what others taught it, whom it believes, and what it refused."""
    return await context.skin.ask("antigens.list", {"limit": limit}, "gateway", READ_LIMIT_S)


@router.get("/vaccines")
async def vaccines(context: TheContext) -> Any:
    """Payloads that the kernel drops whoever sends them, and whether it has proved that."""
    return await context.skin.ask("vaccines.list", {}, "gateway", READ_LIMIT_S)


@router.delete("/vaccines/{name:path}", dependencies=[authorized])
async def release_vaccine(
    name: Annotated[str, Path(pattern="^(?:tcp|udp)/[0-9]{1,5}/[0-9a-f]{16}$")], request: Request, context: TheContext
) -> Any:
    """Let such packets pass again; the vaccine is not placed again for a day."""
    return await context.change("vaccines.release", {"names": [name]}, request)


@router.get("/sessions")
async def sessions(context: TheContext, limit: Limit = 50, by: Literal["bytes", "packets"] = "bytes") -> Any:
    """The conversations of this moment, the heaviest first."""
    return await context.skin.ask("sessions.list", {"limit": limit, "by": by}, "gateway", READ_LIMIT_S)


@router.get("/attackers")
async def attackers(context: TheContext, limit: Limit = 20, hours: Annotated[int, Query(ge=1, le=8784)] = 24) -> Any:
    """The sources that the journal names most."""
    return await context.skin.ask("memory.attackers", {"limit": limit, "hours": hours}, "gateway", READ_LIMIT_S)
