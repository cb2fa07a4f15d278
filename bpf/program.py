"""The kernel program as loaded: its tables and entry points, made fresh or adopted from pins.

``open_program`` is the one door. With a directory it adopts what is pinned there when the very same build is there
already, otherwise it loads this build over the pinned tables of the same shape, or makes new ones and moves in what
tables of another shape held. Without a directory everything is private and vanishes with the process: tests, replay.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path

import numpy as np

from bpf import abi, bpffs, libbpf
from bpf.build import object_path
from bpf.dataplane import DataPlaneError, Policy
from bpf.maps import CLOCK_MONOTONIC_COARSE, Knobs, jiffy_ns

PROGRAMS = {
    "xdp": "tegumentar_xdp", "tc": "tegumentar_tc", "egress": "tegumentar_egress", "clock": "tegumentar_clock",
}  # fmt: skip
#: Tables that are worth keeping across versions when their keys and values have the same size.
MOVABLE = ("bans", "prefix_bans", "tolerance", "vaccines")


class EventPath(IntEnum):
    """How incidents come up from the kernel, best first."""

    RING = 0
    PERF = 1
    POLL = 2  #: not at all: counters tell


@dataclass(frozen=True, slots=True)
class Build:
    """What a program is compiled and sized to. The table sizes are powers of two where they are masks."""

    max_bans: int = 131_072
    source_sets: int = 65_536  #: of four sources each, 160 bytes a set
    flow_sets: int = 16_384  #: of four flows each, 1824 bytes a set
    meters: int = 65_536
    incidents: int = 16_384
    event_ring_bytes: int = 1 << 20
    sample_ring_bytes: int = 1 << 22
    live: bool = True  #: False: frames from loopback count too (tests, replay)
    replay: bool = False  #: True: time comes from the knobs
    sampling: bool = True
    cookies: bool = True  #: SYN cookies from the program itself
    egress: bool = True  #: the program for what leaves
    event_paths: tuple[EventPath, ...] = (EventPath.RING, EventPath.PERF, EventPath.POLL)
    refuse_maps: frozenset[str] = frozenset()  #: for tests: map types that this kernel shall be thought not to have

    def programs(self) -> dict[str, str]:
        """Entry point → its name in the object."""
        return {kind: name for kind, name in PROGRAMS.items() if self.egress or kind != "egress"}

    def sizes(self) -> dict[str, int]:
        for name in ("source_sets", "flow_sets", "meters", "incidents", "event_ring_bytes", "sample_ring_bytes"):
            value = getattr(self, name)
            if value & (value - 1) or value < 1:
                raise DataPlaneError(f"{name} = {value} is no power of two")
        return {
            "stats": possible_cpus(), "bans": self.max_bans, "sources": self.source_sets,
            "source_rows": self.source_sets * abi.SOURCE_WAYS, "meters": self.meters,
            "incidents": self.incidents, "flow_index": self.flow_sets, "flows": self.flow_sets * abi.FLOW_WAYS,
            "events": self.event_ring_bytes, "samples": self.sample_ring_bytes,
        }  # fmt: skip

    def constants(self) -> dict[str, int]:
        return {
            "tg_live": self.live, "tg_replay": self.replay, "tg_sampling": self.sampling, "tg_cookies": self.cookies,
            "tg_event_path": self.event_paths[0], "tg_source_mask": self.source_sets - 1,
            "tg_meter_mask": self.meters - 1, "tg_incident_mask": self.incidents - 1,
            "tg_flow_mask": self.flow_sets - 1,
        }  # fmt: skip


@dataclass(slots=True)
class Program:
    """Descriptors of one loaded program. ``fresh``: its tables are new. ``refused``: what the kernel would not have."""

    maps: dict[str, int]
    entries: dict[str, int]
    event_path: EventPath
    directory: Path | None
    build: str
    fresh: bool
    adopted: bool
    refused: dict[str, str] = field(default_factory=dict)
    loader: str = "libbpf"  #: or ``bcc``

    def close(self) -> None:
        for fd in (*self.maps.values(), *self.entries.values()):
            with suppress(OSError):
                os.close(fd)
        self.maps.clear()
        self.entries.clear()


def possible_cpus() -> int:
    """CPUs that may ever come up: the program indexes its counters by CPU number."""
    try:
        text = Path("/sys/devices/system/cpu/possible").read_text().strip()
        return int(text.replace(",", "-").rsplit("-", 1)[-1]) + 1
    except (OSError, ValueError):
        return os.cpu_count() or 1


def build_hash(image: bytes, build: Build) -> str:
    digest = hashlib.sha256(image)
    digest.update(repr((sorted(build.sizes().items()), sorted(build.constants().items()))).encode())
    return digest.hexdigest()[:16]


def schema_hash(build: Build) -> str:
    """Names the shape of all pinned tables: layouts and sizes."""
    layouts = [(name, repr(getattr(abi, name))) for name in abi.STRUCTS]
    return hashlib.sha256(repr((layouts, sorted(build.sizes().items()))).encode()).hexdigest()[:8]


def open_program(build: Build, bpf_dir: Path | None = None, policy: Policy | None = None) -> Program:
    """Raises DataPlaneError when the kernel refuses the program in every form."""
    try:
        image = object_path().read_bytes()
    except OSError as error:
        raise DataPlaneError(f"the compiled kernel program is not at {object_path()}", remedy="make bpf") from error
    if bpf_dir is not None:
        bpffs.ensure(bpf_dir)
    abi.learn(None)
    refused: dict[str, str] = {}
    attempt = build
    while True:
        try:
            program = _adopt(image, attempt, bpf_dir) or _load(image, attempt, bpf_dir)
            break
        except libbpf.KernelRefused as error:
            if not _set_aside_what_does_not_fit(attempt, error, bpf_dir):
                attempt = _without(attempt, error, refused)
    program.refused = refused
    settle(program, bpf_dir, policy)
    return program


def settle(program: Program, bpf_dir: Path | None, policy: Policy | None) -> None:
    """What a program needs before its first packet: policy and seed in new tables, the clock, what old tables held."""
    program.fresh = Knobs(program.maps["knobs"]).prepare(policy or Policy())
    _set_clock(program)
    if program.fresh and bpf_dir is not None:
        _move_in(program, bpf_dir)


def _set_aside_what_does_not_fit(build: Build, error: libbpf.KernelRefused, bpf_dir: Path | None) -> bool:
    """Pinned tables that bear our names but are not ours make room; what they hold may still be moved in. False when
    they were not the cause."""
    if bpf_dir is None or "reuse pinned map" not in error.said:
        return False
    directory = bpf_dir / f"v{schema_hash(build)}"
    aside = directory.with_name(f"{directory.name}_misfit")
    bpffs.remove_directory(aside)
    directory.rename(aside)
    return True


def keep_pins(program: Program) -> int:
    """Pin again what somebody unpinned, so that the next life finds it. Returns how many pins were missing."""
    if program.directory is None:
        return 0
    wanted = {program.directory / name: fd for name, fd in program.maps.items()}
    wanted |= {program.directory / f"prog_{kind}_{program.build}": fd for kind, fd in program.entries.items()}
    missing = {path: fd for path, fd in wanted.items() if not path.exists()}
    if missing:
        bpffs.ensure(program.directory)
        for path, fd in missing.items():
            libbpf.pin(fd, path)
    return len(missing)


def _without(build: Build, error: libbpf.KernelRefused, refused: dict[str, str]) -> Build:
    """The build that does without what this kernel refused, as libbpf named it; else the error again."""
    paths = build.event_paths
    if build.egress and f"'{PROGRAMS['egress']}'" in error.said:
        refused["egress"] = str(error)
        return replace(build, egress=False)
    if build.cookies and any(helper in error.said for helper in ("syncookie", "skc_lookup", "sk_release")):
        refused["syn_cookies"] = str(error)
        return replace(build, cookies=False)
    if build.sampling and ("'samples'" in error.said or "load_bytes" in error.said):
        refused["samples"] = str(error)
        return replace(build, sampling=False)
    if len(paths) > 1 and ("'events'" in error.said or "'events_perf'" in error.said):
        refused[paths[0].name.lower()] = str(error)
        return replace(build, event_paths=paths[1:], sampling=build.sampling and paths[1] is EventPath.RING)
    raise error


def _unused_maps(build: Build) -> tuple[str, ...]:
    """Maps that this build does without: those of the event paths that are not taken."""
    unused = {"events_perf"} if build.event_paths[0] is EventPath.RING else {"events"}
    if build.event_paths[0] is EventPath.POLL:
        unused.add("events_perf")
    if not build.sampling:
        unused.add("samples")
    return tuple(sorted(unused))


def _adopt(image: bytes, build: Build, bpf_dir: Path | None) -> Program | None:
    """The same build, complete, from its pins; None when anything is missing."""
    if bpf_dir is None:
        return None
    directory, name = bpf_dir / f"v{schema_hash(build)}", build_hash(image, build)
    entries: dict[str, int] = {}
    maps: dict[str, int] = {}
    program = Program(maps, entries, build.event_paths[0], directory, name, fresh=False, adopted=True)
    try:
        for kind in build.programs():
            entries[kind] = libbpf.get_pinned(directory / f"prog_{kind}_{name}")
        for map_name in _pinnable(image, build):
            maps[map_name] = libbpf.get_pinned(directory / map_name)
    except libbpf.KernelRefused:
        program.close()
        return None
    return program


def _pinnable(image: bytes, build: Build) -> list[str]:
    opened = libbpf.BpfObject(image, "tegumentar", bpffs.STANDARD_MOUNT)
    try:
        return [name for name in opened.map_names() if "." not in name and name not in _unused_maps(build)]
    finally:
        opened.close()


def _load(image: bytes, build: Build, bpf_dir: Path | None) -> Program:
    directory = None if bpf_dir is None else bpf_dir / f"v{schema_hash(build)}"
    if directory is not None:
        bpffs.ensure(directory)
    name = build_hash(image, build)
    opened = libbpf.BpfObject(image, "tegumentar", directory or bpffs.STANDARD_MOUNT)
    try:
        opened.set_constants(build.constants(), abi.object_types().variables(".rodata"))
        for map_name, size in build.sizes().items():
            opened.resize(map_name, size)
        wanted = [n for n in opened.map_names() if "." not in n and n not in _unused_maps(build)]
        for map_name in _unused_maps(build):
            opened.leave_out(map_name)
        for symbol in set(PROGRAMS.values()) - set(build.programs().values()):
            opened.skip_program(symbol)
        for map_name in wanted:
            if map_name in build.refuse_maps:
                opened.spoil(map_name)
            if directory is not None:
                opened.pin_to(map_name, directory / map_name)
        opened.load()
        maps = {map_name: opened.map_fd(map_name) for map_name in wanted}
        entries = {kind: opened.program_fd(symbol) for kind, symbol in build.programs().items()}
    finally:
        opened.close()
    program = Program(maps, entries, build.event_paths[0], directory, name, fresh=False, adopted=False)
    if directory is not None:
        for kind, fd in entries.items():
            bpffs.unpin(directory / f"prog_{kind}_{name}")
            libbpf.pin(fd, directory / f"prog_{kind}_{name}")
    return program


def _set_clock(program: Program) -> None:
    """Measure how far jiffies are from CLOCK_MONOTONIC, within one jiffy."""
    runner = libbpf.TestRunner(program.entries["clock"])
    tick = jiffy_ns()
    for _attempt in range(50):
        before = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
        runner.run(bytes(64))
        if time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) == before:
            break
    jiffies = int(np.frombuffer(runner.out.raw[:8], "<u8")[0])
    Knobs(program.maps["knobs"]).set_clock(jiffies, before, tick)


def _move_in(program: Program, bpf_dir: Path) -> None:
    """Carry over what tables of another shape hold: bans, tolerance, vaccines, and the published blocklists.

    The keys and values of these tables are frozen; one of another size is left behind."""
    for old in sorted(bpf_dir.glob("v*")):
        if old == program.directory or not old.is_dir():
            continue
        for name in MOVABLE:
            with suppress(libbpf.KernelRefused):
                _copy_table(old / name, program.maps[name])
        for name in ("snapshot", "snapshot6"):
            with suppress(libbpf.KernelRefused):
                _copy_snapshot(old / name, program.maps[name])
        with suppress(libbpf.KernelRefused):
            _copy_policy(old / "knobs", program.maps["knobs"])


#: Knobs that say what is wanted; the others describe the tables themselves.
_POLICY_KNOBS = ("posture", "drop_malformed", "ban_ns", "incident_ns", "sample_bytes", "amplified_bytes",
                 "flow_idle_ticks", "syn_flood_answer", "budget")  # fmt: skip


def _copy_policy(old_path: Path, new_fd: int) -> None:
    old_fd = libbpf.get_pinned(old_path)
    try:
        if libbpf.map_info(old_fd).value_size == abi.KNOBS.itemsize:
            old, new = Knobs(old_fd), Knobs(new_fd)
            for name in _POLICY_KNOBS:
                new.page[name][0] = old.page[name][0]
    finally:
        os.close(old_fd)


def _copy_table(old_path: Path, new_fd: int) -> None:
    old_fd = libbpf.get_pinned(old_path)
    try:
        old, new = libbpf.map_info(old_fd), libbpf.map_info(new_fd)
        if (old.key_size, old.value_size) == (new.key_size, new.value_size):
            key, value = np.dtype(f"V{old.key_size}"), np.dtype(f"V{old.value_size}")
            keys, values = libbpf.read_all(old_fd, key, value)
            if len(keys):
                libbpf.put_many(new_fd, keys, values)
    finally:
        os.close(old_fd)


def _copy_snapshot(old_path: Path, new_fd: int) -> None:
    """The image itself stays where it is: the new outer map gets a reference to it."""
    old_fd = libbpf.get_pinned(old_path)
    try:
        number = np.zeros(1, "<u4")
        if libbpf.find(old_fd, np.zeros(1, "<u4"), number) and number[0]:
            inner = libbpf.map_by_id(int(number[0]))
            try:
                libbpf.put(new_fd, np.zeros(1, "<u4"), np.array([inner], "<u4"))
            finally:
                os.close(inner)
    finally:
        os.close(old_fd)


def retire_others(program: Program, links: Mapping[str, int]) -> None:
    """Remove pins of other builds and other shapes once no link runs them any more.

    links: pin → number of the program that hangs there."""
    if program.directory is None:
        return
    ours = {libbpf.program_id(fd) for fd in program.entries.values()}
    if any(number not in ours for number in links.values()):
        return
    for path in list(program.directory.glob("prog_*")):
        if not path.name.endswith(program.build):
            bpffs.unpin(path)
    for old in program.directory.parent.glob("v*"):
        if old != program.directory:
            bpffs.remove_directory(old)
