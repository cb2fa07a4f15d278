"""Errors over HTTP: every one is an ``application/problem+json`` document (RFC 9457) with a sentence and a remedy."""

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from actors.core.errors import NotFound, Refused, TegumentarError, Unavailable

MEDIA_TYPE = "application/problem+json"
#: How many faults of one request body are told; more only help somebody who probes.
MAX_FAULTS = 10


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it a problem
    """What a route raises to answer with an error. ``detail`` and ``remedy`` are sentences for people."""

    def __init__(self, status: int, detail: str, *, remedy: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.remedy = remedy
        self.headers = headers or {}


def document(status: int, detail: str, remedy: str = "", **more: Any) -> dict[str, Any]:
    """The body of a problem. ``more`` adds members such as ``faults``; empty ones are left out."""
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return body | {key: value for key, value in {"detail": detail, "remedy": remedy, **more}.items() if value}


def response(problem: Problem, **more: Any) -> Response:
    body = document(problem.status, problem.detail, problem.remedy, **more)
    return Response(orjson.dumps(body), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def from_error(error: TegumentarError) -> Problem:
    """The answer of a cell that declined or could not be reached, in HTTP's words."""
    if isinstance(error, NotFound):
        return Problem(404, str(error), remedy=error.remedy)
    if isinstance(error, Refused):
        return Problem(409, str(error), remedy=error.remedy)
    if isinstance(error, Unavailable):
        return Problem(503, str(error), remedy=error.remedy, headers={"Retry-After": "1"})
    return Problem(500, str(error), remedy=error.remedy)


def install(app: FastAPI) -> None:
    """Answer every kind of failure as a problem: ours, the framework's, a bad body, a defect."""

    async def on_problem(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, Problem)
        return response(exc)

    async def on_error(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, TegumentarError)
        return response(from_error(exc))

    async def on_http(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        detail = {404: "there is nothing at this path", 405: "this path does not know this method"}
        said = detail.get(exc.status_code, str(exc.detail))
        return response(Problem(exc.status_code, said, headers=dict(exc.headers or {})))

    async def on_invalid(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        faults = [
            {"at": ".".join(str(part) for part in error["loc"])[:200], "reason": str(error["msg"])[:200]}
            for error in exc.errors()[:MAX_FAULTS]
        ]
        return response(Problem(422, "the request does not have the form that this path expects"), faults=faults)

    async def on_defect(_: Request, exc: Exception) -> Response:
        return response(Problem(500, "the gateway failed on this request; the cause is in its log"))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(TegumentarError, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_defect)
