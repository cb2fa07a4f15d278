"""The second loader: BCC compiles the same core from source on the node, where the compiled object cannot be used.

What it makes is what ``bpf.program`` works with: descriptors of tables and entry points, adopted from their pins where
the same build is there already, so that it costs a compilation (two seconds) only once. The compiler works in a process
of its own, which hands the descriptors over and ends: LLVM's 120 MB never belong to the cell, and a crash in it is a
sentence in its status. BCC asks for a kernel's headers; the program uses none of them, so bpf/bcc/ stands in for them.

The program is bpf/reflex_arc.bcc.c: the whole core, on every hook.
"""

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from bpf import abi, bpffs, libbpf
from bpf.btf import Btf, BtfError
from bpf.dataplane import DataPlaneError, Policy
from bpf.program import Build, EventPath, Program, keep_pins, settle

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "reflex_arc.bcc.c"
HEADERS = HERE / "bcc"
#: Debian's package installs here, where a virtual environment does not look.
DISTRIBUTION = Path("/usr/lib/python3/dist-packages")
MAPS = (
    "knobs", "stats", "bans", "ban_filters", "prefix_bans", "prefix_filter", "tolerance", "vaccines", "vaccine_filter",
    "sources", "source_rows", "meters", "cpu_meters", "incidents", "flow_index", "flows", "carriers", "sample_rooms",
    "event_rooms", "reflex_rooms", "snapshot", "snapshot6",
)  # fmt: skip
LIMIT_S = 120.0
REMEDY = "apt-get install python3-bpfcc, or make bpf"
_PIECE = 65_536


