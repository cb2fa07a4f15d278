"""CrowdSec bouncer: follows the decisions of a CrowdSec local API (LAPI) as a stream of changes.

Asks for everything once (``startup=true``), then for changes, and for everything again every few hours and after any
answer that broke off, because the server forgets what it has told. The table here holds every live decision by value
and id: an address is free again only when its last decision is gone, deleting what is unknown is no error, and what
expires needs no word from the server. Sources: crowdsec pkg/models/localapi_swagger.yaml and pkg/apiserver.
"""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import msgspec

from actors.core.errors import TegumentarError
from actors.epidermis import crowdsec_usage

#: "name/version" with exactly one slash, or the server files us under N/A
USER_AGENT = "crowdsec-tegumentar-bouncer/v0.1"
RESYNC_S = 4 * 3600.0
TIMEOUT_S = 20.0
BACKOFF_CAP_S = 300.0
#: a million decisions, with room
MAX_ANSWER_BYTES = 256 << 20
MAX_DECISIONS = 2_000_000
#: a resync that would forget more than half of many decisions is believed only when it says so twice
_SETTLED = 50

_DURATION = re.compile(r"(-?)((?:\d{1,12}(?:\.\d{1,12})?(?:h|ms|us|µs|ns|m|s))+)")
_PART = re.compile(r"([\d.]+)(h|ms|us|µs|ns|m|s)")
#: what nearly all of them look like
_USUAL = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,2})m)?(\d{1,2}(?:\.\d{1,9})?)s")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class CrowdSecError(TegumentarError):
    """The API did not give decisions. ``str()`` is one sentence without the key."""


class KeyRefused(CrowdSecError):  # noqa: N818 - says what happened
    """The API does not know our key."""


def duration_s(text: str) -> float:
    """Seconds of a Go duration (``3h59m51.2s``, ``-5s``). Raises CrowdSecError."""
    if usual := _USUAL.fullmatch(text):
        hours, minutes, rest = usual.groups()
        return int(hours or 0) * 3600.0 + int(minutes or 0) * 60.0 + float(rest)
    found = _DURATION.fullmatch(text[:100])
    if not found:
        raise CrowdSecError(f"{text[:40]!r} is no duration")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(found[2]))
    return -seconds if found[1] else seconds


class Decision(msgspec.Struct, frozen=True, gc=False):
    """A ban of one address or range. key tells decisions about the same value apart."""

    value: str
    key: str
    until_unix_s: float


class _Record(msgspec.Struct, gc=False):
    """A decision as CrowdSec writes it, with what matters here; a million of them are read in seconds."""

    scope: str
    value: str
    duration: str
    type: str = "ban"
    id: int | None = None
    origin: str | None = None
    scenario: str | None = None
    simulated: bool | None = None


class _Document(msgspec.Struct):
    """Decisions are taken apart one by one afterwards: an odd one costs no other, and the loop gets its turns."""

    new: list[msgspec.Raw] | None = None
    deleted: list[msgspec.Raw] | None = None


