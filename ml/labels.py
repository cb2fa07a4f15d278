"""Ground truth for an evaluation: which flows were attacks, and when each campaign ran.

``flow_labels.csv`` has one bidirectional flow per line (t_first, t_last, src, sport, dst, dport_or_icmp_type, proto,
pkts_fwd, pkts_bwd, label, family); ``attack_windows.csv`` one campaign per line (t_start, t_end, family, ...). Times
are seconds. Labels are used to *count*; no head, threshold or feature is computed from them.
"""

import csv
import ipaddress
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml.dataset import Table

BENIGN = "benign"
#: A snapshot may be taken this long after the flow's last packet (idle 15 s, close 2 s) and still belong to it.
SLACK_NS = 100_000_000


class LabelsError(ValueError):
    """A label file that cannot be read. The message names file, line and reason."""


@dataclass(frozen=True, slots=True)
class Campaign:
    family: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled flows: family by flow, and the flow that each row of a table belongs to (-1: none)."""

    family: NDArray[np.str_]
    flow_of_row: NDArray[np.int64]
    campaigns: tuple[Campaign, ...]

    @property
    def families(self) -> list[str]:
        return sorted(set(self.family.tolist()) - {BENIGN})


def read_labels(table: Table, flows_csv: Path, windows_csv: Path) -> Labels:
    """Match labelled flows to table rows by endpoints and time.

    A flow without any row counts as never seen: it stays in the denominator of its family's detection rate.
    Raises LabelsError.
    """
    family: list[str] = []
    spans: dict[bytes, list[tuple[int, int, int]]] = defaultdict(list)
    for line, row in enumerate(_rows(flows_csv), 2):
        try:
            proto = int(row["proto"])
            ends = sorted([_end(row["src"], proto, row["sport"]), _end(row["dst"], proto, row["dport_or_icmp_type"])])
            spans[bytes([proto]) + ends[0] + ends[1]].append((_ns(row["t_first"]), _ns(row["t_last"]), len(family)))
        except (KeyError, ValueError) as exc:
            raise LabelsError(f"{flows_csv} line {line}: {exc}") from exc
        family.append(row["family"])
    for known in spans.values():
        known.sort()
    flow_of_row = np.full(len(table), -1, "i8")
    for i, (key, first, last) in enumerate(
        zip(_row_keys(table), table.first_ns.tolist(), table.last_ns.tolist(), strict=True)
    ):
        flow_of_row[i] = _find(spans.get(key, []), first, last)
    return Labels(np.array(family), flow_of_row, tuple(_campaigns(windows_csv)))


def _find(spans: list[tuple[int, int, int]], first_ns: int, last_ns: int) -> int:
    """The labelled flow that was under way at the last packet of a snapshot; of several the latest."""
    best = -1
    for start, end, number in spans:
        if start - SLACK_NS <= last_ns and first_ns <= end + SLACK_NS:
            best = number
    return best


def _row_keys(table: Table) -> list[bytes]:
    keys = []
    for key in table.key:
        proto, ports = int(key["proto"]), key["port"].tolist()
        ends = sorted(_pack(key["addr"][side].tobytes(), proto, ports[side]) for side in (0, 1))
        keys.append(bytes([proto]) + ends[0] + ends[1])
    return keys


def _end(address: str, proto: int, port: str) -> bytes:
    parsed = ipaddress.ip_address(address)
    packed = b"\0" * 10 + b"\xff\xff" + parsed.packed if parsed.version == 4 else parsed.packed
    return _pack(packed, proto, int(port))


def _pack(address: bytes, proto: int, port: int) -> bytes:
    """ICMP endpoints have no port: only the addresses count there."""
    return address + (b"\0\0" if proto in (1, 58) else port.to_bytes(2, "big"))


def _campaigns(path: Path) -> list[Campaign]:
    found = []
    for line, row in enumerate(_rows(path), 2):
        try:
            found.append(Campaign(row["family"], _ns(row["t_start"]), _ns(row["t_end"])))
        except (KeyError, ValueError) as exc:
            raise LabelsError(f"{path} line {line}: {exc}") from exc
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise LabelsError(f"cannot read {path}: {exc}") from exc


def _ns(seconds: str) -> int:
    return round(float(seconds) * 1e9)