class BccUnusable(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """BCC is not here, or did not bring the program into the kernel. ``said``: the compiler's and verifier's words."""

    def __init__(self, message: str, *, said: str = "", remedy: str = REMEDY) -> None:
        super().__init__(message, remedy=remedy)
        self.said = said


def missing() -> str:
    """Why BCC cannot be tried, or nothing. Imports nothing: the library alone takes 100 MB."""
    if not SOURCE.exists():
        return f"the source of the kernel program is not at {SOURCE}"
    ours = importlib.util.find_spec("bcc.libbcc") if importlib.util.find_spec("bcc") else None
    if ours is None and not (DISTRIBUTION / "bcc" / "libbcc.py").exists():  # PyPI's "bcc" is something else
        return "BCC is not installed"
    return ""


def open_program(build: Build, bpf_dir: Path | None = None, policy: Policy | None = None) -> Program:
    """Adopt what is pinned, else compile. Raises BccUnusable, or DataPlaneError when tables cannot be pinned."""
    return adopt(build, bpf_dir, policy) or _make(build, bpf_dir, policy)


def adopt(build: Build, bpf_dir: Path | None, policy: Policy | None = None) -> Program | None:
    """The same build, complete, from its pins, in milliseconds; None when anything is missing."""
    if bpf_dir is None or not SOURCE.exists():
        return None
    for attempt in _forms(build):
        name = _name(attempt)
        program = _program(attempt, bpf_dir / f"v{name}", name, _refused(build, attempt), adopted=True)
        with suppress(DataPlaneError):
            for kind in attempt.programs():
                program.entries[kind] = libbpf.get_pinned(bpf_dir / f"v{name}" / f"prog_{kind}_{name}")
            for map_name in (*_maps(attempt), abi.TYPES):
                program.maps[map_name] = libbpf.get_pinned(bpf_dir / f"v{name}" / map_name)
            abi.learn(libbpf.read_value(program.maps[abi.TYPES]))
            settle(program, bpf_dir, policy)
            return program
        program.close()
    return None


def _make(build: Build, bpf_dir: Path | None, policy: Policy | None) -> Program:
    if bpf_dir is not None:
        bpffs.ensure(bpf_dir)
    attempt = build
    while True:
        try:
            fds, types = compile_apart(attempt)
            break
        except BccUnusable as error:
            lesser = _lesser(attempt, error.said)
            if lesser is None:
                raise
            attempt = lesser
    name = _name(attempt)
    program = _program(attempt, bpf_dir and bpf_dir / f"v{name}", name, _refused(build, attempt), adopted=False)
    for key, fd in fds.items():
        kind = key.removeprefix("prog_")
        (program.entries if kind != key else program.maps)[kind] = fd
    abi.learn(types)
    program.maps[abi.TYPES] = _keep_types(types)
    if program.directory is not None and program.directory.exists():
        _set_aside(program.directory)
    keep_pins(program)
    settle(program, bpf_dir, policy)
    return program


def _set_aside(directory: Path) -> None:
    """Pins that are not complete belong to other tables than ours; what they hold is moved in."""
    aside = directory.with_name(f"{directory.name}_misfit")
    bpffs.remove_directory(aside)
    directory.rename(aside)


def _program(build: Build, directory: Path | None, name: str, refused: dict[str, str], *, adopted: bool) -> Program:
    return Program({}, {}, build.event_paths[0], directory, name, fresh=False, adopted=adopted, refused=refused,
                   loader="bcc")  # fmt: skip


# --- builds ---------------------------------------------------------------------------------------------------


def _forms(build: Build) -> list[Build]:
    """The build as wished, then with what older kernels lack taken away."""
    forms = []
    for at, path in enumerate(build.event_paths):
        for sampling in sorted({build.sampling and path is EventPath.RING, False}, reverse=True):
            for cookies in sorted({build.cookies, False}, reverse=True):
                forms.append(replace(build, sampling=sampling, cookies=cookies, event_paths=build.event_paths[at:]))
    return forms


def _lesser(build: Build, said: str) -> Build | None:
    """The build without what this kernel complained about; None when that is nothing to do without."""
    if build.sampling and ("map: samples" in said or "load_bytes" in said):
        return replace(build, sampling=False, cookies=build.cookies and "load_bytes" not in said)
    if build.cookies and any(helper in said for helper in ("syncookie", "skc_lookup", "sk_release", "load_bytes")):
        return replace(build, cookies=False)
    if len(build.event_paths) > 1 and "map: events" in said:
        paths = build.event_paths[1:]
        return replace(build, event_paths=paths, sampling=build.sampling and paths[0] is EventPath.RING)
    return None


def _refused(wished: Build, form: Build) -> dict[str, str]:
    """What the form does without."""
    refused = {}
    if form.event_paths[0] is not wished.event_paths[0]:
        refused[wished.event_paths[0].name.lower()] = "this kernel refuses it"
    if wished.sampling and not form.sampling:
        refused["samples"] = "this kernel lacks what they need (ring buffer, and helpers of 5.18)"
    if wished.cookies and not form.cookies:
        refused["syn_cookies"] = "this kernel lacks the helpers (5.18); its own cookies stand behind"
    return refused


def _maps(build: Build) -> list[str]:
    stream = {EventPath.RING: ["events"], EventPath.PERF: ["events_perf"], EventPath.POLL: []}[build.event_paths[0]]
    return [*MAPS, *stream, *(["samples"] if build.sampling else [])]


def _flags(build: Build) -> list[str]:
    """What makes the one source this build."""
    sizes = build.sizes() | {name: 0 for name in ("events", "samples") if name in build.refuse_maps}
    names = ("tg_live", "tg_replay", "tg_sampling", "tg_cookies", "tg_event_path")
    return [
        f"-I{HERE}",
        "-Werror=undefined-internal",  # an accessor that is missing here
        *(f"-DTG_SIZE_{name.upper()}={size}" for name, size in sorted(sizes.items())),
        *(f"-D{name}={build.constants()[name]:d}" for name in names),
    ]


def _name(build: Build) -> str:
    """Of the build and of its pin directory: another source has tables of its own, into which the old are moved."""
    digest = hashlib.sha256(repr(_flags(build)[1:]).encode())
    for path in (SOURCE, *sorted(HERE.glob("*.h")), *sorted(HEADERS.rglob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


# --- type information -----------------------------------------------------------------------------------------


def _keep_types(types: bytes) -> int:
    """In a table of its own, because no descriptor of type information can be pinned."""
    fd = libbpf.create_array("tg_types", len(types), 1)
    libbpf.put(fd, np.zeros(1, "<u4"), np.frombuffer(types, np.uint8))
    return fd


# --- the compiler's process -----------------------------------------------------------------------------------


def compile_apart(build: Build, limit_s: float = LIMIT_S) -> tuple[dict[str, int], bytes]:
    """Compile and load in a child. Returns its descriptors by name (``prog_KIND`` for programs) and the program's type
    information. Raises BccUnusable with the compiler's own words."""
    if reason := missing():
        raise BccUnusable(reason)
    wanted = {"flags": _flags(build), "maps": _maps(build), "programs": build.programs()}
    headers = os.environ.get("BCC_KERNEL_SOURCE") or str(HEADERS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, tempfile.TemporaryFile() as words:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "bpf.bcc_loader", str(theirs.fileno()), json.dumps(wanted)],
                cwd=HERE.parent, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=words, stderr=words,
                env=os.environ | {"BCC_KERNEL_SOURCE": headers},
            )  # fmt: skip
        try:
            ours.settimeout(limit_s)
            return _received(ours)
        except (OSError, ValueError) as error:
            said = _said(words)
            cause = _complaint(said) or str(error)
            raise BccUnusable(f"BCC did not bring the program into the kernel: {cause}", said=said) from error
        finally:
            child.kill()
            child.wait()


def _received(ours: socket.socket) -> tuple[dict[str, int], bytes]:
    """Names and as many descriptors, then the type information in pieces until the child hangs up."""
    data, fds, _flags, _address = socket.recv_fds(ours, _PIECE, 64)
    try:
        pieces = []
        while piece := ours.recv(_PIECE):
            pieces.append(piece)
        Btf(b"".join(pieces), bare=True)
        return dict(zip(json.loads(data), fds, strict=True)), b"".join(pieces)
    except (OSError, ValueError, BtfError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError("the compiler ended without an answer") from error


def _said(words: IO[bytes]) -> str:
    words.seek(0)
    return words.read(1 << 22).decode(errors="replace")


def _complaint(said: str) -> str:
    """The first lines that complain, else the last ones, as one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [line for line in lines if any(word in line.lower() for word in ("error", "failed", "could not"))]
    return "; ".join((found or lines[-3:])[:3])[:500]


def _own_types() -> bytes:
    """The type information that BCC has loaded in this process: it keeps the descriptor to itself."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).endswith("btf"):
                found.append(libbpf.type_information(int(path.name)))
    return max(found, key=len)


def main(arguments: Sequence[str]) -> int:
    """``python -m bpf.bcc_loader SOCKET WANTED``: compile, load, send the descriptors, end."""
    number, wanted = int(arguments[0]), json.loads(arguments[1])
    sys.path.append(str(DISTRIBUTION))
    from bcc import BPF, lib

    module: Any = BPF(text=SOURCE.read_bytes(), cflags=wanted["flags"])
    fds = {name: lib.bpf_table_fd(module.module, name.encode()) for name in wanted["maps"]}
    for kind, symbol in wanted["programs"].items():
        if kind in ("xdp", "clock"):  # the attach type is that of libbpf, or one could not take the other's place
            fds[f"prog_{kind}"] = module.load_func(symbol, BPF.XDP, None, libbpf.ATTACH_XDP).fd
        else:
            fds[f"prog_{kind}"] = module.load_func(symbol, BPF.SCHED_CLS).fd
    types = _own_types()
    with socket.socket(fileno=number) as out:
        socket.send_fds(out, [json.dumps(list(fds)).encode()], list(fds.values()))
        for at in range(0, len(types), _PIECE):
            out.send(types[at : at + _PIECE])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
