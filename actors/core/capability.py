"""Capabilities: what a process may do, read from the kernel, and given up for good.

``drop`` turns a root process into the service user with a named rest of root's powers. It must run while the process
has one thread (capset acts on one thread), and it arms PDEATHSIG again, which the kernel clears at a credential change.
"""

import ctypes
import os
import pwd
import struct
from dataclasses import dataclass
from pathlib import Path

#: Who the unprivileged cells become where the configured user does not exist: a number that nobody else uses.
FALLBACK_ID = 64321

CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_RAISE = 2
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """A user and group, by number."""

    uid: int
    gid: int


def service_identity(user: str) -> Identity:
    """Who unprivileged cells become: ``user`` by name or number, the numeric fallback when there is no such user.

    Without root it is whoever we are: there is nothing to change to."""
    if os.geteuid() != 0:
        return Identity(os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        return Identity(int(user), int(user)) if user.isdigit() else Identity(FALLBACK_ID, FALLBACK_ID)
    return Identity(entry.pw_uid, entry.pw_gid)


def effective(pid: int | str = "self") -> frozenset[str]:
    """Names of the known capabilities in effect for ``pid``; empty when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return frozenset()
    mask = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def drop(identity: Identity, keep: tuple[str, ...] = (), *, ambient: bool = False) -> None:
    """Become ``identity`` with only the capabilities ``keep``, for good.

    ambient: programs that this process starts get them too. Raises OSError when the kernel refuses (the caller must
    then die: a cell with more power than it should have does not run), RuntimeError with more than one thread."""
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("privileges must be dropped before any thread is started")
    bits = [CAPABILITIES[name] for name in keep if name in effective()]
    for bit in range(64):
        if bit not in bits and _libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0):
            break  # past the last capability of this kernel
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([identity.gid])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    _capset(sum(1 << bit for bit in bits), inheritable=ambient)
    if ambient:
        for bit in bits:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, bit)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _capset(mask: int, *, inheritable: bool) -> None:
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", low, low, low * inheritable, high, high, high * inheritable)
    if _libc.syscall(_SYS_CAPSET[os.uname().machine], header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *padded):
        raise OSError(ctypes.get_errno(), f"prctl({option})")
