"""The tables of the kernel program, one class each: knobs, bans, tolerance, vaccines, blocklist snapshots.

Each takes the descriptors of its maps and nothing else, so it works on pinned and on private ones alike. Changes are
in the kernel when the call returns. Filters in front of tables are plain bytes in shared memory (see bpf/shared.h).
"""

import mmap
import os
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bpf import abi, libbpf
from bpf.ban_rows import BanRows, rows_of_tables
from bpf.blocklist_image import ImageError, read_image
from bpf.dataplane import BadSubject, Ban, Budget, DataPlaneError, MapFull, Policy, Stance, Vaccine
from bpf.hashes import ban_slots, prefix_slots
from bpf.subjects import ROW, Subject, bannable_hosts, parse, parse_ban, text_of

_STANCES = {Stance.OBSERVE: 0, Stance.ENFORCE: 1, Stance.HARDENED: 2}
_TICK_NS = 1 << 20
SYN_PASS, SYN_DROP, SYN_COOKIE = 0, 1, 2  #: enum tg_syn_flood_answer
BURST_MAX = 4_000_000
TOLERANCE_MAX = 4096
#: Entries that are over and go in one go: less than a millisecond for a prefix that is to be banned meanwhile.
SWEPT_AT_ONCE = 256
CLOCK_MONOTONIC_COARSE = 6  #: linux/time.h; the time module of Python 3.11 has no name for it


