"""Where settings come from: sources merged by rank, each value with its origin, mistakes as sentences.

Rank, weakest first: defaults, the service manager's directories (``STATE_DIRECTORY`` ...), TOML files
(``tegumentar.toml``, then ``conf.d/*.toml`` by name), files of a credentials directory, environment, options.

Two kinds of mistake. One in the core of the node (top level, ``supervisor``, ``permeability``) stops it:
``SettingsError``, exit code 78, which service managers do not restart. One in the section of an optional part
drops that value alone, keeps the rest, and is kept in ``Settings.problems`` so that the part starts *degraded*.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from config import sources
from config.settings import Settings
from config.sources import SettingsError

PREFIX = "TEGUMENTAR_"
#: A wrong value here could lock people out or protect nothing: the node does not start.
CORE_SECTIONS = frozenset({"supervisor", "permeability"})
#: Variables with our prefix that are no settings.
NOT_SETTINGS = (
    "TEGUMENTAR_CONFIG",
    "TEGUMENTAR_BPF_OBJECT",
    "TEGUMENTAR_SHARED",
    "TEGUMENTAR_CHAOS_SECONDS",
    "TEGUMENTAR_TEST_",
)
Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """Settings and the account of how they came to be."""

    settings: Settings
    origins: dict[Path_, str]  #: path of each value that is not a default → where it was set
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def load(
    options: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    system_directory: Path = sources.SYSTEM_DIRECTORY,
) -> Loaded:
    """Read every source and merge them. ``options`` are what the command line names, as a nested mapping.

    Reads files and nothing else; raises ``SettingsError`` for a mistake in the core or an unreadable named file."""
    environ = os.environ if environ is None else environ
    values: dict[Path_, Any] = {}
    origins: dict[Path_, str] = {}

    def put(found: Mapping[Path_, Any], origin: str) -> None:
        values.update(found)
        origins.update(dict.fromkeys(found, origin))

    for name, directory in sources.managed_directories(environ).items():
        put({(name,): directory}, f"${sources.MANAGED_DIRECTORIES[name]}")
    files = sources.files(config, environ, system_directory)
    for file in files:
        put(_flatten(sources.read_toml(file)), str(file))
    for name, text in _credentials(environ).items():
        put({_path(name): text}, "credentials directory")
    from_environment, warnings = _environment(environ)
    for path, (variable, text) in from_environment.items():
        put({path: text}, f"${variable}")
    put(_flatten(options or {}), "command line")

    settings = _validate(values, origins)
    return Loaded(settings, origins, [*warnings, *settings.problems.values()], files)


def describe(loaded: Loaded) -> list[dict[str, str | None]]:
    """Every setting with its value as text and its origin; secrets masked. One row per leaf, in the tree's order."""
    rows: list[dict[str, str | None]] = []
    for path, value in _leaves(loaded.settings):
        rows.append({"name": ".".join(path), "value": shown(value), "origin": loaded.origins.get(path, "default")})
    return rows


def shown(value: Any) -> str | None:
    """A setting's value as text for people; a secret is three stars."""
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- sources ----------------------------------------------------------------------------------------------


def _credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Files such as ``memory__postgres_dsn`` in ``$CREDENTIALS_DIRECTORY``: one secret each, no newline kept."""
    if not environ.get("CREDENTIALS_DIRECTORY"):
        return {}
    directory = Path(environ["CREDENTIALS_DIRECTORY"])
    known = (file for file in directory.glob("*__*") if file.is_file() and _exists(_path(file.name)))
    try:
        return {file.name: file.read_text().rstrip("\r\n") for file in known}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError([f"the credentials directory {directory} cannot be read: {exc}"]) from exc


def _environment(environ: Mapping[str, str]) -> tuple[dict[Path_, tuple[str, str]], list[str]]:
    """Variables that name a setting, and a warning for each that has our prefix and names none."""
    found: dict[Path_, tuple[str, str]] = {}
    warnings = []
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(NOT_SETTINGS):
            continue
        path = _path(variable.removeprefix(PREFIX))
        if _exists(path):
            found[path] = (variable, text)
        else:
            hint = _nearest(".".join(path))
            meant = f"; perhaps {PREFIX}{hint.upper().replace('.', '__')} was meant" if hint else ""
            warnings.append(f"the environment variable {variable} is no setting and is ignored{meant}")
    return found, warnings


# --- checking ---------------------------------------------------------------------------------------------


def _validate(values: dict[Path_, Any], origins: dict[Path_, str]) -> Settings:
    """Check everything at once; drop what is wrong in optional sections, refuse what is wrong in the core."""
    if ("problems",) in values:
        raise SettingsError([f"problems ({origins['problems',]}) is no setting"])
    problems: dict[str, list[str]] = {}
    for _ in range(len(values) + 1):
        try:
            settings = Settings.model_validate(_nest(values))
        except ValidationError as exc:
            fatal = []
            for error in exc.errors(include_url=False, include_input=False):
                path = _culprit(error["loc"], values)
                sentence = _sentence(path, error, values.get(path), origins.get(path, "default"))
                if _optional(path):
                    problems.setdefault(path[0], []).append(f"{sentence}; the default is used")
                    values.pop(path, None)
                    origins.pop(path, None)
                else:
                    fatal.append(sentence)
            if fatal:
                raise SettingsError(fatal) from exc
        else:
            return settings.model_copy(update={"problems": {name: "; ".join(said) for name, said in problems.items()}})
    raise SettingsError(["the settings contradict each other"])


def _culprit(location: tuple[int | str, ...], values: Mapping[Path_, Any]) -> Path_:
    """The longest part of an error's location that somebody set: an error inside a list belongs to the list."""
    path = tuple(str(part) for part in location)
    for end in range(len(path), 0, -1):
        if path[:end] in values:
            return path[:end]
    return path


