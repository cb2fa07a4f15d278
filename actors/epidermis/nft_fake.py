"""An nftables filter in memory, for tests: refuses what the real one refuses, and fails when told to.

Held to the same contract tests as :class:`actors.epidermis.nft.NftFilter`.
"""

import ipaddress
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from actors.core.errors import ToolFailed
from actors.epidermis.nft import Held
from actors.epidermis.ruleset import (
    COUNTERS,
    SETS,
    AddElements,
    Command,
    Element,
    Layout,
    PutElements,
    RefillSet,
    RemoveElements,
    RemoveTable,
    ReplaceRules,
    ReplaceTable,
    declaration,
    shape,
)

_Net = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class FakeTable:
    layout: Layout
    #: set name → network → the moment it expires, None when it stays
    sets: dict[str, dict[_Net, float | None]] = field(default_factory=lambda: {name: {} for name in SETS})


class FakeFilter:
    """``now`` is the clock in seconds. ``fail_next`` holds errors that the next calls of ``apply`` raise, in order."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._generation = 1
        self.tables: dict[str, FakeTable] = {}
        self.fail_next: list[Exception] = []
        self.applied: list[Sequence[Command]] = []

    def apply(self, commands: Sequence[Command], limit_s: float = 10.0) -> None:
        if self.fail_next:
            raise self.fail_next.pop(0)
        after = deepcopy(self.tables)
        for command in commands:
            self._one(after, command)
        self.tables = after
        self._generation += 1
        self.applied.append(commands)

    def shape(self, table: str) -> tuple[str, ...] | None:
        return shape(declaration(self.tables[table].layout)) if table in self.tables else None

    def counters(self, table: str) -> dict[str, int]:
        return dict.fromkeys(COUNTERS, 0) if table in self.tables else {}

    def generation(self) -> int:
        return self._generation

    def held(self, table: str, name: str, address: str) -> Held | None:
        wanted = ipaddress.ip_address(address)
        for net, until in self._live(table, name).items():
            if wanted.version == net.version and wanted in net:
                return Held(str(net.network_address), self._left(until))
        return None

    def contents(self, table: str, name: str) -> list[Held]:
        return [Held(str(net.network_address), self._left(until)) for net, until in self._live(table, name).items()]

    def close(self) -> None:
        """Nothing is open."""

    def tamper(self, table: str | None = None) -> None:
        """Somebody else changed something: their transaction counts as well. With a name, that table is deleted."""
        self.tables.pop(table or "", None)
        self._generation += 1

    def _one(self, tables: dict[str, FakeTable], command: Command) -> None:
        match command:
            case ReplaceTable(layout, contents):
                tables[layout.table] = FakeTable(layout)
                for name, elements in contents.items():
                    self._fill(tables, layout.table, name, elements)
            case ReplaceRules(layout):
                self._table(tables, layout.table).layout = layout
            case AddElements(table, name, elements) | PutElements(table, name, elements):
                self._fill(tables, table, name, elements)
            case RemoveElements(table, name, keys):
                held = self._set(tables, table, name)
                for key in keys:
                    held.pop(self._network(name, key), None)
            case RefillSet(table, name, elements):
                self._set(tables, table, name).clear()
                self._fill(tables, table, name, elements)
            case RemoveTable(table):
                tables.pop(table, None)

    def _fill(self, tables: dict[str, FakeTable], table: str, name: str, elements: Sequence[Element]) -> None:
        held, kind = self._set(tables, table, name), SETS[name]
        for element in elements:
            net = self._network(name, element.key)
            if element.timeout_s is not None and "timeout" not in kind.flags:
                raise ToolFailed(f"nft refused the transaction: {name} takes no timeouts", said="Invalid argument")
            if kind.interval and not kind.merge and any(net.overlaps(other) for other in held if other != net):
                raise ToolFailed("nft refused the transaction: conflicting intervals specified", said="conflicting")
            held[net] = None if element.timeout_s is None else self._now() + element.timeout_s
        if not kind.interval and len(held) > self._table(tables, table).layout.max_elements:
            raise ToolFailed(f"nft refused the transaction: {name} is full", said="Too many open files in system")

    def _network(self, name: str, key: str) -> _Net:
        kind = SETS[name]
        try:
            net = ipaddress.ip_network(key)
        except ValueError as exc:
            raise ToolFailed(f"nft refused the transaction: {key!r} is no address", said="syntax error") from exc
        if net.version != (4 if kind.type == "ipv4_addr" else 6):
            raise ToolFailed(f"nft refused the transaction: {key} in {name}", said="Address family not supported")
        if not kind.interval and net.num_addresses > 1:
            raise ToolFailed(f"nft refused the transaction: {key} in {name}", said="You must add 'flags interval'")
        return net

    def _set(self, tables: dict[str, FakeTable], table: str, name: str) -> dict[_Net, float | None]:
        found = self._table(tables, table).sets.get(name)
        if found is None:
            raise ToolFailed(f"nft refused the transaction: no set {name}", said="No such file or directory")
        return found

    def _table(self, tables: dict[str, FakeTable], table: str) -> FakeTable:
        if table not in tables:
            raise ToolFailed(f"nft refused the transaction: no table {table}", said="No such file or directory")
        return tables[table]

    def _live(self, table: str, name: str) -> dict[_Net, float | None]:
        held = self.tables[table].sets.get(name, {}) if table in self.tables else {}
        return {net: until for net, until in held.items() if until is None or until > self._now()}

    def _left(self, until: float | None) -> float | None:
        return None if until is None else until - self._now()
