"""What every route gets from the application: the node, its memory, its events, and the check of the token."""

import ipaddress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from actors.core.errors import TegumentarError
from actors.hypodermis.gateway import token as bearer
from actors.hypodermis.gateway.problem import Problem, document, from_error
from actors.hypodermis.gateway.skin import CHANGE_LIMIT_S, Events, Memory, Skin
from actors.hypodermis.leases import LoopLimiter
from actors.hypodermis.token_bucket import Limit, limit


@dataclass
class Context:
    skin: Skin
    token: str
    memory: Memory = field(init=False)
    events: Events = field(default_factory=Events)
    limiter: LoopLimiter = field(default_factory=LoopLimiter)
    limit: Limit = field(default_factory=lambda: limit(100))  #: for questions that name none

    def __post_init__(self) -> None:
        self.memory = Memory(self.skin)

    async def part(self, verb: str) -> Any:
        """A reading verb's answer for a page of several parts: a part that is missing says so and spoils no other."""
        try:
            value, age = await self.memory.read(verb)
        except TegumentarError as error:
            problem = from_error(error)
            return {"problem": document(problem.status, problem.detail, problem.remedy)}
        return value if not age or not isinstance(value, dict) else value | {"age_s": round(age, 1)}

    async def change(self, verb: str, args: dict[str, Any], request: Request) -> Any:
        """Ask for a change in the name of the client. Raises what the cell answers."""
        return await self.skin.ask(verb, args, f"http {client(request)}", CHANGE_LIMIT_S)


#: The kernel tells no address of a peer on a socket file; file permissions have let it in.
LOCAL = "local"


def client(request: Request) -> str:
    return request.client.host if request.client else LOCAL


def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def _authorized(request: Request) -> None:
    """Refuse a request without the token. A cookie is never looked at, so no browser can be made to carry it."""
    if not _context(request).token:
        raise Problem(
            503,
            "the token that guards changes could not be read or made at the start, so nothing is changed over HTTP",
            remedy="see the gateway in `python run.py cells`; the command line changes things all the same",
        )
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not bearer.matches(presented.strip(), _context(request).token):
        raise Problem(
            401,
            "this changes something and needs the bearer token",
            remedy="send 'Authorization: Bearer ...' with the content of gateway.token in the state directory",
            headers={"WWW-Authenticate": 'Bearer realm="tegumentar"'},
        )


def near_or_authorized(request: Request) -> None:
    """Programs of this host need no token; others do."""
    try:
        address = ipaddress.ip_address(client(request))
        near = (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        near = request.client is None
    if not near:
        _authorized(request)


TheContext = Annotated[Context, Depends(_context)]
authorized = Depends(_authorized)
