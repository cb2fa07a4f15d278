"""Probes and metrics: the conventional paths, ready as soon as enforcement stands, whatever else is degraded."""

from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse

from actors.core.errors import TegumentarError
from actors.hypodermis.gateway.context import Context, TheContext
from actors.hypodermis.gateway.problem import Problem
from actors.hypodermis.gateway.skin import stands

router = APIRouter(tags=["health"])

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/livez", response_class=PlainTextResponse)
async def livez() -> str:
    """The gateway runs. Says nothing about anything else, so that a probe never restarts a node that protects."""
    return "ok\n"


@router.get("/readyz", response_class=PlainTextResponse)
@router.get("/healthz", response_class=PlainTextResponse, include_in_schema=False)
@router.get("/health", response_class=PlainTextResponse, include_in_schema=False)
async def readyz(context: TheContext, verbose: str | None = Query(None)) -> str:
    """Enforcement stands. With ``?verbose`` one line for each cell."""
    enforced, reason = await _enforcement(context)
    if not enforced:
        raise Problem(503, f"enforcement does not stand: {reason}", headers={"Retry-After": "1"})
    if verbose is None or verbose.lower() in {"0", "false", "no"}:
        return "ok\n"
    try:
        lines = [_line(cell) for cell in await _cells(context)]
    except TegumentarError:
        lines = ["[-]basal_layer does not answer\n"]
    return f"[+]enforcement {reason}\n{''.join(lines)}readyz check passed\n"


@router.get("/metrics", response_class=Response)
async def metrics(context: TheContext) -> Response:
    """Prometheus text. Kernel counters are read from the kernel at this moment."""
    return Response(context.skin.metrics(), media_type=METRICS_TYPE)


async def _enforcement(context: Context) -> tuple[bool, str]:
    """From what the supervisor knows of the enforcing cells; while it is away, from what they told this cell last."""
    try:
        cells = await _cells(context)
    except TegumentarError:
        return context.skin.enforcing()
    return stands({str(cell.get("name")): str(cell.get("state")) for cell in cells})


async def _cells(context: Context) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await context.memory.read("cells"))[0]
    return found


def _line(cell: dict[str, Any]) -> str:
    well = cell.get("state") in {"healthy", "off"}
    reason = f" ({cell['reason']})" if cell.get("reason") else ""
    return f"[{'+' if well else '-'}]{cell.get('name')} {cell.get('state')}{reason}\n"