_DOCUMENT, _RECORD = msgspec.json.Decoder(_Document), msgspec.json.Decoder(_Record)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the stream. skipped: decisions that are no bans of addresses, or cannot be read."""

    new: tuple[Decision, ...]
    deleted: tuple[Decision, ...]
    skipped: int


def read_answer(data: bytes, now_unix_s: float) -> Answer:
    """Raises CrowdSecError for anything that is no answer of the stream; single odd decisions are skipped.

    Two seconds for a million: to be called in a thread."""
    try:
        document = _DOCUMENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CrowdSecError("the answer is no whole JSON document with new and deleted decisions") from exc
    lists = [document.new or [], document.deleted or []]
    if any(len(listed) > MAX_DECISIONS for listed in lists):
        raise CrowdSecError("the answer has too long lists of decisions")
    new, deleted = ([_decision(raw, now_unix_s) for raw in listed] for listed in lists)
    kept = [tuple(decision for decision in listed if decision is not None) for listed in (new, deleted)]
    return Answer(kept[0], kept[1], len(new) + len(deleted) - len(kept[0]) - len(kept[1]))


def _decision(raw: msgspec.Raw, now: float) -> Decision | None:
    """None for what does not ban an address or a range in earnest."""
    try:
        record = _RECORD.decode(raw)
        if record.scope.lower() not in ("ip", "range") or len(record.value) > 64:
            return None
        if record.type.lower() != "ban" or record.simulated:
            return None
        until = now + duration_s(record.duration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CrowdSecError):
        return None
    key = str(record.id) if record.id is not None else f"{record.origin}/{record.scenario}"[:200]
    return Decision(record.value.strip(), key, until)


class Decisions:
    """The live decisions. Pure: time is an argument."""

    def __init__(self) -> None:
        self._by_value: dict[str, dict[str, float]] = {}
        self._soonest = float("inf")  #: nothing expires before
        self._doubted = False

    def __len__(self) -> int:
        return len(self._by_value)

    def values(self) -> list[str]:
        """Every banned address and range, once."""
        return list(self._by_value)

    def apply(self, answer: Answer, now_unix_s: float) -> bool:
        """Take in changes; returns whether the banned values are others than before."""
        changed = False
        for decision in answer.deleted:
            keys = self._by_value.get(decision.value, {})
            keys.pop(decision.key, None)
            if decision.value in self._by_value and not keys:
                del self._by_value[decision.value]
                changed = True
        for decision in answer.new:
            if decision.until_unix_s <= now_unix_s or len(self._by_value) >= MAX_DECISIONS:
                continue
            changed |= decision.value not in self._by_value
            self._by_value.setdefault(decision.value, {})[decision.key] = decision.until_unix_s
            self._soonest = min(self._soonest, decision.until_unix_s)
        return changed

    def replace(self, answer: Answer, now_unix_s: float) -> bool:
        """Take in everything. The server may close a list early without a word, so a sudden loss is not believed
        the first time: what was known is then kept until it expires or the next resync says the same."""
        fresh = Decisions()
        fresh.apply(Answer(answer.new, (), 0), now_unix_s)
        if len(self) >= _SETTLED and len(fresh) < len(self) / 2 and not self._doubted:
            self._doubted = True
            return self.apply(answer, now_unix_s)
        changed = self._by_value.keys() != fresh._by_value.keys()
        self._by_value, self._soonest, self._doubted = fresh._by_value, fresh._soonest, False
        return changed

    def expire(self, now_unix_s: float) -> bool:
        """Forget what has run out; returns whether a value became free."""
        if now_unix_s < self._soonest:
            return False
        before = len(self._by_value)
        kept = {
            value: live
            for value, keys in self._by_value.items()
            if (live := {key: until for key, until in keys.items() if until > now_unix_s})
        }
        self._by_value = kept
        self._soonest = min((until for keys in kept.values() for until in keys.values()), default=float("inf"))
        return len(kept) != before


class Bouncer:
    """The conversation with one API. ``run`` in the cell's loop until cancelled; it never raises.

    on_change(values) after every change of what is banned; on_state(problem, remedy) with empty text when all is well.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        every_s: float = 10.0,
        on_change: Callable[[list[str]], None],
        on_state: Callable[[str, str], None],
        clock: Callable[[], float] = time.time,
        timeout_s: float = TIMEOUT_S,
        resync_s: float = RESYNC_S,
        usage_s: float = crowdsec_usage.EVERY_S,
    ) -> None:
        self._url = url.rstrip("/") + "/v1/decisions/stream"
        self._usage_url, self._usage_s = url.rstrip("/") + crowdsec_usage.PATH, usage_s
        self._headers = {"X-Api-Key": key, "User-Agent": USER_AGENT, "Accept-Encoding": "gzip"}
        self._every_s, self._timeout_s, self._resync_s = every_s, timeout_s, resync_s
        self._on_change, self._on_state, self._clock = on_change, on_state, clock
        self._whole_at = float("-inf")  #: when everything was last received, by the monotonic clock
        self._started_unix_s = self._told_unix_s = clock()
        self.decisions = Decisions()
        self.skipped = 0

    async def run(self) -> None:
        failures = 0
        async with httpx2.AsyncClient(timeout=self._timeout_s, headers=self._headers) as client:
            while True:
                try:
                    await self.poll(client)
                    failures = 0
                    self._on_state("", "")
                    await self.tell_usage(client)
                except KeyRefused as exc:
                    failures = max(failures + 1, 5)
                    self._on_state(str(exc), exc.remedy)
                except CrowdSecError as exc:
                    failures += 1
                    self._on_state(str(exc), exc.remedy)
                if failures and self.decisions.expire(self._clock()):
                    self._on_change(self.decisions.values())
                await asyncio.sleep(self._pause(failures))

    async def poll(self, client: httpx2.AsyncClient) -> None:
        """One question and what follows from it. Raises CrowdSecError."""
        whole = time.monotonic() - self._whole_at >= self._resync_s
        if whole:
            await self._test_key(client)
        try:
            data = await self._get(client, whole)
            now = self._clock()
            answer = await asyncio.to_thread(read_answer, data, now)
        except CrowdSecError:
            self._whole_at = float("-inf")  # the server may believe that we have what broke off
            raise
        take = self.decisions.replace if whole else self.decisions.apply
        changed = await asyncio.to_thread(take, answer, now)
        self.skipped += answer.skipped
        if whole:
            self._whole_at = time.monotonic()
        if self.decisions.expire(now) or changed:
            self._on_change(self.decisions.values())

    async def tell_usage(self, client: httpx2.AsyncClient) -> None:
        """Now and then, where the API wants to know. It is a courtesy: no answer to it changes anything else."""
        now = self._clock()
        window_s = now - self._told_unix_s
        if window_s < self._usage_s:
            return
        self._told_unix_s = now
        body = crowdsec_usage.usage(USER_AGENT, self.decisions.values(), self._started_unix_s, now, window_s)
        with contextlib.suppress(httpx2.HTTPError, httpx2.InvalidURL, ValueError):
            response = await client.post(self._usage_url, content=body, headers={"Content-Type": "application/json"})
            if response.status_code in (404, 405):
                self._usage_s = float("inf")  # older than 1.6.3

    def resync(self) -> None:
        """Ask for everything with the next question."""
        self._whole_at = float("-inf")

    async def _test_key(self, client: httpx2.AsyncClient) -> None:
        """HEAD leaves the server's memory of what we know as it is."""
        try:
            response = await client.head(self._url)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as exc:
            raise self._away(exc) from exc
        self._must_be_well(response.status_code)

    async def _get(self, client: httpx2.AsyncClient, whole: bool) -> bytes:
        parameters = {"scopes": "ip,range"} | ({"startup": "true"} if whole else {})
        out = bytearray()
        try:
            async with (
                asyncio.timeout(3 * self._timeout_s),
                client.stream("GET", self._url, params=parameters) as response,
            ):
                self._must_be_well(response.status_code)
                async for chunk in response.aiter_bytes(65_536):
                    out += chunk
                    if len(out) > MAX_ANSWER_BYTES:
                        raise CrowdSecError("the answer is longer than any list of decisions")
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError, ValueError) as exc:
            raise self._away(exc) from exc
        return bytes(out)

    def _must_be_well(self, status: int) -> None:
        if status in (401, 403):
            raise KeyRefused(
                "the CrowdSec API refuses the key",
                remedy="make one with `cscli bouncers add` and set feeds.crowdsec_key",
            )
        if status != 200:
            raise CrowdSecError(f"the CrowdSec API answered {status}", remedy="see the log of crowdsec")

    def _away(self, exc: Exception) -> CrowdSecError:
        what = str(exc)[:200] or type(exc).__name__
        return CrowdSecError(
            f"the CrowdSec API at {self._url.partition('?')[0]} cannot be asked: {what}",
            remedy="check feeds.crowdsec_url and that crowdsec runs; what it decided stays in force until it expires",
        )

    def _pause(self, failures: int) -> float:
        wait = min(self._every_s * 2**failures, max(BACKOFF_CAP_S, self._every_s)) if failures else self._every_s
        return wait * random.uniform(0.9, 1.1)  # noqa: S311 - spreads requests, hides nothing
