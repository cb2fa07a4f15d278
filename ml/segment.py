"""A segment of the learning pool: what was shown of a stretch of traffic, row by row, as the model would have seen it.

Rows, not features: window features need every flow of a source in order, and a later version may define features anew.
What no feature reads is not kept: the client's port, TTL, window, MSS, sequence number, interface, VLAN, and of an IPv6
source its lower half. Addresses stay, because a source that is blamed within the day must be found and left out.

A file is a row of gzip members: first one line of JSON, then blocks of rows. What a crash cuts off is one block.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.flows import Snapshots
from ml.records import FLOW

ROW: Final = np.dtype(
    [
        ("flow", FLOW), ("at_ns", "<i8"), ("flow_id", "<i8"), ("new_packets", "<u4", 2), ("new_bytes", "<i8", 2),
        ("why", "u1"), ("fresh", "?"), ("final", "?"),
    ]
)  # fmt: skip
#: No segment is read further, whatever it claims to hold.
MAX_ROWS: Final = 262_144
MAX_HEADER_BYTES: Final = 65_536
#: Rows compress ten to one at the quickest level; more would cost the session cell more than disk is worth.
_LEVEL: Final = 1
_LATEST: Final = 1 << 62
_GZIP: Final = 31
_UNREAD: Final = ("window", "mss", "ttl", "syn_seq", "sampled_bytes")


class SegmentError(ValueError):
    """A file that is no segment, or of another version. The message says which file and why."""


@dataclass(frozen=True, slots=True)
class Header:
    """began_unix_s: wall clock; shift_ns: what makes a monotonic time of a row one of the wall clock; own: addresses of
    the node in text; kept: share of sources that were kept, 1 for all."""

    began_unix_s: float
    shift_ns: int
    own: tuple[str, ...] = ()
    kept: float = 1.0
    layout: str = ""


def layout() -> str:
    """Changes whenever a field of the rows does."""
    return hashlib.sha256(repr(ROW.descr).encode()).hexdigest()[:16]


def rows_of(shown: Snapshots, own_source: NDArray[np.bool_]) -> NDArray[Any]:
    """Snapshots as rows, without what no feature reads. own_source: bool[N], the node began the flow."""
    rows = np.zeros(len(shown), ROW)
    flow = rows["flow"]
    flow[:] = shown.flows
    flow["key"]["port"][:, 0] = flow["ifindex"] = flow["vlan"] = 0
    for name in _UNREAD:
        flow["side"][name] = 0
    strangers = np.flatnonzero((flow["key"]["family"] == 6) & ~own_source)
    flow["key"]["addr"][strangers, 0, 8:] = 0
    rows["at_ns"], rows["flow_id"], rows["why"] = shown.now_ns, shown.flow_id, shown.why
    rows["fresh"], rows["final"] = shown.fresh, shown.final
    rows["new_packets"], rows["new_bytes"] = shown.new_packets, shown.new_bytes
    return rows


def head(header: Header) -> bytes:
    """The beginning of a segment file."""
    return _member(json.dumps(asdict(header) | {"layout": layout()}).encode() + b"\n")


def block(rows: NDArray[Any]) -> bytes:
    """What is appended for some rows. About 2 ms for 500."""
    return _member(rows.tobytes())


def read(path: Path) -> tuple[Header, NDArray[Any]]:
    """All whole rows of a segment. Raises SegmentError."""
    raw = b""
    try:
        with gzip.open(path, "rb") as stream:
            header = _header(stream.readline(MAX_HEADER_BYTES), path)
            try:
                while len(raw) < MAX_ROWS * ROW.itemsize and (part := stream.read1(1 << 16)):
                    raw += part
            except EOFError:
                pass  # cut off by a crash: the rows before are good
    except (OSError, EOFError, zlib.error) as exc:
        raise SegmentError(f"{path} is no segment of a learning pool: {exc}") from exc
    rows = np.frombuffer(raw, ROW, min(len(raw) // ROW.itemsize, MAX_ROWS))
    at_ns = rows["at_ns"]
    if len(rows) and (at_ns[0] < 0 or at_ns[-1] >= _LATEST or (np.diff(at_ns) < 0).any()):
        raise SegmentError(f"{path} has rows out of order of time: it is broken, remove it")
    return header, rows


def looks(header: Header, rows: NDArray[Any]) -> Iterator[Snapshots]:
    """The rows as the snapshots they were made from, look by look; times are of the wall clock."""
    edges = np.flatnonzero(np.diff(rows["at_ns"])) + 1
    for part in np.split(rows, edges) if len(rows) else []:
        flows = part["flow"].copy()
        flows["last_ns"] += np.uint64(header.shift_ns)
        seen = flows["side"]["packets"] > 0
        for name in ("first_ns", "last_ns"):
            flows["side"][name] = np.where(seen, flows["side"][name] + np.uint64(header.shift_ns), 0)
        start = np.where(seen, flows["side"]["first_ns"], np.iinfo("u8").max).min(axis=1)
        yield Snapshots(
            now_ns=int(part["at_ns"][0]) + header.shift_ns,
            flows=flows,
            first_ns=start.astype("i8"),
            flow_id=part["flow_id"].copy(),
            why=part["why"].copy(),
            fresh=part["fresh"].copy(),
            final=part["final"].copy(),
            new_packets=part["new_packets"].astype("i8"),
            new_bytes=part["new_bytes"].copy(),
        )


def _member(data: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(data) + packer.flush()


def _header(line: bytes, path: Path) -> Header:
    try:
        raw = json.loads(line)
        header = Header(
            float(raw["began_unix_s"]), int(raw["shift_ns"]), tuple(map(str, raw["own"])), float(raw["kept"]),
            str(raw["layout"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError) as exc:
        raise SegmentError(f"{path} has no header: {exc}") from exc
    if header.layout != layout():
        raise SegmentError(f"{path} was written by another version, its rows cannot be read")
    if not 0 <= header.shift_ns < _LATEST:
        raise SegmentError(f"{path} has an impossible clock: {header.shift_ns}")
    return header
