"""What the kernel offers: version, BTF, bpffs, maps, ways to attach, and the compiled program that needs them."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from actors.admin.doctor import bpf_calls as bpf
from actors.admin.doctor.check import Check, Weight, bad, good, unclear
from actors.core.capability import effective

#: mmapable arrays 5.5, ring buffer 5.8, XDP links 5.9: below this the program cannot be what it is.
OLDEST_KERNEL = (5, 10)
STANDARD_BPFFS = Path("/sys/fs/bpf")
WAYS = {
    "xdp_native": "packets cannot be refused in the driver; the next rung costs about three times as much a packet",
    "xdp_generic": "no way out for drivers without XDP, except TCX or nftables",
    "tcx": "one rung less below native XDP",
    "egress": "flow records show what comes only: no answers in `sessions`, and a model of both sides is not believed",
}
#: A way whose absence has a remedy of its own.
REMEDIES = {"egress": "load the modules sch_ingress and cls_bpf, or boot kernel 6.6 or newer"}


def checks(bpf_dir: Path) -> list[Check]:
    return [
        _version(),
        _btf(),
        _bpffs(bpf_dir),
        _capabilities(),
        _unprivileged(),
        *_maps(),
        *_ways(),
        _libbpf(),
        _object(),
        _bcc(),
        _sources(),
    ]


def _version() -> Check:
    release = platform.release()
    numbers = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    if numbers >= OLDEST_KERNEL:
        return good("kernel", f"Linux {release} on {platform.machine()}")
    return bad(
        "kernel",
        f"Linux {release}",
        f"the kernel program needs Linux {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]}; nftables protects alone",
        "boot a newer kernel",
    )


def _btf() -> Check:
    path = Path("/sys/kernel/btf/vmlinux")
    if path.exists():
        return good("btf", f"{path}, {path.stat().st_size >> 20} MiB")
    return bad(
        "btf",
        "the kernel does not describe its types",
        "the compiled program cannot fit itself to this kernel",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF, as distributions ship it",
        Weight.NOTE,
    )


def _bpffs(bpf_dir: Path) -> Check:
    mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "bpf"}
    if any(str(bpf_dir).startswith(f"{place}/") or str(bpf_dir) == place for place in mounted):
        return good("bpffs", f"mounted, for {bpf_dir}")
    standard = STANDARD_BPFFS in (bpf_dir, *bpf_dir.parents)
    by_itself = standard and os.geteuid() == 0
    remedy = f"mount -t bpf bpf {STANDARD_BPFFS}" + (" (the service does it by itself)" if by_itself else "")
    return bad(
        "bpffs",
        f"no BPF file system holds {bpf_dir}",
        "what the kernel protects with would not outlive the service"
        if standard
        else "the kernel program cannot be loaded there; nftables protects alone",
        remedy if standard else f"set TEGUMENTAR_BPF_DIR to a directory below {STANDARD_BPFFS}",
        Weight.NOTE if by_itself else Weight.USEFUL,
    )


def _capabilities() -> Check:
    held = effective()
    known = held | ({"CAP_BPF", "CAP_PERFMON"} if "CAP_SYS_ADMIN" in held else set())
    missing = [name for name in ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON") if name not in known]
    if not missing:
        return good("capabilities", "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON")
    return bad(
        "capabilities",
        f"missing: {', '.join(missing)}",
        "this user can only observe; asked as root the answers below may differ",
        "run it as root, or give the service these capabilities",
        Weight.VITAL,
    )


def _unprivileged() -> Check:
    try:
        value = Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip()
    except OSError:
        return unclear("unprivileged_bpf", "the kernel does not say who may use BPF")
    if value in {"1", "2"}:
        return good("unprivileged_bpf", "closed to users without rights")
    return bad(
        "unprivileged_bpf",
        "any user may load BPF programs",
        "a known way to attack the kernel is open; Tegumentar does not need it",
        "sysctl kernel.unprivileged_bpf_disabled=1",
        Weight.NOTE,
    )


def _maps() -> list[Check]:
    page = os.sysconf("SC_PAGE_SIZE")
    wanted: list[tuple[str, Callable[[], int], str]] = [
        (
            "ring_buffer",
            lambda: bpf.make_map(bpf.MapType.RINGBUF, 0, 0, page),
            "events come through perf buffers, at several times the cost, or by polling",
        ),
        (
            "lpm_trie",
            lambda: bpf.make_map(bpf.MapType.LPM_TRIE, 8, 4, 16, bpf.NO_PREALLOC),
            "prefixes cannot be tolerated or banned in the kernel program",
        ),
        (
            "mmapable_array",
            lambda: bpf.make_map(bpf.MapType.ARRAY, 4, 8, 16, bpf.MMAPABLE),
            "blocklists cannot be written through shared memory",
        ),
    ]
    return [_attempt(name, make, loss) for name, make, loss in wanted]


def _attempt(name: str, make: Callable[[], int], loss: str) -> Check:
    try:
        os.close(make())
    except OSError as exc:
        if exc.errno in {1, 13}:
            return unclear(name, bpf.cause(exc), "it cannot be tried without the rights for it", "run doctor as root")
        return bad(name, bpf.cause(exc), loss, "boot a newer kernel")
    return good(name, "works")


def _ways() -> list[Check]:
    """Each way of attaching, tried on a virtual pair in a namespace of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "actors.admin.doctor.scratch"],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=1.5,
            check=False,
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError, OSError):
        found = {"namespace": "the trial did not end in time"}
    if found["namespace"]:
        said = f"no network namespace to try it in: {found['namespace']}"
        return [unclear(name, said, "it will be tried when the service starts", "run doctor as root") for name in WAYS]
    return [
        bad(
            name,
            found[name],
            loss,
            REMEDIES.get(name, "see the cause; the next rung of the ladder is taken by itself"),
        )
        if found[name]
        else good(name, "tried on a virtual pair")
        for name, loss in WAYS.items()
    ]


