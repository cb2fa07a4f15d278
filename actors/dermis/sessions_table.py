"""The live flow table, and what the host says of itself: opened as root, read afterwards without any privilege."""

import errno
import mmap
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from bpf import libbpf
from bpf.dataplane import DataPlaneError
from bpf.flow_table import FEW, FlowTable
from ml.records import FLOW, RecordsError, check

if TYPE_CHECKING:
    from actors.dermis.sessions import Host
    from ml.meter import Tick

_LOOK_AGAIN_S: Final = 0.05
_CLIENT_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RTM_GETADDR, _DUMP_REQUEST, _NLMSG_ERROR, _NLMSG_DONE = 22, 0x301, 2, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
#: More addresses than this no host has; the dump is read no further.
_DUMP_LIMIT: Final = 4 * 1024 * 1024


class LiveFlows(FlowTable):
    """The kernel's flow table as ticks. A record may grow while it is read, and rarely change hands; what comes of that
    is one odd figure in one look, which the rules and the model take in their stride."""

    def __init__(self, index_fd: int, records_fd: int) -> None:
        """Raises RecordsError when the records are of another version."""
        super().__init__(index_fd, records_fd)
        check(self.copies(np.zeros(0, "i8")))
        self._words = self._tags.view("<u8").reshape(-1)
        self._stamp, self._alive = 0, True

    def quiet(self) -> bool:
        """Nothing was said since the last question, and at the last tick nobody was alive: 30 us, instead of a look.

        The index holds the time of each flow's last packet, so its sum changes with whatever comes."""
        before, self._stamp = self._stamp, int(self._words.sum())
        if self._stamp != before:
            self._alive = True
        return not self._alive

    def spoken(self, now_ns: int) -> bool:
        """Whether anybody lives in it but neighbours who announce themselves, as they do on every link."""
        slots = self._living(now_ns)
        return len(slots) > FEW or not _ANNOUNCED.issuperset(self.copies(slots)["key"]["proto"].tolist())

    def tick(self, now_ns: int) -> "Tick":
        """Flows that spoke within the time after which one counts as over. now_ns: CLOCK_MONOTONIC.

        While few flows live, their records are copied into an empty table, of which only those pages are real."""
        from ml.meter import Tick

        slots = self._living(now_ns)
        if len(slots) > FEW:
            return Tick(now_ns, check(self.mapped()), slots)
        room = mmap.mmap(-1, self.capacity * FLOW.itemsize)
        room.madvise(mmap.MADV_NOHUGEPAGE)
        table = np.frombuffer(room, FLOW)
        table[slots] = check(self.copies(slots))
        return Tick(now_ns, table, slots)

    def _living(self, now_ns: int) -> NDArray[np.int64]:
        live = self._tags["hash"] != 0
        age = np.uint32(now_ns >> 20 & 0x3FFFFFFF) - (self._tags["seen"] >> np.uint32(2))
        live &= (age + np.uint32(_AHEAD_TICKS) & np.uint32(0x3FFFFFFF)) < np.uint32((OVER_NS >> 20) + 2 * _AHEAD_TICKS)
        slots = self.slots(live)
        self._alive = len(slots) > 0
        return slots


#: A flow that was silent so long is over; as long as ml.meter shows one.
OVER_NS: Final = 20_000_000_000
#: IGMP and ICMPv6.
_ANNOUNCED: Final = frozenset({2, 58})
#: The program's clock lags by up to a jiffy, and a packet may come while we look.
_AHEAD_TICKS: Final = 16


@dataclass(frozen=True, slots=True)
class NoTable:
    """Why there is nothing to look at, in words. absent: no such pin, so one may still come."""

    reason: str
    absent: bool


def open_live_flows(bpf_dir: Path, patience_s: float) -> LiveFlows | NoTable:
    """The pinned table of the shape in use, waiting a moment for it to appear; only root waits, and only root may."""
    deadline = time.monotonic() + (patience_s if os.geteuid() == 0 else 0.0)
    while isinstance(found := _open(bpf_dir), NoTable) and found.absent and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
    return found


def _open(bpf_dir: Path) -> LiveFlows | NoTable:
    index = _newest(bpf_dir)
    if index is None:
        return NoTable(f"there is no flow table of the kernel program in {bpf_dir}", absent=True)
    fds: list[int] = []
    try:
        fds += [libbpf.get_pinned(index), libbpf.get_pinned(index.with_name("flows"))]
        return LiveFlows(*fds)  # it keeps what it needs
    except (DataPlaneError, RecordsError, OSError) as exc:
        unfinished = getattr(exc, "errno", None) == errno.ENOENT  # pins are made one after the other
        return NoTable(f"the flow table in {index.parent} cannot be read: {exc}", absent=unfinished)
    finally:
        for fd in fds:
            os.close(fd)


def read_host() -> "Host":
    """Addresses and client ports of the network namespace this process lives in. What cannot be read stays unknown."""
    from actors.dermis.sessions import Host
    from ml.own import parse_own

    try:
        low, high = map(int, _CLIENT_PORTS.read_text().split())
    except (OSError, ValueError):
        return Host(parse_own(own_addresses()))
    return Host(parse_own(own_addresses()), (low, high))


def own_addresses() -> list[str]:
    """Every address of this host in text, asked of the kernel over rtnetlink; empty when it does not say."""
    request = struct.pack("=IHHII", 17, _RTM_GETADDR, _DUMP_REQUEST, 1, 0) + b"\0"
    answer = b""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(1.0)
            kernel.send(request.ljust(20, b"\0"))
            while len(answer) < _DUMP_LIMIT:
                part = kernel.recv(65536)
                answer += part
                if struct.unpack_from("=H", part, 4)[0] in (_NLMSG_DONE, _NLMSG_ERROR):
                    break
    except OSError:
        return []
    return addresses_in(answer)


def addresses_in(answer: bytes) -> list[str]:
    """The addresses of an RTM_GETADDR dump. Stops at the first thing that is no such message."""
    found, offset = set(), 0
    while offset + 24 <= len(answer):
        length, kind = struct.unpack_from("=IH", answer, offset)
        if length < 24 or offset + length > len(answer) or kind in (_NLMSG_DONE, _NLMSG_ERROR):
            break
        family, at, named = answer[offset + 16], offset + 24, {}
        while at + 4 <= offset + length:
            size, name = struct.unpack_from("=HH", answer, at)
            if size < 4:
                break
            named[name] = answer[at + 4 : at + size]
            at += (size + 3) & ~3
        packed = named.get(_IFA_LOCAL) or named.get(_IFA_ADDRESS) or b""
        if (family, len(packed)) in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            found.add(socket.inet_ntop(family, packed))
        offset += (length + 3) & ~3
    return sorted(found)


def _newest(bpf_dir: Path) -> Path | None:
    """The index of the shape in use; an older shape may lie beside it until the move to the new one is over."""
    try:
        return max(bpf_dir.glob("v*/flow_index"), key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None
