"""The places settings are read from, before anything is checked; also the quick way to the one a command line needs.

A verb that asks a running service wants to know where it runs and nothing else: ``run_directory`` tells without the
checked tree, sooner, and also while a settings file has a mistake: an operator can set a posture all the same.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

SYSTEM_DIRECTORY = Path("/etc/tegumentar")
#: sd_exec(5): what the service manager made for us.
MANAGED_DIRECTORIES = {
    "state_dir": "STATE_DIRECTORY",
    "run_dir": "RUNTIME_DIRECTORY",
    "log_dir": "LOGS_DIRECTORY",
}
MAX_FILE_BYTES = 1 << 20


class SettingsError(Exception):
    """The node must not start with these settings. ``problems`` are sentences, one for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def run_directory(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    system_directory: Path = SYSTEM_DIRECTORY,
) -> Path:
    """Where the service of these sources has its sockets: the value that ``load`` would give ``run_dir``.

    Raises ``SettingsError`` when a file cannot be read; what else stands in it is not looked at."""
    environ = os.environ if environ is None else environ
    said = [managed_directories(environ).get("run_dir")]
    said += [read_toml(file).get("run_dir") for file in files(config, environ, system_directory)]
    said += [environ.get("TEGUMENTAR_RUN_DIR")]
    named = [place for place in said if isinstance(place, str) and place]
    return Path(named[-1]) if named else default_dir("run")


def files(config: Path | None, environ: Mapping[str, str], system_directory: Path) -> list[Path]:
    """The file somebody named, which must exist; otherwise those of the system directory that do."""
    named = config or (Path(environ["TEGUMENTAR_CONFIG"]) if environ.get("TEGUMENTAR_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise SettingsError([f"the settings file {named} does not exist or is no plain file"])
        return [named]
    directory = system_directory
    if environ.get("CONFIGURATION_DIRECTORY"):
        directory = Path(environ["CONFIGURATION_DIRECTORY"].split(":")[0])
    main = directory / "tegumentar.toml"
    return [file for file in [main, *sorted(directory.glob("conf.d/*.toml"))] if file.is_file()]


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of one settings file, of at most 1 MiB."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SettingsError([f"the settings file {file} is larger than {MAX_FILE_BYTES >> 20} MiB"])
        return tomllib.loads(content.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as exc:
        raise SettingsError([f"the settings file {file} cannot be read: {exc}"]) from exc


def managed_directories(environ: Mapping[str, str]) -> dict[str, str]:
    """Setting → directory, for those that the service manager made."""
    return {
        name: environ[variable].split(":")[0] for name, variable in MANAGED_DIRECTORIES.items() if environ.get(variable)
    }


def default_dir(kind: Literal["state", "run", "log"]) -> Path:
    """Where the service keeps things: the conventional place for root, the XDG one for everybody else."""
    if os.geteuid() == 0:
        return Path({"state": "/var/lib", "run": "/run", "log": "/var/log"}[kind]) / "tegumentar"
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "tegumentar"
    if kind == "run" and os.environ.get("XDG_RUNTIME_DIR"):
        return Path(os.environ["XDG_RUNTIME_DIR"]) / "tegumentar"
    return state if kind == "state" else state / kind
