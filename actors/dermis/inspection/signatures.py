"""Signatures in YAML: what they may say, how a file of them is read, and how each proves itself on its own samples.
Pure.

    - name: log4shell-lookup                # unique; letters, digits, dashes
      pattern: '(?i)\\$\\{jndi:(ldap|rmi|dns)' # a regular expression over bytes, as the multi-pattern engine takes it
      severity: critical                    # low, medium, high, critical
      action: ban                           # ban, throttle, observe: what is proposed; policy decides
      protocols: [tcp]                      # tcp, udp
      ports: [80, 8080]                     # of the server; empty: every port
      vaccinate: true                       # a packet that begins with it may be dropped from everybody; usually false
      hit: ['GET /?x=${jndi:ldap://a/b}']   # at least one; each must be found
      miss: ['GET /?x=jndi']                # at least one; none may be found

A file that is no YAML, or an entry that is not as above, is reported with file, name and reason and left out; the
others stay. Samples are text in which ``\\x00`` to ``\\xff`` (in YAML's double quotes) stand for bytes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FILE_MAX = 1 << 20
PATTERN_MAX = 2_048
SIGNATURES_MAX = 20_000
SEVERITIES = {"low": 0.3, "medium": 0.6, "high": 0.85, "critical": 1.0}  #: name → how sure a verdict is
ACTIONS = ("ban", "throttle", "observe")
PROTOCOLS = {"tcp": 6, "udp": 17}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_LOOKAROUND = re.compile(r"\(\?[=!<]")
_OPTIONAL = {"ports", "vaccinate"}
_KEYS = {"name", "pattern", "severity", "action", "protocols", "hit", "miss"} | _OPTIONAL


class BadSignature(ValueError):  # noqa: N818 - named for what it says
    """The entry is not as it must be. ``str()`` is the reason in one sentence."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature. protocols are numbers; ports empty means all. hit and miss are its samples.

    vaccinate: what it finds at the beginning of a packet may be dropped from everybody, in the kernel (vaccination.py).
    node: who taught it; empty for what lies in files of this node."""

    name: str
    pattern: bytes
    severity: str
    action: str
    protocols: frozenset[int]
    ports: frozenset[int]
    hit: tuple[bytes, ...] = ()
    miss: tuple[bytes, ...] = ()
    file: str = ""
    vaccinate: bool = False
    node: str = ""

    @property
    def score(self) -> float:
        return SEVERITIES[self.severity]

    def applies(self, proto: int, server_port: int) -> bool:
        return proto in self.protocols and (not self.ports or server_port in self.ports)


@dataclass(frozen=True, slots=True)
class Problem:
    """What was left out and why."""

    file: str
    name: str
    reason: str


@dataclass(slots=True)
class Shelf:
    """What came of all files."""

    signatures: list[Signature] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_folders(folders: Iterable[Path]) -> Shelf:
    """Every ``*.yaml`` in these folders, in order of name. A folder that cannot be read is a problem, not an error."""
    shelf = Shelf()
    for folder in folders:
        try:
            paths = sorted(folder.glob("*.yaml"))
            if not paths:
                folder.stat()
        except OSError as error:
            shelf.problems.append(Problem(str(folder), "", f"the folder cannot be read: {error.strerror}"))
            continue
        for path in paths:
            read_file(path, shelf)
    return shelf


def read_file(path: Path, shelf: Shelf) -> None:
    """Add the signatures of one file to the shelf, or the problem that it cannot be read."""
    try:
        text = _file_text(path)
    except OSError as error:
        shelf.problems.append(Problem(path.name, "", f"the file cannot be read: {error.strerror}"))
    except (UnicodeDecodeError, BadSignature) as error:
        shelf.problems.append(Problem(path.name, "", str(error)))
    else:
        read_text(text, path.name, shelf)


def _file_text(path: Path) -> str:
    if path.stat().st_size > FILE_MAX:
        raise BadSignature(f"the file is larger than {FILE_MAX} bytes")
    return path.read_text(encoding="utf-8")


def read_text(text: str, file: str, shelf: Shelf) -> None:
    """Add the signatures of one file to the shelf."""
    import yaml  # most processes never read a signature

    try:
        loaded = yaml.load(text, _loader())  # noqa: S506 — a safe loader, and a stricter one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        shelf.problems.append(Problem(file, "", "it is no YAML: " + " ".join(str(error).split())[:300]))
        return
    if not isinstance(loaded, list):
        shelf.problems.append(Problem(file, "", "it is no list of signatures"))
        return
    known = {signature.name for signature in shelf.signatures}
    for number, entry in enumerate(loaded, 1):
        named = entry.get("name", "") if isinstance(entry, dict) else ""
        name = named if isinstance(named, str) else ""
        try:
            signature = _signature(entry, file)
            _admit(signature, known)
        except BadSignature as error:
            shelf.problems.append(Problem(file, name[:64] or f"entry {number}", str(error)))
            continue
        known.add(signature.name)
        shelf.signatures.append(signature)


@cache
def _loader() -> Any:
    """Like ``yaml.SafeLoader``, but without aliases: a few lines of them can mean more than fits into any memory."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not understood")
            return super().compose_node(parent, index)

    return Loader


