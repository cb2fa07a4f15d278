"""The blocking half of the keratinocyte: carry a step out, ask the kernel, compare. Runs off the actor thread.

Every function takes the filter and plain values, and returns plain values: nothing here touches the cell.
"""

import ipaddress
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.core.errors import Refused
from actors.core.messages import Proof
from actors.epidermis.filter_plan import HASH_SETS, Step
from actors.epidermis.nft import Filter, Held
from actors.epidermis.prefix_file import TooManyEntries, read_prefix_file
from actors.epidermis.reconcile import Place, probe_address
from actors.epidermis.ruleset import SETS, Command, Element, Layout, RefillSet, ReplaceTable, declaration, shape

#: Bans proved in the same breath as they are applied (12 us each); the rest of a bulk import follows soon after.
PROVE_AT_ONCE = 200
#: Feed entries per set that are looked for after a change from outside.
SAMPLE = 16
#: A transaction of a million elements takes 6 s; beyond this nft hangs.
_LONG_LIMIT_S = 60.0
_SHORT_LIMIT_S = 5.0


@dataclass(slots=True)
class Outcome:
    """What came of a step. ``foreign``: somebody else changed nftables meanwhile. ``shape``: the table as it stands,
    when the step changed rules or chains."""

    generation: int
    foreign: bool
    took_ms: float
    proofs: list[Proof] = field(default_factory=list)
    shape: tuple[str, ...] | None = None
    feed_entries: int = 0
    feed_problem: str = ""
    feed_too_large: bool = False
    feed_sample: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Inspection:
    """The kernel's table now. ``contents`` only of the hash sets, and only when the shape is right."""

    generation: int
    shape_holds: bool
    contents: Mapping[str, Sequence[Held]] = field(default_factory=dict)
    sets_hold: bool = True


def carry_out(filter_: Filter, step: Step, layout: Layout, known_generation: int, prove: dict[str, Place]) -> Outcome:
    """Apply the step and prove ``prove``. Raises ToolFailed or Unavailable: nothing was changed, or nobody knows."""
    outcome = Outcome(0, False, 0.0)
    commands = _with_feed(step, layout, outcome) if step.feed else step.commands
    began, before = time.monotonic(), filter_.generation()
    if commands:
        filter_.apply(commands, _LONG_LIMIT_S if step.whole or step.feed else _SHORT_LIMIT_S)
    outcome.took_ms = (time.monotonic() - began) * 1000
    outcome.generation = filter_.generation()
    # a transaction that changes nothing, such as filling an empty set with nothing, has no generation of its own
    outcome.foreign = before != known_generation or outcome.generation - before > bool(commands)
    if step.structure:
        outcome.shape = filter_.shape(layout.table)
    outcome.proofs = prove_bans(filter_, layout.table, prove)
    return outcome


def prove_bans(filter_: Filter, table: str, subjects: Mapping[str, Place]) -> list[Proof]:
    """Ask the kernel for each subject's element."""
    proofs = []
    for subject, where in subjects.items():
        held = filter_.held(table, where.set, probe_address(where.key))
        what = "nothing" if held is None else "it" if held.key == where.key else held.key
        detail = f"nftables holds {what} in {where.set}"  # the same words for many: they are kept once
        proofs.append(Proof(subject=subject, holds=held is not None, detail=detail))
    return proofs


def inspect(
    filter_: Filter,
    layout: Layout,
    expected: tuple[str, ...],
    exact: Mapping[str, Iterable[str]],
    sample: Mapping[str, Iterable[str]],
) -> Inspection:
    """Compare the table with what it should be. ``exact``: all addresses with which the intervals of a set begin;
    ``sample``: addresses that a set should hold among others."""
    generation = filter_.generation()
    if filter_.shape(layout.table) not in (expected, shape(declaration(layout))):
        return Inspection(generation, shape_holds=False)
    contents = read_hash_sets(filter_, layout.table)
    table = layout.table
    sets_hold = all(_keys(filter_, table, name) == set(keys) for name, keys in exact.items()) and all(
        filter_.held(table, name, key) for name, keys in sample.items() for key in keys
    )
    return Inspection(generation, True, contents, sets_hold)


def read_hash_sets(filter_: Filter, table: str) -> dict[str, list[Held]]:
    return {name: filter_.contents(table, name) for name in HASH_SETS}


def _keys(filter_: Filter, table: str, name: str) -> set[str]:
    return {held.key for held in filter_.contents(table, name)}


def _with_feed(step: Step, layout: Layout, outcome: Outcome) -> list[Command]:
    """The step's commands with the feed's elements. A bad feed is told and left out; what stood before stays,
    except in a whole table, which then has none."""
    if step.feed is None:
        return step.commands
    try:
        lists = read_prefix_file(step.feed, layout.max_elements)
    except Refused as refused:
        outcome.feed_problem, outcome.feed_too_large = str(refused), isinstance(refused, TooManyEntries)
        return step.commands
    outcome.feed_entries = len(lists)
    outcome.feed_sample = {name: [probe_address(key) for key in keys[:SAMPLE]] for name, keys in lists.items()}
    elements = {name: [Element(key) for key in keys] for name, keys in lists.items()}
    if not step.whole:
        return [*step.commands, *(RefillSet(layout.table, name, e) for name, e in elements.items())]
    return [
        ReplaceTable(command.layout, {**command.contents, **elements}) if isinstance(command, ReplaceTable) else command
        for command in step.commands
    ]


def explain(filter_: Filter, table: str, address: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """Which sets cover the address, and for how long."""
    family = "6" if ":" in address else "4"
    found = []
    for name in names:
        if SETS[name].type != f"ipv{family}_addr":
            continue
        held = filter_.held(table, name, masked(address, name))
        if held is not None:
            found.append({"set": name, "key": held.key, "expires_s": held.expires_s})
    return found


def masked(address: str, name: str) -> str:
    """The key under which a set of prefixes of one length would hold the address."""
    _, _, length = name.partition("_")
    if not length.isdigit():
        return address
    return str(ipaddress.ip_network(f"{address}/{length}", strict=False).network_address)
