"""EVE JSON: what the journal gets, as lines that other tools read. The first half is pure, ``LineFile`` writes.

``eve.json`` holds security events (``alert``, ``drop``, ``flow``, ``anomaly``) with the field names of Suricata's
schema and no others: what has no field of its own there goes into ``alert.metadata.tag``. ``journal.json`` beside it
holds the node's own life (postures, releases, tolerance, cells) in the same envelope with event types of its own. Both
may be rotated by anybody, with or without SIGHUP: a file that was moved away is begun anew. A full disk costs lines,
which are counted, and never leaves half a line.
"""

import ipaddress
import math
import os
import threading
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from actors.core import packed
from actors.core.messages import Anomaly, Entry
from actors.dermis.community_id import TCP, UDP, community_id

Line = tuple[str, dict[str, Any]]
#: An address that is nobody's; the source stands before all that other people have written.
_STAND_IN = "0.0.0.0"  # noqa: S104 — nothing listens here
EVE, JOURNAL = "eve.json", "journal.json"
#: Signature ids of local rules, by the convention of that field.
_FIRST_SID, _SIDS = 1_000_000, 999_999
_PROTOCOLS = {"tcp": ("TCP", TCP), "udp": ("UDP", UDP)}
_NAMES = {"icmp": "ICMP", "icmpv6": "IPv6-ICMP"}


def timestamp(at_unix_s: float) -> str:
    """``2026-11-23T08:45:14.070748+0000``: microseconds, offset without a colon."""
    known = at_unix_s if math.isfinite(at_unix_s) else 0.0
    return datetime.fromtimestamp(min(max(known, 0.0), 2e11), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f%z")


def lines(entry: Entry) -> list[Line]:
    """What an entry of the journal means to others: (file, record), none for what is of no use beyond the node."""
    if entry.kind in ("ban", "verdict"):
        return _alert(entry)
    if entry.kind == "session":
        return [(EVE, _flow(entry))]
    if entry.kind in ("posture", "tolerance", "release", "lifecycle", "vaccine", "fingerprint"):
        told = {name: value for name, value in entry.body.items() if isinstance(value, str | int | float | list)}
        subject = {"subject": entry.subject} if entry.subject else {}
        return [(JOURNAL, _envelope(entry.at_unix_s, entry.kind) | subject | {entry.kind: told})]
    return []


def of_many(entry: Entry) -> list[bytes]:
    """The encoded lines of a ban of many: one for each, by putting its address into the line of another."""
    subjects = packed.unpack(entry.subjects)
    hosts = [subject for subject in subjects if "/" not in subject]
    others = [replace(entry, subject=subject, subjects=b"") for subject in subjects if "/" in subject]
    made = [encode(record) for other in others for _, record in _alert(other)]
    for _, record in _alert(replace(entry, subject=_STAND_IN, subjects=b"")) if hosts else ():
        head, tail = encode(record).split(_STAND_IN.encode(), 1)
        made += [head + host.encode() + tail for host in hosts]
    return made


def cell_line(at_unix_s: float, cell: str, state: str) -> Line:
    """A cell has come or gone."""
    return JOURNAL, _envelope(at_unix_s, "cell") | {"cell": {"name": cell, "state": state}}


def anomaly_line(at_unix_s: float, felt: Anomaly) -> Line:
    """How strange the traffic was of late."""
    what = f"{felt.strange} of {felt.judged} conversations are strange, by {felt.by}"
    sieged = f"; flooded from many addresses: {', '.join(felt.sieged)}" if felt.sieged else ""
    return EVE, _envelope(at_unix_s, "anomaly") | {"anomaly": {"type": "stream", "event": what + sieged}}


def encode(record: dict[str, Any]) -> bytes:
    """One line."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE, default=str)


def _envelope(at_unix_s: float, event_type: str) -> dict[str, Any]:
    return {"timestamp": timestamp(at_unix_s), "event_type": event_type}


def _alert(entry: Entry) -> list[Line]:
    """A ban or a noted verdict; one that the kernel program made by itself is a drop, too."""
    body, source = entry.body, _source(entry.subject)
    blocked = entry.kind == "ban" and body.get("action") == "ban"
    origin, reflex = _text(body, "origin"), _text(body, "reflex")
    tags = [f"{name}: {body[name]}" for name in ("origin", "evidence", "by", "refused") if body.get(name)]
    tags += [f"until: {timestamp(_number(body, 'until_unix_s'))}"] if _number(body, "until_unix_s") else []
    tags += [] if source else [f"subject: {entry.subject}"]
    alert = {
        "action": "blocked" if blocked else "allowed",
        "gid": 1,
        "signature_id": _FIRST_SID + zlib.crc32(f"{origin}:{reflex}".encode()) % _SIDS,
        "rev": 1,
        "signature": _text(body, "reason") or entry.kind,
        "category": f"{origin or 'tegumentar'} {reflex}".strip(),
        "severity": 1 if blocked else 3,
        "metadata": {"tag": tags},
    }
    told: list[Line] = [(EVE, _envelope(entry.at_unix_s, "alert") | source | {"alert": alert})]
    if blocked and reflex:
        told.append((EVE, _envelope(entry.at_unix_s, "drop") | source | {"drop": {"reason": reflex}}))
    return told


def _flow(entry: Entry) -> dict[str, Any]:
    """A finished session; the first of each pair of figures is the initiator's."""
    body = entry.body
    packets, sizes = _pair(body, "packets"), _pair(body, "bytes")
    name = _text(body, "protocol")
    proto, number = _PROTOCOLS.get(name, (_NAMES.get(name, name.upper()), 0))
    age = _number(body, "lasted_s")
    record = _envelope(entry.at_unix_s, "flow") | {
        "src_ip": _text(body, "source"),
        "dest_ip": _text(body, "dest"),
        "proto": proto,
        "flow": {
            "pkts_toserver": packets[0],
            "pkts_toclient": packets[1],
            "bytes_toserver": sizes[0],
            "bytes_toclient": sizes[1],
            "start": timestamp(entry.at_unix_s - age),
            "end": timestamp(entry.at_unix_s),
            "age": int(age),
            "state": _text(body, "state") or "closed",
        },
    }
    if number:
        ports = int(_number(body, "source_port")), int(_number(body, "dest_port"))
        record |= {"src_port": ports[0], "dest_port": ports[1]}
        with suppress(ValueError):  # no addresses: the sensor told nonsense
            record["community_id"] = community_id(number, record["src_ip"], ports[0], record["dest_ip"], ports[1])
    return record


def _source(subject: str) -> dict[str, Any]:
    """The address of a single host; a prefix is no source address."""
    try:
        return {"src_ip": str(ipaddress.ip_address(subject))}
    except ValueError:
        return {}


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""


def _number(body: dict[str, Any], name: str) -> float:
    value = body.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _pair(body: dict[str, Any], name: str) -> tuple[int, int]:
    value = body.get(name)
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(item) is int for item in value):
        return value[0], value[1]
    return 0, 0