def shared_memory(fd: int, dtype: np.dtype[Any], count: int, *, writable: bool = True) -> npt.NDArray[Any]:
    """A map's memory as an array: reading and writing it needs no system call."""
    size = -(-dtype.itemsize * count // mmap.PAGESIZE) * mmap.PAGESIZE
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    memory = mmap.mmap(fd, size, mmap.MAP_SHARED, protection)
    return np.frombuffer(memory, dtype, count)


class Knobs:
    """The page of knobs. A value is in force for the next packet."""

    def __init__(self, fd: int) -> None:
        self.page = shared_memory(fd, abi.KNOBS, 1)[0:1]

    def __getitem__(self, name: str) -> int:
        return int(self.page[name][0])

    def __setitem__(self, name: str, value: int) -> None:
        self.page[name][0] = value

    def prepare(self, policy: Policy) -> bool:
        """First use of fresh maps: choose the seed and the policy. Returns whether they were fresh."""
        if self["seed"]:
            return False
        self.set_policy(policy)
        self["seed"] = secrets.randbits(63) | 1
        return True

    def set_policy(self, policy: Policy) -> None:
        self["ban_ns"] = int(policy.ban_s * 1e9)
        self["incident_ns"] = int(policy.incident_s * 1e9)
        self["drop_malformed"] = policy.drop_malformed
        self["sample_bytes"] = policy.sample_bytes
        self["amplified_bytes"] = policy.amplified_bytes
        self["flow_idle_ticks"] = int(policy.flow_idle_s * 1e9) // _TICK_NS
        self["syn_flood_answer"] = SYN_DROP if policy.syn_flood_drops else SYN_PASS
        for index, name in enumerate(abi.BUDGETS):
            self.set_budget(index, getattr(policy, name))
        self["posture"] = _STANCES[policy.stance]

    def set_budget(self, index: int, budget: Budget) -> None:
        """Rates become 48.16 fixed-point milli-tokens per tick; a burst is at least one packet."""
        if budget.rate < 0 or not 0 <= budget.burst <= BURST_MAX:
            raise DataPlaneError(f"a budget of {budget.rate} per second with bursts of {budget.burst} is out of range")
        slot = self.page["budget"][0]
        slot["burst"][index] = max(budget.burst, 1) * 1000
        slot["refill"][index] = round(budget.rate * 1000 * _TICK_NS / 1e9 * 65536)

    def set_clock(self, jiffies: int, now_ns: int, tick_ns: int) -> None:
        self["clock_tick_ns"] = tick_ns
        self["clock_offset_ns"] = now_ns - jiffies * tick_ns


class BanTable:
    """Addresses and IPv6 /64s in a hash behind a filter; other prefixes in a small trie behind another.

    One thread may ``sweep`` (or ``refresh``) while another puts and deletes."""

    def __init__(self, hash_fd: int, filters_fd: int, trie_fd: int, prefix_filter_fd: int, knobs: Knobs) -> None:
        self._hash, self._trie, self._knobs = hash_fd, trie_fd, knobs
        self._filters = shared_memory(filters_fd, np.dtype(np.uint8), 2 * abi.FILTER_SLOTS).reshape(2, -1)
        self._prefix_filter = shared_memory(prefix_filter_fd, np.dtype(np.uint8), 2 * abi.PREFIX_SLOTS)
        self._stale = False  #: the filters still point at bans that were released
        self._prefixes = threading.Lock()  #: held for a few prefixes at a time
        self._marked: list[npt.NDArray[np.intp]] | None = None  #: filter slots set while a rebuild reads the trie

    def put(self, bans: Iterable[Ban]) -> int:
        wanted = [(parse_ban(ban.subject), ban) for ban in bans]
        hosts = [(subject, ban) for subject, ban in wanted if subject.is_host]
        prefixes = [(subject, ban) for subject, ban in wanted if not subject.is_host]
        done = self._put_hosts(*self._rows(hosts, abi.BAN_KEY)) if hosts else 0
        if prefixes:
            done += self._put_prefixes(*self._rows(prefixes, abi.PREFIX), done)
        return done

    def put_rows(self, rows: bytes, until_ns: int) -> int:
        """Hosts with one end, as ``bpf.subjects.ROW``: a third of a microsecond each."""
        wanted = np.frombuffer(rows, ROW)
        if not bannable_hosts(wanted).all():
            raise BadSubject("among many subjects is one that is no host, or that cannot be banned")
        keys, values = np.zeros(len(wanted), abi.BAN_KEY), np.zeros(len(wanted), abi.BAN)
        keys["addr"], keys["bits"] = wanted["addr"], wanted["bits"]
        values["until_ns"], values["reason"], values["made_by"] = until_ns, abi.REASON_NUMBERS["ban"], 1
        return self._put_hosts(keys, values)

    def _put_hosts(self, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> int:
        done = libbpf.put_many(self._hash, keys, values)
        self._filters[:, ban_slots(keys[:done], self._knobs["seed"])] = 1
        if done < len(keys):
            raise MapFull(f"the ban table is full: {done} of {len(keys)} were stored", done=done)
        return done

    def _put_prefixes(self, keys: npt.NDArray[Any], values: npt.NDArray[Any], before: int) -> int:
        """Each is stored and then marked in the filter: until then no packet is looked up there."""
        for index, key in enumerate(keys):
            with self._prefixes:
                try:
                    libbpf.put(self._trie, keys[index : index + 1], values[index : index + 1])
                except libbpf.KernelRefused as error:
                    done = before + index
                    raise MapFull("the table of banned prefixes is full", done=done, errno=error.errno) from error
                slots = _slots_of(key)
                self._prefix_filter[slots] = 1
                self._knobs["prefix_bans"] += 1  # at least as many as there are; the next rebuild counts
                if self._marked is not None:
                    self._marked.append(slots)
        return len(keys)

    def _rows(
        self, wanted: Sequence[tuple[Subject, Ban]], key: np.dtype[np.void]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        keys, values = np.zeros(len(wanted), key), np.zeros(len(wanted), abi.BAN)
        keys["addr"] = np.frombuffer(b"".join(s.addr for s, _ in wanted), np.uint8).reshape(-1, 16)
        keys["bits"] = [s.bits for s, _ in wanted]
        values["until_ns"] = [ban.until_ns for _, ban in wanted]
        numbers, fallback = abi.REASON_NUMBERS, abi.REASON_NUMBERS["ban"]
        values["reason"] = [numbers.get(ban.reason, fallback) for _, ban in wanted]
        values["made_by"] = [0 if ban.by_kernel else 1 for _, ban in wanted]
        values["packets"] = [ban.packets for _, ban in wanted]
        return keys, values

    def delete(self, subjects: Iterable[str]) -> int:
        """Filter bytes stay set until the next ``sweep``: a needless look at the tables, nothing worse."""
        gone = 0
        key, prefix = np.zeros(1, abi.BAN_KEY), np.zeros(1, abi.PREFIX)
        for subject in [parse(text) for text in subjects]:
            row = key if subject.is_host else prefix
            row["addr"][0] = np.frombuffer(subject.addr, np.uint8)
            row["bits"][0] = subject.bits
            gone += libbpf.delete(self._hash if subject.is_host else self._trie, row)
            self._stale = True
        return gone

    def read_all(self) -> list[Ban]:
        rows = self.read_rows()
        return [rows.ban(row) for row in range(len(rows))]

    def read_rows(self) -> BanRows:
        return rows_of_tables(
            [
                libbpf.read_all(self._hash, abi.BAN_KEY, abi.BAN),
                libbpf.read_all(self._trie, abi.PREFIX, abi.BAN),
            ]
        )

    def refresh(self) -> None:
        """Make both filters fit the tables: after a death between storing a ban and marking it, or after a move."""
        self._stale = False
        self._rebuild_filter()
        self._rebuild_prefix_filter()

    def sweep(self, now_ns: int) -> int:
        """Delete what is over, then clear the filters of what is gone.

        The program may renew a ban after it was read, so what a second look shows decides. The gap that is left
        between look and deletion is a microsecond, after which the program would ban the source again."""
        value = np.zeros(1, abi.BAN)
        until = value["until_ns"]
        gone = 0
        for fd, key_type in ((self._hash, abi.BAN_KEY), (self._trie, abi.PREFIX)):
            keys, values = libbpf.read_all(fd, key_type, abi.BAN)
            over = keys[(values["until_ns"] != 0) & (values["until_ns"] <= now_ns)]
            for start in range(0, len(over), SWEPT_AT_ONCE):
                with self._prefixes if fd == self._trie else nullcontext():
                    part = over[start : start + SWEPT_AT_ONCE]
                    gone += libbpf.delete_where(fd, part, value, lambda: 0 < until.item(0) <= now_ns)
        if gone or self._stale:
            self.refresh()
        return gone

    def _rebuild_filter(self) -> None:
        """Fill the filter that is not read, then turn the knob. Cleared before the bans are read, so none is missed."""
        spare = 1 - self._knobs["ban_filter"]
        self._filters[spare] = 0
        keys, _values = libbpf.read_all(self._hash, abi.BAN_KEY, abi.BAN)
        self._filters[spare, ban_slots(keys, self._knobs["seed"])] = 1
        self._knobs["ban_filter"] = spare

    def _rebuild_prefix_filter(self) -> None:
        """Set what is needed before clearing what is not; what is put meanwhile is marked here, too."""
        with self._prefixes:
            self._marked = []
        keys, _values = libbpf.read_all(self._trie, abi.PREFIX, abi.BAN)
        fresh = np.zeros(2 * abi.PREFIX_SLOTS, np.uint8)
        for key in keys:
            fresh[_slots_of(key)] = 1
        with self._prefixes:
            for slots in self._marked:
                fresh[slots] = 1
            self._prefix_filter |= fresh
            self._knobs["prefix_bans"] = len(keys) + len(self._marked)
            self._prefix_filter[:] = fresh
            self._marked = None


def _slots_of(key: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Filter slots of a row of the trie."""
    subject = Subject(key["addr"].tobytes(), int(key["bits"]))
    return np.asarray(prefix_slots(subject.addr, subject.bits, is_ip4=subject.is_ip4))


class Tolerance:
    """The allowlist."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read_all(self) -> list[str]:
        keys, _values = libbpf.read_all(self._fd, abi.PREFIX, np.dtype("<u8"))
        return [text_of(key["addr"].tobytes(), int(key["bits"])) for key in keys]

    def replace(self, prefixes: Sequence[str]) -> None:
        wanted = {parse(text) for text in prefixes}
        if len(wanted) > TOLERANCE_MAX:
            raise MapFull(f"{len(wanted)} tolerated prefixes are too many: at most {TOLERANCE_MAX}", done=0)
        standing = {parse(text) for text in self.read_all()}
        row, value = np.zeros(1, abi.PREFIX), np.zeros(1, "<u8")
        # Room first where both lists together would not fit; otherwise no entry of both is ever absent.
        spare = sorted(standing - wanted)
        while spare and len(standing) + len(wanted - standing) > TOLERANCE_MAX:
            standing.discard(gone := spare.pop())
            libbpf.delete(self._fd, self._fill(row, gone))
        for subject in wanted - standing:
            libbpf.put(self._fd, self._fill(row, subject), value)
        for subject in spare:
            libbpf.delete(self._fd, self._fill(row, subject))

    @staticmethod
    def _fill(row: npt.NDArray[Any], subject: Subject) -> npt.NDArray[Any]:
        row["addr"][0] = np.frombuffer(subject.addr, np.uint8)
        row["bits"][0] = subject.bits
        return row


class VaccineTable:
    """Fingerprints of payloads, behind a filter by destination port."""

    def __init__(self, fd: int, filter_fd: int, knobs: Knobs) -> None:
        self._fd, self._knobs = fd, knobs
        self._filter = shared_memory(filter_fd, np.dtype(np.uint8), 65_536)

    def put(self, vaccines: Iterable[Vaccine]) -> int:
        done = 0
        for vaccine in vaccines:
            if vaccine.proto not in (1, 6, 17, 58) or not 0 <= vaccine.dest_port <= 65_535:
                raise BadSubject(f"no vaccine for protocol {vaccine.proto} and port {vaccine.dest_port}")
            value = np.zeros(1, abi.VACCINE)
            value["until_ns"], value["id"], value["packets"] = vaccine.until_ns, vaccine.id, vaccine.packets
            try:
                libbpf.put(self._fd, self._key(vaccine), value)
            except libbpf.KernelRefused as error:
                self.refresh()
                raise MapFull("the table of vaccines is full", done=done, errno=error.errno) from error
            done += 1
        self.refresh()
        return done

    def delete(self, vaccines: Iterable[Vaccine]) -> int:
        gone = sum(libbpf.delete(self._fd, self._key(vaccine)) for vaccine in vaccines)
        self.refresh()
        return gone

    def read_all(self) -> list[Vaccine]:
        keys, values = libbpf.read_all(self._fd, abi.VACCINE_KEY, abi.VACCINE)
        return [
            Vaccine(
                int(key["proto"]),
                int(key["dest_port"]),
                int(key["fingerprint"]),
                int(value["until_ns"]),
                int(value["id"]),
                int(value["packets"]),
            )
            for key, value in zip(keys, values, strict=True)
        ]

    def sweep(self, now_ns: int) -> int:
        keys, values = libbpf.read_all(self._fd, abi.VACCINE_KEY, abi.VACCINE)
        over = (values["until_ns"] != 0) & (values["until_ns"] <= now_ns)
        gone = sum(libbpf.delete(self._fd, np.array([key], abi.VACCINE_KEY)) for key in keys[over])
        if gone:
            self.refresh()
        return gone

    @staticmethod
    def _key(vaccine: Vaccine) -> npt.NDArray[Any]:
        key = np.zeros(1, abi.VACCINE_KEY)
        key["fingerprint"], key["dest_port"], key["proto"] = vaccine.fingerprint, vaccine.dest_port, vaccine.proto
        return key

    def refresh(self) -> None:
        """Make the filter by port fit the table."""
        keys, _values = libbpf.read_all(self._fd, abi.VACCINE_KEY, abi.VACCINE)
        fresh = np.zeros(65_536, np.uint8)
        fresh[keys["dest_port"]] = 1
        self._filter |= fresh
        self._knobs["vaccines"] = len(keys)
        self._filter[:] = fresh


class SnapshotSlot:
    """One blocklist image, replaced whole: a packet is judged by the old one or by the new one."""

    def __init__(self, outer_fd: int, family: int) -> None:
        self._outer, self._family = outer_fd, family
        self._pages = abi.SNAPSHOT_PAGES if family == 4 else abi.SNAPSHOT6_PAGES

    def publish(self, path: Path) -> int:
        """Returns how many prefixes the image lists. Raises DataPlaneError for a file that is no such image."""
        try:
            image = read_image(path, self._family, self._pages)
        except ImageError as error:
            raise DataPlaneError(str(error), remedy="compile the feeds again: feeds reload") from error
        self.publish_pages(image.pages)
        return image.entries

    def publish_pages(self, pages: npt.NDArray[np.uint8]) -> None:
        inner = libbpf.create_array(f"snapshot{self._family}", abi.PAGE, self._pages)
        try:
            memory = shared_memory(inner, np.dtype(np.uint8), self._pages * abi.PAGE)
            flat = pages.reshape(-1)
            memory[: len(flat)] = flat
            libbpf.put(self._outer, np.zeros(1, "<u4"), np.array([inner], "<u4"))
        finally:
            os.close(inner)

    def clear(self) -> None:
        libbpf.delete(self._outer, np.zeros(1, "<u4"))

    def inner_id(self) -> int:
        """The kernel's number of the published image, 0 for none."""
        number = np.zeros(1, "<u4")
        with suppress(libbpf.KernelRefused):
            libbpf.find(self._outer, np.zeros(1, "<u4"), number)
        return int(number[0])


def jiffy_ns() -> int:
    """Nanoseconds per jiffy: the resolution of the coarse clock is one."""
    return round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * 1e9)
