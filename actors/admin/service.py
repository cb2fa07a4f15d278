"""The service verb: read the settings, say what is missing, hand the anatomy to the supervisor.

A person at a terminal gets a short account of each cell; everybody else gets JSON lines on stderr.
"""

import importlib
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.admin.session import Call
from actors.core import thrift
from actors.core.anatomy import Anatomy

if TYPE_CHECKING:
    from config.load import Loaded
    from config.settings import Settings

#: Imported once before the cells are forked: shared memory instead of a copy in each, and a restart costs no import.
SHARED_LIBRARIES = (
    "fastapi",
    "httpx2",
    "msgspec",
    "numpy",
    "orjson",
    "prometheus_client",
    "pydantic",
    "sqlite3",
    "structlog",
    "uvicorn",
)
#: What a node needs to enforce, and what is lost without.
CAPABILITIES = {
    "CAP_NET_ADMIN": "no nftables rules and no program on an interface",
    "CAP_BPF": "no kernel program",
    "CAP_PERFMON": "no kernel program that the verifier wants pointer arithmetic for",
}


def run(call: Call, anatomy: Anatomy) -> None:
    """Run until stopped. Ends the process with the launcher's exit code, or 78 for wrong settings."""
    thrift.one_heap()
    with thrift.absent("rich"):  # structlog would load it for colours in tracebacks: 4 MB
        from actors.core import log
        from actors.core.launcher import serve  # first: what every cell runs lies close together then

    loaded = call.load()
    watched = sys.stderr.isatty()
    settings = _quiet(loaded) if watched else loaded.settings
    log.configure(settings.log_level)
    say = log.logger(cell="launcher")
    for warning in loaded.warnings:
        say.warning("settings", problem=warning)
    missing = missing_capabilities()
    if missing:
        say.warning(
            "privileges",
            problem=f"without {', '.join(missing)} this node can only observe: {'; '.join(missing.values())}",
            remedy="run it as root, or grant these capabilities to the service",
        )
    prepare_to_fork()
    prepare_pins(settings.bpf_dir)
    from actors.admin.account import Account

    with_reload = replace(anatomy, read_settings=lambda: load_again(call, watched=watched))
    raise typer.Exit(serve(settings, with_reload, Account(settings) if watched else None))


def prepare_pins(bpf_dir: Path) -> None:
    """The BPF file system and our directory in it, while this process may still mount; no cell may later.

    Where it cannot be, the cell that misses it says so."""
    from bpf import abi, bpffs
    from bpf.dataplane import DataPlaneError

    abi.look_in(bpf_dir)
    with suppress(DataPlaneError, OSError):
        bpffs.ensure(bpf_dir)


def prepare_to_fork() -> None:
    """Import the libraries that the cells share. None may start a thread here: a forked child would miss it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")  # one record in a large empty array would cost 2 MB
    for name in SHARED_LIBRARIES:
        importlib.import_module(name)


def load_again(call: Call, *, watched: bool = False) -> "Settings":
    """For ``reload``: the same sources again. Raises SettingsError when they are wrong; those in force stay."""
    from config.load import load

    loaded = load(call.options, config=call.config)
    return _quiet(loaded) if watched else loaded.settings


def _quiet(loaded: "Loaded") -> "Settings":
    """At a terminal the account of the cells says what lines of the log would, unless somebody chose a level."""
    chosen = ("log_level",) in loaded.origins
    return loaded.settings if chosen else loaded.settings.model_copy(update={"log_level": "warning"})


def missing_capabilities() -> dict[str, str]:
    """Capabilities this process lacks for enforcing → what is lost without."""
    from actors.core.capability import effective

    held = effective()
    if "CAP_SYS_ADMIN" in held:  # stands for CAP_BPF and CAP_PERFMON, which are only younger names for parts of it
        held |= {"CAP_BPF", "CAP_PERFMON"}
    return {name: loss for name, loss in CAPABILITIES.items() if name not in held}
