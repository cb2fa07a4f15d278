"""Fetches feeds: conditional, bounded in time and size, patient with servers that stumble.

The transfer is counted as it comes off the wire and unpacked here under a limit, so that neither an endless answer nor
a gzip bomb gets beyond ``max_bytes``. Names are resolved by the system. Redirects are followed five times, and never
from https to http.
"""

import asyncio
import os
import stat
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import stamina

from actors.core.errors import TegumentarError

USER_AGENT = "tegumentar/0.1"
#: for one attempt, from the first byte sent to the last one read
TIMEOUT_S = 60.0
ATTEMPTS = 3


class FetchError(TegumentarError):
    """The list did not come. ``str()`` is one sentence."""


class Stumble(FetchError):  # noqa: N818 - says that trying again may help
    """A failure of the moment: connection, time-out, server error."""


@dataclass(frozen=True, slots=True)
class Fetched:
    data: bytes
    etag: str = ""
    last_modified: str = ""


def make_client(timeout_s: float = TIMEOUT_S) -> httpx2.AsyncClient:
    """One client for all feeds: it keeps no cookies worth having and few connections."""
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        limits=httpx2.Limits(max_connections=16, max_keepalive_connections=0),
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"},
        follow_redirects=False,
    )


async def fetch(
    client: httpx2.AsyncClient,
    url: str,
    *,
    etag: str = "",
    last_modified: str = "",
    max_bytes: int,
    timeout_s: float = TIMEOUT_S,
) -> Fetched | None:
    """The list, or None when the server says that it has not changed. Raises FetchError and nothing else."""
    headers = {"If-None-Match": etag} if etag else {}
    if last_modified:
        headers["If-Modified-Since"] = last_modified
    async for attempt in stamina.retry_context(
        on=Stumble, attempts=ATTEMPTS, timeout=3 * timeout_s, wait_initial=0.5, wait_max=10.0, wait_jitter=1.0
    ):
        with attempt:
            return await _once(client, url, headers, max_bytes, timeout_s)
    raise FetchError("unreachable")  # pragma: no cover - retry_context returns or raises


async def _once(
    client: httpx2.AsyncClient, url: str, headers: dict[str, str], max_bytes: int, timeout_s: float
) -> Fetched | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await _follow(client, httpx2.URL(url), headers, max_bytes)
    except TimeoutError as exc:
        raise Stumble(f"no complete answer within {timeout_s:g} s") from exc
    except httpx2.TimeoutException as exc:
        raise Stumble("the server does not answer in time") from exc
    except httpx2.TransportError as exc:
        raise Stumble(f"the connection failed: {_words(exc)}") from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as exc:
        raise FetchError(f"the request failed: {_words(exc)}") from exc


async def _follow(
    client: httpx2.AsyncClient, url: httpx2.URL, headers: dict[str, str], max_bytes: int
) -> Fetched | None:
    for _ in range(6):
        async with client.stream("GET", url, headers=headers) as response:
            if response.has_redirect_location:
                target = url.join(response.headers["location"])
                if target.scheme != "https" and (target.scheme != "http" or url.scheme == "https"):
                    raise FetchError(f"refused to follow a redirect to {target.scheme}://{target.host}")
                url = target
                continue
            return await _answer(response, max_bytes)
    raise FetchError("too many redirects")


async def _answer(response: httpx2.Response, max_bytes: int) -> Fetched | None:
    if response.status_code == 304:
        return None
    if response.status_code in (408, 425, 429) or response.status_code >= 500:
        raise Stumble(f"the server answered {response.status_code}")
    if response.status_code != 200:
        raise FetchError(f"the server answered {response.status_code}")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        raise FetchError(f"the server used the encoding {encoding[:40]!r}, which was not asked for")
    data = await _read(response.aiter_raw(), max_bytes, gzip="gzip" in encoding)
    return Fetched(data, response.headers.get("etag", "")[:512], response.headers.get("last-modified", "")[:128])


async def _read(chunks: AsyncIterator[bytes], max_bytes: int, *, gzip: bool) -> bytes:
    unpacker: Any = zlib.decompressobj(wbits=31) if gzip else None
    out = bytearray()
    async for chunk in chunks:
        try:
            out += unpacker.decompress(chunk, max_bytes + 1 - len(out)) if unpacker else chunk
        except zlib.error as exc:
            raise FetchError("the gzip data are damaged") from exc
        if len(out) > max_bytes:
            raise FetchError(f"the list is longer than the {max_bytes} bytes allowed")
    if unpacker and not unpacker.eof:
        raise Stumble("the answer ended early")
    return bytes(out)


def read_file(path: Path, max_bytes: int) -> Fetched:
    """A list on this host. Blocks. Raises FetchError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise FetchError(f"{path} is no regular file")
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise FetchError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > max_bytes:
        raise FetchError(f"{path} is longer than the {max_bytes} bytes allowed")
    return Fetched(data)


def _words(exc: Exception) -> str:
    return str(exc)[:200] or type(exc).__name__
