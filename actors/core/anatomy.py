"""Anatomy: the table of cells that a node is made of, and what each may do.

``run.py`` writes the table, ``BasalLayer`` brings it to life. Nothing here starts anything.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from actors.core.cell import Cell


@dataclass(frozen=True)
class Privileges:
    """What remains of root in a cell once it runs. Without root at the start there is nothing to give up.

    ambient: the capabilities also reach programs that the cell starts (``nft``, ``tc``)."""

    keep_root: bool = False
    capabilities: tuple[str, ...] = ()
    ambient: bool = False

    @classmethod
    def root(cls) -> "Privileges":
        """Everything: for cells that cannot do their work otherwise."""
        return cls(keep_root=True)

    @classmethod
    def keep(cls, *capabilities: str, ambient: bool = True) -> "Privileges":
        """The unprivileged user with these capabilities, e.g. ``CAP_NET_ADMIN``."""
        return cls(capabilities=capabilities, ambient=ambient)

    @classmethod
    def none(cls) -> "Privileges":
        """The unprivileged user and no capability: for cells that read what attackers wrote."""
        return cls()


@dataclass(frozen=True)
class CellSpec:
    """How one cell runs.

    factory: the class, or a dotted path ``package.module.Class``.
    late_import: import the dotted path in the forked child only: for what is heavy or starts threads (torch, bcc). All
    others are imported once by the launcher, which saves memory and makes a restart quick.
    depends_on: started after these, stopped before them; no cell waits for another.
    critical: its lasting failure makes the supervisor give up, so that the launcher restarts everything.
    start_limit_s: seconds from fork to hello before it counts as hung; ``None`` takes the setting.
    optional: the node is whole without it: its failure degrades the layer, not the readiness of the node.
    oom_score_adj: who the kernel kills first when memory ends (+500 for the heavy, 0 for the rest).
    born_with: settings (``mast``, ``reflex.rungs``) that it takes in only at its start: ``reload`` starts it anew when
    one of them has changed. Others it takes in by a receptor for ``Reload``, or has no use for.
    """

    name: str
    factory: "type[Cell] | str"
    layer: str
    privileges: Privileges = Privileges()
    depends_on: tuple[str, ...] = ()
    critical: bool = False
    start_limit_s: float | None = None
    optional: bool = True
    oom_score_adj: int = 0
    late_import: bool = False
    born_with: tuple[str, ...] = ()

    def loaded_class(self) -> "type[Cell] | None":
        """The class when it is in memory already."""
        if isinstance(self.factory, str) and self.factory.rpartition(".")[0] not in sys.modules:
            return None
        return self.cell_class()

    def cell_class(self) -> "type[Cell]":
        """Import and return the class."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.rpartition(".")
        found: type[Cell] = getattr(import_module(module), name)
        return found


#: Re-reads the settings for ``reload``; raises what the settings raise when they are wrong.
ReadSettings = Callable[[], Any]


@dataclass(frozen=True)
class Anatomy:
    """All cells of a node, in any order. Names are unique; ``depends_on`` names cells of the table and has no ring.

    born_with: settings of the whole node; after a change of one ``reload`` says that the node must be restarted."""

    cells: tuple[CellSpec, ...]
    read_settings: ReadSettings | None = None
    born_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.cells]
        if len(set(names)) != len(names):
            raise ValueError(f"two cells share a name: {sorted(n for n in set(names) if names.count(n) > 1)}")
        self.start_order()

    def start_order(self) -> list[CellSpec]:
        """Cells sorted so that each comes after what it depends on; otherwise as written.

        Raises ValueError for an unknown dependency or a ring."""
        known = {spec.name: spec for spec in self.cells}
        done: dict[str, CellSpec] = {}

        def place(spec: CellSpec, path: tuple[str, ...]) -> None:
            if spec.name in path:
                raise ValueError(f"the cells depend on each other in a ring: {' → '.join((*path, spec.name))}")
            if spec.name in done:
                return
            for dependency in spec.depends_on:
                if dependency not in known:
                    raise ValueError(f"cell {spec.name} depends on {dependency}, which is not in the anatomy")
                place(known[dependency], (*path, spec.name))
            done[spec.name] = spec

        for spec in self.cells:
            place(spec, ())
        return list(done.values())


class SupervisorSettingsLike(Protocol):
    """What the supervisor reads of ``settings.supervisor``; seconds."""

    heartbeat_s: float
    missed_heartbeats: int
    start_limit_s: float
    backoff_first_s: float
    backoff_cap_s: float
    stable_s: float
    failures_max: int
    failures_window_s: float
    off: Sequence[str]


class SettingsLike(Protocol):
    """What the core reads of the settings; everything else is the cells' own business."""

    @property
    def run_dir(self) -> Path: ...
    @property
    def user(self) -> str: ...
    @property
    def supervisor(self) -> Any: ...