def _libbpf() -> Check:
    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        version = library.libbpf_version_string().decode()
    except (OSError, AttributeError):
        return bad(
            "libbpf",
            "the library libbpf.so.1 is not installed",
            "no kernel program; nftables protects alone",
            "apt-get install libbpf1",
            Weight.VITAL,
        )
    return good("libbpf", version)


def _object() -> Check:
    """The compiled program, and whether Python reads its tables the way it writes them."""
    from bpf.build import object_path

    path, remedy = object_path(), "make bpf"
    loss = "no kernel program, unless BCC can compile it here; nftables protects alone"
    if not path.is_file():
        return bad("bpf_object", f"{path} is not built", loss, remedy, Weight.VITAL)
    from bpf import abi
    from bpf.dataplane import DataPlaneError

    try:
        reasons = len(abi.REASONS)
    except (DataPlaneError, OSError) as exc:
        return bad("bpf_object", f"{path} does not fit this version: {exc}", loss, remedy, Weight.VITAL)
    return good("bpf_object", f"{path.stat().st_size >> 10} KiB, {reasons} reasons, matches its tables in Python")


def _bcc() -> Check:
    """The second loader, for a node where the compiled program cannot be used."""
    from bpf import bcc_loader

    if reason := bcc_loader.missing():
        loss = "nothing stands behind the compiled kernel program but nftables"
        return bad("bcc", reason, loss, "apt-get install python3-bpfcc", Weight.NOTE)
    return good("bcc", "could compile the kernel program here")


def _sources() -> Check:
    """Whether the compiled program is the one that the sources beside it describe. An older one works, as it did."""
    from bpf import build

    path = build.object_path()
    fresh = build.made_of_these_sources(path)
    if fresh is None:
        return unclear("bpf_sources", f"nothing tells which sources {path.name} was compiled from", remedy="make bpf")
    if fresh:
        return good("bpf_sources", f"{path.name} was compiled from those here")
    says = f"{path.name} was compiled from other sources than those here"
    return bad("bpf_sources", says, "the kernel program is an older one than its description", "make bpf")