def _admit(signature: Signature, known: set[str]) -> None:
    if signature.name in known:
        raise BadSignature("another signature has this name")
    if len(known) >= SIGNATURES_MAX:
        raise BadSignature(f"there are more than {SIGNATURES_MAX} signatures")


def _signature(entry: Any, file: str) -> Signature:
    if not isinstance(entry, dict):
        raise BadSignature("the entry is no map of keys and values")
    if unknown := set(map(str, entry)) - _KEYS:
        raise BadSignature(f"the key {min(unknown)!r} is unknown")
    if missing := _KEYS - _OPTIONAL - set(entry):
        raise BadSignature(f"the key {min(missing)!r} is missing")
    name, pattern = entry["name"], entry["pattern"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadSignature("the name must be 1 to 64 small letters, digits and dashes")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= PATTERN_MAX:
        raise BadSignature(f"the pattern must be text of 1 to {PATTERN_MAX} characters")
    severity, action = entry["severity"], entry["action"]
    if not isinstance(severity, str) or severity not in SEVERITIES:
        raise BadSignature(f"the severity must be one of {', '.join(SEVERITIES)}")
    if action not in ACTIONS:
        raise BadSignature(f"the action must be one of {', '.join(ACTIONS)}")
    protocols = _listed(entry, "protocols")
    if not protocols or not all(isinstance(one, str) and one in PROTOCOLS for one in protocols):
        raise BadSignature("protocols must be a list of tcp and udp")
    ports = _listed(entry, "ports")
    if not all(type(port) is int and 0 < port < 65_536 for port in ports):
        raise BadSignature("ports must be a list of numbers from 1 to 65535")
    vaccinate = entry.get("vaccinate", False)
    if not isinstance(vaccinate, bool):
        raise BadSignature("vaccinate must be true or false")
    if vaccinate and _LOOKAROUND.search(pattern):
        raise BadSignature("a signature that vaccinates may not look ahead or behind: the kernel cannot")
    return Signature(
        name=name,
        pattern=_bytes(pattern, "pattern"),
        severity=severity,
        action=action,
        protocols=frozenset(PROTOCOLS[one] for one in protocols),
        ports=frozenset(ports),
        hit=_samples(entry, "hit"),
        miss=_samples(entry, "miss"),
        file=file,
        vaccinate=vaccinate,
    )


def _listed(entry: dict[str, Any], key: str) -> list[Any]:
    value = entry.get(key, [])
    if not isinstance(value, list) or len(value) > 256:
        raise BadSignature(f"{key} must be a list of at most 256")
    return value


def _samples(entry: dict[str, Any], key: str) -> tuple[bytes, ...]:
    samples = _listed(entry, key)
    if not samples or not all(isinstance(one, str) and len(one) <= 65_536 for one in samples):
        raise BadSignature(f"{key} must be a list of at least one text: a signature without a sample proves nothing")
    return tuple(_bytes(one, key) for one in samples)


def _bytes(text: str, key: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise BadSignature(f"{key} holds a character that is no single byte; write its bytes as \\x..") from error
