"""The structures and names that the kernel program and Python share, read from the compiled object itself.

Nothing is written down twice: bpf/shared.h holds the layouts, the compiler records them in the object, and this module
turns the record into numpy dtypes. They are read at first use, because a node may run without the object (the data
plane is then off, with a reason) and must still be able to import the modules that mention it.

Attributes: ``EVENT FLOW FLOW_SIDE FLOW_KEY FLOW_SET SAMPLE STATS BAN_KEY BAN PREFIX VACCINE_KEY VACCINE SOURCE_SET
SOURCE_KINDS METER INCIDENT KNOBS`` are dtypes; ``REASONS`` maps number to name (``reason_name`` for one),
``REASON_NUMBERS`` the other way, ``DROP_REASONS`` are the names that drop; ``TALLIES``, ``BUDGETS``, ``FLOW_STATES``
are names in order.
"""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bpf.btf import Btf, BtfError
from bpf.build import object_path
from bpf.errors import DataPlaneError

EVENT: np.dtype[np.void]
FLOW: np.dtype[np.void]
FLOW_SIDE: np.dtype[np.void]
FLOW_KEY: np.dtype[np.void]
FLOW_SET: np.dtype[np.void]
SAMPLE: np.dtype[np.void]
STATS: np.dtype[np.void]
BAN_KEY: np.dtype[np.void]
BAN: np.dtype[np.void]
PREFIX: np.dtype[np.void]
VACCINE_KEY: np.dtype[np.void]
VACCINE: np.dtype[np.void]
SOURCE_SET: np.dtype[np.void]
SOURCE_KINDS: np.dtype[np.void]
METER: np.dtype[np.void]
INCIDENT: np.dtype[np.void]
KNOBS: np.dtype[np.void]
REASONS: dict[int, str]
REASON_NUMBERS: dict[str, int]
DROP_REASONS: frozenset[str]
TALLIES: tuple[str, ...]
BUDGETS: tuple[str, ...]
FLOW_STATES: tuple[str, ...]

STRUCTS = (
    "EVENT", "FLOW", "FLOW_SIDE", "FLOW_KEY", "FLOW_SET", "SAMPLE", "STATS", "BAN_KEY", "BAN", "PREFIX", "VACCINE_KEY",
    "VACCINE", "SOURCE_SET", "SOURCE_KINDS", "METER", "INCIDENT", "KNOBS",
)  # fmt: skip

#: Sizes fixed by shared.h that Python must know and that are no types.
DROP_FIRST = 32
FILTER_SLOTS = 1 << 19
PREFIX_SLOTS = 65_536
PAGE = 4096
SNAPSHOT_PAGES = 6912
SNAPSHOT6_PAGES = 9216
FINGERPRINT_BYTES = 32
SAMPLE_MAX = 1472
FLOW_WAYS = 4
SOURCE_WAYS = 4
OBSERVED_BIT = 0x100
FLOW_YOUNG, FLOW_DONE = 1, 2
EVENT_BANNED, EVENT_OBSERVED, EVENT_FULL = 1, 2, 4


#: The pin of the type information, beside the tables, where no object has it.
TYPES = "types"
_learned: list[Btf] = []
_places: list[Path] = []


def learn(types: bytes | None) -> None:
    """Take the type information of a program that was not loaded from the object (bpf/bcc_loader.py) instead of the
    object's; None: the object's again. Raises DataPlaneError when it is no such thing."""
    try:
        _learned[:] = [] if types is None else [Btf(types, bare=True)]
    except BtfError as error:
        raise DataPlaneError(f"the type information of the kernel program is broken: {error}") from error
    object_types.cache_clear()
    _attribute.cache_clear()


def look_in(bpf_dir: Path) -> None:
    """Where a loader that needs no object pins its type information (``v*/types``), for processes that only read."""
    _places[:] = [bpf_dir]


@cache
def object_types() -> Btf:
    """Type information of the program: what was learned, else of the installed object, else what is pinned. Raises
    DataPlaneError when there is none, or when it is broken."""
    if _learned:
        return _learned[0]
    path = object_path()
    try:
        return Btf.of(path)
    except OSError as error:
        if (pinned := _pinned_types()) is not None:
            return pinned
        raise DataPlaneError(
            f"the compiled kernel program is not at {path}: {error.strerror}", errno=error.errno or 0, remedy="make bpf"
        ) from error
    except BtfError as error:
        raise DataPlaneError(f"{path} is not our kernel program: {error}", remedy="make bpf") from error


def _pinned_types() -> Btf | None:
    from bpf import libbpf

    for place in _places:
        with suppress(OSError, DataPlaneError, BtfError):
            newest = max(place.glob(f"v*/{TYPES}"), key=lambda path: path.stat().st_mtime, default=None)
            if newest is not None:
                return Btf(libbpf.read_value(newest), bare=True)
    return None


def _names(enum: str, end: str = "") -> dict[int, str]:
    found = {}
    for name, number in object_types().enum(enum).items():
        if not name.endswith("_END") and name not in ("TG_DROP_FIRST", "TG_BUDGETS", "TG_SOURCE_BUDGETS"):
            found[number] = name.removeprefix("TG_").removeprefix(end).lower()
    return found


@cache
def _attribute(name: str) -> Any:
    if name in STRUCTS:
        return object_types().dtype("tg_" + name.lower())
    if name == "REASONS":
        return _names("tg_reason")
    if name == "REASON_NUMBERS":
        return {text: number for number, text in _attribute("REASONS").items()}
    if name == "DROP_REASONS":
        return frozenset(text for number, text in _attribute("REASONS").items() if number >= DROP_FIRST)
    if name == "TALLIES":
        return tuple(_names("tg_tally").values())
    if name == "BUDGETS":
        return tuple(_names("tg_budget_name", "OF_").values())
    if name == "FLOW_STATES":
        return tuple(_names("tg_flow_state", "FLOW_").values())
    raise AttributeError(f"module 'bpf.abi' has no attribute {name!r}")


def __getattr__(name: str) -> Any:
    return _attribute(name)


def reason_name(number: int) -> str:
    """The name people see; a number from a newer program is shown as such."""
    return str(_attribute("REASONS").get(number & 0xFF, f"reason_{number & 0xFF}"))
