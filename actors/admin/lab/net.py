"""Network namespaces of the lab: one wire, three hosts, gone whatever happens.

    attacker ─┐
    innocent ─┼─ bridge (namespace "wire") ── skin0 of the node
    more …   ─┘

Attacker and innocent share the node's one protected interface, as they would on a real uplink. Every veth is born
between two namespaces, so the host's own namespace sees no new device at all. Names carry the pid and the start time
of the process that made them: labs run side by side, and ``sweep`` removes what a killed process left without ever
touching the namespaces of a living one. Removing a namespace kills the processes inside it: all of them are the lab's.

``ip netns exec`` is not used, because it mounts a new /sys and so hides bpffs; commands enter with ``nsenter --net``.
Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN). Raises ``LabError`` when the machine refuses.
"""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from actors.core.errors import TegumentarError

NETNS_DIR = Path("/run/netns")
BPFFS = Path("/sys/fs/bpf")
PREFIX = "tglab"
CLONE_NEWNET = 0x40000000

#: The hosts: 10.77.0.N, and in IPv6 a /64 of their own each (fd77:7:0:N::N), because bans of IPv6 hit the whole /64.
V4_NET, V6_NET = "10.77.0.0/24", "fd77:7::/48"
NUMBERS = {"node": 1, "innocent": 20, "attacker": 66}
#: Sources that only exist in forged packets; the node's answers to them go to the attacker, who ignores them.
SPOOFED_V4, SPOOFED_V6 = "10.66.0.0/16", "fd66::/16"

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(TegumentarError):
    """The machine refused something the lab needs. The sentence says what and why."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One namespace with one interface, as the others see it."""

    role: str
    namespace: "Namespace"
    interface: str
    mac: str
    ipv4: str
    ipv6: str

    def address(self, family: int) -> str:
        """The address of this family (4 or 6)."""
        return self.ipv4 if family == 4 else self.ipv6


class Namespace:
    """One network namespace. ``close`` kills what runs in it and removes it; safe to call twice."""

    def __init__(self, role: str = "ns", tag: str | None = None) -> None:
        self.name = f"{tag or owner_tag()}-{role}"
        self.path = NETNS_DIR / self.name
        _ip("netns", "add", self.name)
        self.ip("link set lo up")

    def ip(self, *lines: str) -> None:
        """Run ``ip`` commands (without the word ip) in this namespace, all in one batch."""
        _ip("-n", self.name, "-batch", "-", text="\n".join(lines) + "\n")

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs argv in this namespace and dies with its parent."""
        return ["nsenter", f"--net={self.path}", "setpriv", "--pdeathsig", "KILL", "--", *argv]

    def run(
        self,
        *argv: str,
        check: bool = True,
        text: str | None = None,
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return it with its output as text."""
        done = subprocess.run(
            self.argv(argv), input=text, capture_output=True, text=True, check=False, timeout=timeout_s, env=env
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)} failed in {self.name} (exit {done.returncode}): {done.stderr.strip()}")
        return done

    def popen(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command; its pid is the command's own. It is killed when the calling thread ends."""
        return subprocess.Popen(self.argv(argv), env=env, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside the namespace for the length of the block; other threads stay where they are."""
        home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def sysctl(self, **values: int) -> None:
        """Set keys below ``net.``; a double underscore is the dot. /proc/sys/net is the writing thread's own."""
        with self.entered():
            for key, value in values.items():
                Path("/proc/sys/net", *key.split("__")).write_text(str(value))

    def mac(self, interface: str) -> str:
        """The hardware address of an interface of this namespace."""
        links = json.loads(self.run("ip", "-json", "link", "show", "dev", interface).stdout)
        return str(links[0]["address"])

    def pids(self) -> list[int]:
        """Processes whose network namespace this is."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(word) for word in done.stdout.split()]

    def close(self) -> None:
        """Kill what still runs inside, then remove the namespace and with it every veth, table and qdisc."""
        _remove(self.name)

    def __enter__(self) -> "Namespace":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass
class Network:
    """The wire with its hosts. A context manager: what it made is gone afterwards.

    roles: the hosts beside the node, which is always there and whose protected interface is ``skin0``."""

    roles: tuple[str, ...] = ("attacker", "innocent")
    tag: str = field(default_factory=lambda: owner_tag())
    hosts: dict[str, Host] = field(default_factory=dict)
    _spaces: list[Namespace] = field(default_factory=list)

    @property
    def wire(self) -> Namespace:
        """The switch: bridge ``br0`` and one port ``p-ROLE`` for each host."""
        return self._spaces[0]

    @property
    def node(self) -> Host:
        return self.hosts["node"]

    @property
    def attacker(self) -> Host:
        return self.hosts["attacker"]

    @property
    def innocent(self) -> Host:
        return self.hosts["innocent"]

    def __enter__(self) -> "Network":
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hosts first, so that nothing is left to use the wire."""
        while self._spaces:
            self._spaces.pop().close()

    def _build(self) -> None:
        wire = self._space("wire")
        wire.sysctl(ipv6__conf__all__disable_ipv6=1, ipv6__conf__default__disable_ipv6=1)
        wire.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up")
        for number, role in enumerate(("node", *self.roles), start=1):
            self.hosts[role] = self._plug_in(wire, role, NUMBERS.get(role, 100 + number))
        self._route_forged_sources()

    def _space(self, role: str) -> Namespace:
        space = Namespace(role, self.tag)
        self._spaces.append(space)
        return space

    def _plug_in(self, wire: Namespace, role: str, number: int) -> Host:
        space = self._space(role)
        interface = "skin0" if role == "node" else "wire0"
        mac = f"02:77:00:00:00:{number:02x}"
        ipv4, ipv6 = f"10.77.0.{number}", f"fd77:7:0:{number}::{number}"
        port = f"p-{role}"[:15]
        space.sysctl(
            ipv6__conf__all__accept_ra=0,
            ipv6__conf__default__accept_ra=0,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
            ipv6__conf__default__router_solicitations=0,
        )
        wire.ip(f"link add {port} type veth peer name {interface} netns {space.name}", f"link set {port} master br0 up")
        space.ip(
            f"link set {interface} address {mac}",
            f"link set {interface} up",
            f"addr add {ipv4}/{V4_NET.split('/')[1]} dev {interface}",
            f"addr add {ipv6}/64 dev {interface} nodad",
            f"route add {V6_NET} dev {interface}",
        )
        return Host(role=role, namespace=space, interface=interface, mac=mac, ipv4=ipv4, ipv6=ipv6)

    def _route_forged_sources(self) -> None:
        """Answers to forged sources go to the attacker's interface, so that the node never stalls on a neighbour.

        The attacker also gets ``void0``, an interface that leads nowhere."""
        attacker = self.hosts.get("attacker")
        if attacker is None:
            return
        attacker.namespace.ip(
            "link add void0 type veth peer name void1", "link set void0 arp off up", "link set void1 arp off up"
        )
        self.node.namespace.ip(
            f"route add {SPOOFED_V4} via {attacker.ipv4}",
            f"route add {SPOOFED_V6} via {attacker.ipv6}",
        )


def owner_tag() -> str:
    """A name part nobody else makes: prefix, our pid, our start time, four random hex digits."""
    return f"{PREFIX}-{os.getpid()}-{started(os.getpid())}-{secrets.token_hex(2)}"


def sweep() -> list[str]:
    """Remove the namespaces, pins and directories of labs whose process is gone. Returns the names removed."""
    removed = []
    for path in _leftovers(NETNS_DIR):
        _remove(path.name)
        removed.append(path.name)
    for path in _leftovers(BPFFS):
        remove_pins(path)
        removed.append(path.name)
    for path in _leftovers(Path(tempfile.gettempdir())):
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path.name)
    return removed


def mount_bpffs() -> Path:
    """bpffs, mounted where everybody expects it; one mount for all labs of this machine, and it stays."""
    if not os.path.ismount(BPFFS):
        BPFFS.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], capture_output=True, text=True, check=False)
        if done.returncode and not os.path.ismount(BPFFS):
            raise LabError(f"bpffs could not be mounted at {BPFFS}: {done.stderr.strip()}")
    return BPFFS


