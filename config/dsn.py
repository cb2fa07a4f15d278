"""Addresses of PostgreSQL and Redis as people write them, brought into one safe form.

A password pasted raw into a URL may hold ``/``, ``=``, ``+``, ``@``, ``:`` or ``#``; every usual URL parser then
reads a wrong host or fails with ``invalid literal for int()``. Here the authority ends at the *last* ``@`` that is
followed by something that looks like ``host[:port][/name][?options]``, so a raw password is understood. ``%`` starts
an escape only where the whole password is well escaped (``p%40ss``); otherwise it stands for itself (``50%off``).

Pure functions: text in, ``Target`` out, ``DsnError`` with a sentence (never with the password) for everything else.
"""

import re
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode

POSTGRES_SCHEMES = ("postgres", "postgresql", "postgresql+asyncpg", "postgres+asyncpg")
REDIS_SCHEMES = ("redis", "rediss", "unix")
#: Longer than any real address; keeps hostile text away from the regular expressions.
MAX_LENGTH = 4096

_SERVER = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s@/:?\[\]#]*)(?::(?P<port>\d{1,5}))?(?:/(?P<name>[^?/@]*))?(?:\?(?P<options>[^@]*))?",
    re.ASCII,
)
_ESCAPED = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*", re.ASCII | re.DOTALL)


class DsnError(ValueError):
    """This text is no address of that server. The sentence holds no secret."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a server is and who asks. ``host`` is empty for a Unix socket, whose path is then in ``socket``."""

    scheme: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    name: str = ""  #: database name (PostgreSQL) or number (Redis)
    socket: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def url(self) -> str:
        """The canonical form, every part percent-encoded: any client library reads it the same way."""
        return self._url(quote(self.password, safe=""))

    def masked(self) -> str:
        """The same with the password replaced: fit for logs and screens."""
        return self._url("***" if self.password else "")

    def _url(self, password: str) -> str:
        query = f"?{urlencode(self.options)}" if self.options else ""
        who = quote(self.user, safe="") + (f":{password}" if password else "")
        who = f"{who}@" if who else ""
        if self.socket and self.scheme == "unix":
            return f"unix://{who}{quote(self.socket)}{query}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{who}{host}{f':{self.port}' if self.port else ''}/{quote(self.name, safe='')}{query}"


def parse_postgres(text: str) -> Target:
    """``postgres://``, ``postgresql://`` or either with ``+asyncpg``; the canonical scheme is ``postgresql``.

    A Unix socket is named the way libpq does it: ``postgresql:///skin?host=/run/postgresql``."""
    scheme, rest = _split_scheme(text, POSTGRES_SCHEMES, "PostgreSQL")
    del scheme
    target = _parse_server(rest, "postgresql", 5432, "PostgreSQL")
    socket = next((value for key, value in target.options if key == "host" and value.startswith("/")), "")
    if not target.host and not socket:
        raise DsnError("a PostgreSQL address needs a host: postgresql://user:password@host:5432/database")
    return replace(target, socket=socket, port=0 if socket else target.port)


def parse_redis(text: str) -> Target:
    """``redis://``, ``rediss://`` (TLS) or ``unix:///path``; the database is a number after the slash or ``?db=``."""
    scheme, rest = _split_scheme(text, REDIS_SCHEMES, "Redis")
    if scheme == "unix":
        who, at, path = rest.rpartition("@")
        path, _, query = path.partition("?")
        if not path.startswith("/"):
            raise DsnError("a Redis socket address needs an absolute path: unix:///run/redis/redis.sock")
        user, password = _split_user(who) if at else ("", "")
        return Target(
            scheme="unix", user=user, password=password, socket=unquote(path), options=tuple(parse_qsl(query))
        )
    target = _parse_server(rest, scheme, 6379, "Redis")
    if not target.host:
        raise DsnError(f"a Redis address needs a host: {scheme}://:password@host:6379/0")
    if target.name and not (target.name.isascii() and target.name.isdigit()):
        raise DsnError("the part after the slash of a Redis address is a database number, such as /0")
    return target


def _split_scheme(text: str, schemes: tuple[str, ...], server: str) -> tuple[str, str]:
    if len(text) > MAX_LENGTH:
        raise DsnError(f"this {server} address is longer than {MAX_LENGTH} characters")
    scheme, mark, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in schemes:
        accepted = ", ".join(f"{known}://" for known in schemes)
        raise DsnError(f"a {server} address starts with one of {accepted}")
    if any(ord(character) < 32 for character in rest):
        raise DsnError(f"this {server} address holds a control character")
    return scheme, rest


def _parse_server(rest: str, scheme: str, default_port: int, server: str) -> Target:
    who, at, tail = rest.rpartition("@")
    match = _SERVER.fullmatch(tail)
    if match is None:
        raise DsnError(
            f"the part of the {server} address after the last @ is not host:port/database; "
            "give host, user and password apart if the password is hard to write"
        )
    port = int(match["port"] or default_port)
    if not 1 <= port <= 65535:
        raise DsnError(f"the port of a {server} address lies between 1 and 65535, not {port}")
    user, password = _split_user(who) if at else ("", "")
    return Target(
        scheme=scheme,
        host=match["host"].strip("[]"),
        port=port,
        user=user,
        password=password,
        name=unquote(match["name"] or ""),
        options=tuple(parse_qsl(match["options"] or "", keep_blank_values=True)),
    )


def _split_user(who: str) -> tuple[str, str]:
    user, _, password = who.partition(":")
    return _decode(user), _decode(password)


def _decode(text: str) -> str:
    return unquote(text) if _ESCAPED.fullmatch(text) else text