class LineFile:
    """One file of lines, appended whole or not at all, bounded by moving it to ``.1``. Belongs to one thread."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self._max_bytes, self._fd = path, max_bytes, -1
        self.lost = 0

    def append(self, written: Iterable[bytes]) -> None:
        """Never raises: lines that do not fit on the disk are counted in ``lost``."""
        block = list(written)
        if not block:
            return
        try:
            self._write(b"".join(block))
        except OSError:
            self.lost += len(block)
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _write(self, block: bytes) -> None:
        size = self._ready()
        if size and size + len(block) > self._max_bytes:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            size = self._ready()
        try:
            done = os.write(self._fd, block)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        if done < len(block):
            os.ftruncate(self._fd, size)
            raise OSError("the disk is full")

    def _ready(self) -> int:
        """Have the file open that the path names now; returns its size."""
        if self._fd >= 0:
            ours = os.fstat(self._fd)
            with suppress(FileNotFoundError):  # somebody moved it away: a new one is made below
                there = self.path.stat()
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return ours.st_size
            self.close()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        return os.fstat(self._fd).st_size


class Records:
    """Both files in one directory; from any thread."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._one_at_a_time = threading.Lock()
        self._files = {name: LineFile(directory / name, max_bytes) for name in (EVE, JOURNAL)}

    def write(self, told: Iterable[Line]) -> None:
        """Append each record to its file."""
        waiting: dict[str, list[bytes]] = {name: [] for name in self._files}
        for name, record in told:
            waiting[name].append(encode(record))
        with self._one_at_a_time:
            for name, block in waiting.items():
                self._files[name].append(block)

    def write_many(self, entry: Entry) -> None:
        """Append the lines of an entry about many subjects."""
        block = of_many(entry)
        with self._one_at_a_time:
            self._files[EVE].append(block)

    @property
    def lost(self) -> int:
        """Lines that no disk took."""
        return sum(file.lost for file in self._files.values())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
