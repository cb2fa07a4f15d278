"""Which feeds there are: the packaged definitions, the operator's, and a directory of files.

A definition that does not fit is left out and named in a sentence; the others stay.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actors.epidermis.feed_formats import MAX_BYTES, MAX_ENTRIES, Format
from config.settings import FeedSettings

PACKAGED = Path(__file__).resolve().parents[2] / "config" / "feeds.toml"
#: Spamhaus shuts out who asks more often
SPAMHAUS_MINUTES = 60.0
#: definitions are for people: nothing sensible is longer
_TOML_BYTES = 1 << 20
_DIRECTORY_FILES = 256
_UNREAD = "cannot be read"


class FeedSource(BaseModel):
    """One feed as defined; config/feeds.toml explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,47}$")]
    url: Annotated[str, Field(max_length=2048)] = ""
    path: Path | None = None
    format: Format = Format.AUTO
    enabled: bool = False
    refresh_minutes: Annotated[float, Field(ge=1, le=525_600)] = 15.0
    special: Literal["quarantine", "subtract", "allow"] = "quarantine"
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    min_entries: Annotated[int, Field(ge=1)] = 1
    max_entries: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = MAX_ENTRIES
    max_bytes: Annotated[int, Field(ge=1, le=MAX_BYTES)] = MAX_BYTES
    shrink: Annotated[float, Field(ge=0, le=1)] = 0.5
    grow: Annotated[float, Field(gt=1)] = 10.0
    note: Annotated[str, Field(max_length=500)] = ""

    @model_validator(mode="before")
    @classmethod
    def _polite(cls, values: Any) -> Any:
        """Never ask Spamhaus more than once an hour, whatever was written."""
        if isinstance(values, dict) and isinstance(values.get("url"), str) and _is_spamhaus(values["url"]):
            asked = values.get("refresh_minutes", SPAMHAUS_MINUTES)
            if isinstance(asked, int | float):
                return values | {"refresh_minutes": max(float(asked), SPAMHAUS_MINUTES)}
        return values

    @model_validator(mode="after")
    def _one_place(self) -> "FeedSource":
        if bool(self.url) == (self.path is not None):
            raise ValueError("a feed has either an url or a path")
        # urlsplit raises ValueError for what is no URL, which is what this validator may raise
        if self.url and (urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname):
            raise ValueError("the url must start with https:// or http:// and name a host")
        return self

    @property
    def patience_s(self) -> float:
        """Seconds that must lie between two questions, even when the operator asks for one now."""
        return SPAMHAUS_MINUTES * 60 if _is_spamhaus(self.url) else 0.0

    @property
    def place(self) -> str:
        """Where it comes from, for people: without a query, which may hold a key."""
        return self.url.partition("?")[0] if self.url else str(self.path)


def _is_spamhaus(url: str) -> bool:
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return False
    return host == "spamhaus.org" or host.endswith(".spamhaus.org")


@dataclass(frozen=True, slots=True)
class Sources:
    """feeds: those that are on, by name. known: names of those that are off. problems: sentences.

    whole: False when a file or the directory could not be read, so that feeds may be missing here."""

    feeds: tuple[FeedSource, ...]
    known: tuple[str, ...]
    problems: tuple[str, ...]
    whole: bool = True


def load_sources(settings: FeedSettings, packaged: Path = PACKAGED) -> Sources:
    """Read all definitions. Never raises: what cannot be read becomes a problem."""
    problems: list[str] = []
    tables = _tables(packaged, problems)
    if settings.definitions is not None:
        for name, table in _tables(settings.definitions, problems).items():
            tables[name] = tables.get(name, {}) | table
    problems += [f"feeds.enable names {name}, which is not defined" for name in settings.enable if name not in tables]
    defaults: dict[str, Any] = {"refresh_minutes": settings.refresh_minutes, "max_share": settings.max_share}
    if settings.allow_private:
        defaults["special"] = "allow"
    found: dict[str, FeedSource] = {}
    off: list[str] = []
    for name, table in tables.items():
        wanted = table.get("enabled") is True or name in settings.enable
        source = _source(defaults | table | {"name": name, "enabled": wanted}, problems)
        if source is not None and wanted:
            found[name] = source
        elif source is not None:
            off.append(name)
    for path in _files(settings.directory, problems):
        name = re.sub(r"[^a-z0-9_.-]", "_", path.name.lower()).strip("._-")[:48] or "list"
        source = _source(defaults | {"name": name, "path": path, "enabled": True}, problems)
        if source is not None:
            found.setdefault(name, source)
    feeds = tuple(found[name] for name in sorted(found))
    return Sources(
        feeds, tuple(sorted(off)), tuple(problems), whole=not any(_UNREAD in problem for problem in problems)
    )


def _tables(path: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            document = tomllib.loads(file.read(_TOML_BYTES).decode())
    except OSError as exc:
        problems.append(f"the feed definitions {path} {_UNREAD}: {exc.strerror}")
        return {}
    except (ValueError, RecursionError) as exc:
        problems.append(f"the feed definitions {path} {_UNREAD}: no TOML ({exc})")
        return {}
    problems += [f"{name} in {path} is no table" for name, table in document.items() if not isinstance(table, dict)]
    return {name: table for name, table in document.items() if isinstance(table, dict)}


def _source(values: dict[str, Any], problems: list[str]) -> FeedSource | None:
    try:
        return FeedSource.model_validate(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problems.append(f"the feed {str(values['name'])[:60]} is left out: {where} {first['msg']}".replace("  ", " "))
        return None


def _files(directory: Path | None, problems: list[str]) -> list[Path]:
    if directory is None:
        return []
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as exc:
        problems.append(f"the feed directory {directory} {_UNREAD}: {exc.strerror}")
        return []
    if len(files) > _DIRECTORY_FILES:
        problems.append(f"{directory} has {len(files)} files; the first {_DIRECTORY_FILES} are used")
    return files[:_DIRECTORY_FILES]