@contextlib.contextmanager
def node_home(tag: str) -> Iterator[tuple[Path, Path]]:
    """A directory for state, run and log files and one on bpffs for pins, both named by the tag and gone afterwards.

    The first is short, because the path of a socket ends at 107 bytes."""
    directory, pins = Path(tempfile.gettempdir(), tag), mount_bpffs() / tag
    directory.mkdir(mode=0o755)
    try:
        yield directory, pins
    finally:
        remove_pins(pins)
        shutil.rmtree(directory, ignore_errors=True)


def remove_pins(directory: Path) -> None:
    """Unlink every pin below directory: maps and links without another holder end with it."""
    for root, folders, files in os.walk(directory, topdown=False):
        for name in files:
            Path(root, name).unlink(missing_ok=True)
        for name in folders:
            Path(root, name).rmdir()
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def _leftovers(directory: Path) -> list[Path]:
    """Entries of a lab whose process no longer lives (or whose pid now belongs to somebody else)."""
    if not directory.is_dir():
        return []
    found = []
    for path in directory.glob(f"{PREFIX}-*"):
        parts = path.name.split("-")
        if len(parts) >= 4 and parts[1].isdigit() and started(int(parts[1])) != parts[2]:
            found.append(path)
    return found


def started(pid: int) -> str:
    """When the process started, in clock ticks since boot, as text; empty when it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rsplit(")", 1)[1].split()[19]


def _remove(name: str) -> None:
    for _ in range(50):
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        pids = [int(word) for word in done.stdout.split()]
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*argv: str, text: str | None = None) -> None:
    try:
        done = subprocess.run(["ip", *argv], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError("the command ip is missing", remedy="install the package iproute2") from error
    if done.returncode:
        what = text.strip().replace("\n", "; ") if text else " ".join(argv)
        raise LabError(f"ip refused ({what}): {done.stderr.strip() or 'no reason given'}")


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise LabError(f"entering a network namespace failed: {os.strerror(code)}; the lab needs root")
