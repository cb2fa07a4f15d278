"""nft: the tool that changes the nftables filter, and asks what the kernel made of it.

Changes go through the ``nft`` program, one transaction per call: the kernel takes all of it or nothing. A call costs
4 to 10 ms, so callers gather what belongs together. Questions about elements and generations go over netlink
(:mod:`actors.epidermis.nfnetlink`) and cost microseconds. Everything blocks; a cell calls it off its actor thread.

Failures are translated here: ``Unavailable`` when there is no nft, no permission or no nf_tables in the kernel (nothing
can work until an operator acts), ``ToolFailed`` when this one transaction was refused or did not end in time.
"""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from actors.core.errors import ToolFailed, Unavailable
from actors.epidermis.nfnetlink import NfTablesReader
from actors.epidermis.ruleset import Command, render, shape

#: Text of nft that is kept: it repeats the line it stumbles over, which may hold thousands of addresses.
_SAID_LIMIT = 2_000
_LISTING_LIMIT = 1 << 20
_INSTALL = "install the Debian package nftables"
_KERNEL = "use a kernel with CONFIG_NF_TABLES, or load the module nf_tables"
_PERMIT = "run the service as root, or give it CAP_NET_ADMIN"


@dataclass(frozen=True, slots=True)
class Held:
    """What the kernel holds for an address. ``expires_s``: seconds left, None when it stays."""

    key: str
    expires_s: float | None


class Filter(Protocol):
    """The nftables of one network namespace. Sets and tables are named without family: it is ``inet``."""

    def apply(self, commands: Sequence[Command], limit_s: float = 10.0) -> None:
        """One transaction: all of it or nothing. After ToolFailed for time the outcome is unknown."""

    def shape(self, table: str) -> tuple[str, ...] | None:
        """The table without contents (see ``ruleset.shape``); None when there is no such table."""

    def counters(self, table: str) -> dict[str, int]:
        """Packets by counter name."""

    def generation(self) -> int:
        """Grows by one with every transaction of anybody. Not when an element expires."""

    def held(self, table: str, name: str, address: str) -> Held | None:
        """What the set says of one address: itself, or in an interval set the interval around it."""

    def contents(self, table: str, name: str) -> list[Held]:
        """All of a hash set."""

    def close(self) -> None: ...


class NftFilter:
    """The real one. Belongs to the network namespace in which it was made and is called.

    ``generation`` is for one thread, everything else may be called from several."""

    def __init__(self, program: str = "nft") -> None:
        found = shutil.which(program)
        if found is None:
            raise Unavailable("there is no nft program on this host", remedy=_INSTALL)
        self._program = found
        self._asking = threading.Lock()
        try:
            self._watcher, self._reader = NfTablesReader(), NfTablesReader()
            self._watcher.generation()
        except PermissionError as exc:
            raise Unavailable("the kernel does not let this process manage nftables", remedy=_PERMIT) from exc
        except OSError as exc:
            raise Unavailable(f"this kernel has no nf_tables ({exc})", remedy=_KERNEL) from exc

    def apply(self, commands: Sequence[Command], limit_s: float = 10.0) -> None:
        self._run(["-f", "-"], render(commands), limit_s)

    def shape(self, table: str) -> tuple[str, ...] | None:
        try:
            return shape(self._run(["--stateless", "--terse", "list", "table", "inet", table]))
        except ToolFailed as exc:
            if "No such file or directory" in exc.said:
                return None
            raise

    def counters(self, table: str) -> dict[str, int]:
        try:
            listed = orjson.loads(self._run(["--json", "list", "counters", "table", "inet", table]))
        except (ToolFailed, orjson.JSONDecodeError):
            return {}
        entries = [entry["counter"] for entry in listed.get("nftables", []) if "counter" in entry]
        return {entry["name"]: entry["packets"] for entry in entries}

    def generation(self) -> int:
        return self._watcher.generation()

    def held(self, table: str, name: str, address: str) -> Held | None:
        try:
            with self._asking:
                element = self._reader.element(table, name, _packed(address))
        except OSError as exc:
            raise ToolFailed(f"cannot ask nftables about {address} in {name}: {exc}") from exc
        return Held(_text(element.key), element.expires_s) if element else None

    def contents(self, table: str, name: str) -> list[Held]:
        try:
            with self._asking:
                elements = self._reader.elements(table, name)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise ToolFailed(f"cannot read the nftables set {name}: {exc}") from exc
        return [Held(_text(element.key), element.expires_s) for element in elements if not element.end]

    def close(self) -> None:
        self._watcher.close()
        self._reader.close()

    def _run(self, args: list[str], script: str = "", limit_s: float = 5.0) -> str:
        """Run nft with its input and output in memory files: nothing to drain, nothing that can block."""
        with (
            os.fdopen(os.memfd_create("nft-in"), "w+b") as given,
            os.fdopen(os.memfd_create("nft-out"), "w+b") as out,
            os.fdopen(os.memfd_create("nft-err"), "w+b") as err,
        ):
            given.write(script.encode())
            given.flush()
            given.seek(0)
            try:
                code = subprocess.run(
                    [self._program, *args],
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    timeout=limit_s,
                    check=False,
                    env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
                ).returncode
            except subprocess.TimeoutExpired as exc:
                raise ToolFailed(f"nft did not finish within {limit_s:g} s and was ended") from exc
            except OSError as exc:
                raise Unavailable(f"{self._program} cannot be started: {exc}", remedy=_INSTALL) from exc
            out.seek(0)
            err.seek(0)
            if code == 0:
                return out.read(_LISTING_LIMIT).decode(errors="replace")
            raise _translated(code, err.read(_SAID_LIMIT).decode(errors="replace"))


def _translated(code: int, said: str) -> ToolFailed | Unavailable:
    if "Operation not permitted" in said:
        return Unavailable("the kernel does not let this process manage nftables", remedy=_PERMIT)
    if code < 0:
        return ToolFailed(f"nft was ended by signal {-code}", said=said)
    first = next((line for line in said.splitlines() if line.strip()), "no reason given")[:200]
    return ToolFailed(f"nft refused the transaction: {first}", said=said, remedy="see the log of the keratinocyte cell")


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _text(key: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(key) == 4 else socket.AF_INET6, key)