def _optional(path: Path_) -> bool:
    return len(path) > 1 and path[0] in _sections() and path[0] not in CORE_SECTIONS


def _sentence(path: Path_, error: Any, value: Any, origin: str) -> str:
    """Field, value, reason, source; a secret's value is not repeated, nor that of a field nobody knows."""
    name = ".".join(path)
    where = f" ({origin})" if origin != "default" else ""
    if error["type"] == "extra_forbidden":
        hint = _nearest(name)
        return f"{name}{where} is no setting{f'; perhaps {hint} was meant' if hint else ''}"
    if isinstance(value, dict):
        return f"{name}{where} is no table of settings"
    reason = error["msg"].replace("Input should be", "it must be").replace("Value error, ", "").split(", unable to")[0]
    if error["type"] == "string_pattern_mismatch":
        reason = "it has characters or a form that this setting does not allow"
    told = "this value" if _secret(path) else repr(shown(value))[:80]
    return f"{name} = {told}{where} is refused: {reason[0].lower() + reason[1:]}"


def _sections() -> dict[str, type[BaseModel]]:
    fields = Settings.model_fields.items()
    return {name: info.annotation for name, info in fields if _is_model(info.annotation)}  # type: ignore[misc]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _secret(path: Path_) -> bool:
    model = _sections().get(path[0])
    info = model.model_fields.get(path[1]) if model and len(path) > 1 else None
    return info is not None and (info.annotation is SecretStr or SecretStr in get_args(info.annotation))


def _names() -> list[str]:
    sections = _sections()
    top = [name for name in Settings.model_fields if name not in sections and name != "problems"]
    return top + [f"{section}.{name}" for section, model in sections.items() for name in model.model_fields]


def _exists(path: Path_) -> bool:
    return ".".join(path) in _names()


def _nearest(name: str) -> str:
    """The setting whose name is most like this one; without its section, or with another, it is still recognised."""
    names = _names()
    alike = difflib.get_close_matches(name, names, 1, 0.75)
    if not alike:
        leaf_of = {each: each.rpartition(".")[2] for each in names}
        leaves = difflib.get_close_matches(name.rpartition(".")[2], set(leaf_of.values()), 1, 0.8)
        alike = [each for each in names if leaf_of[each] in leaves]
    return alike[0] if alike else ""


# --- trees and paths --------------------------------------------------------------------------------------


def _path(name: str) -> Path_:
    return tuple(name.lower().split("__"))


def _flatten(tree: Mapping[str, Any], above: Path_ = ()) -> dict[Path_, Any]:
    """Nested tables as paths. Only real sections are opened, so an unknown table stays one value to complain about."""
    flat: dict[Path_, Any] = {}
    for key, value in tree.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and not above and key in _sections():
            flat.update(_flatten(value, path))
        else:
            flat[path] = value
    return flat


def _nest(values: Mapping[Path_, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        place = tree
        for part in path[:-1]:
            inner = place.setdefault(part, {})
            place = inner if isinstance(inner, dict) else {}
        place[path[-1]] = value
    return tree


def _leaves(settings: Settings) -> list[tuple[Path_, Any]]:
    leaves: list[tuple[Path_, Any]] = []
    for name in _names():
        path = tuple(name.split("."))
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        leaves.append((path, value))
    return leaves
