"""The few bpf(2) calls that a probe needs, without any library: make a map, load a two-instruction program, link it.

What the probe asks must not depend on what it probes for (libbpf, the compiled object). Numbers are the kernel's
(include/uapi/linux/bpf.h); everything made here is closed again with its descriptor.
"""

import ctypes
import errno
import os
import platform
import struct
from enum import IntEnum

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_libc = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    MAP_CREATE = 0
    PROG_LOAD = 5
    LINK_CREATE = 28


class MapType(IntEnum):
    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LPM_TRIE = 11
    RINGBUF = 27


class ProgramType(IntEnum):
    SCHED_CLS = 3
    XDP = 6


MMAPABLE = 1 << 10
NO_PREALLOC = 1
XDP_GENERIC = 1 << 1
XDP_NATIVE = 1 << 2
ATTACH_XDP = 37
ATTACH_TCX_INGRESS = 46
ATTACH_TCX_EGRESS = 47
XDP_PASS = 2
TC_PASS = -1

#: errno → its true cause at these calls; the number alone has misled people.
CAUSES = {
    errno.EPERM: "the capability is missing, or the kernel is locked down",
    errno.EACCES: "the verifier refused the program, or CAP_PERFMON is missing",
    errno.EINVAL: "this kernel does not know it",
    errno.ENOSYS: "this kernel has no bpf system call",
    errno.EOPNOTSUPP: "the driver does not support it",
    errno.EBUSY: "another program holds the hook",
    errno.EEXIST: "another program holds the hook",
    errno.ERANGE: "the MTU is too large for native XDP",
    errno.ENODEV: "there is no such device",
    errno.E2BIG: "this kernel knows only a shorter form of the call",
}


def cause(error: OSError) -> str:
    number = error.errno or 0
    return f"{CAUSES.get(number, os.strerror(number))} ({errno.errorcode.get(number, number)})"


def make_map(kind: MapType, key_size: int, value_size: int, entries: int, flags: int = 0) -> int:
    """A descriptor of a new map. Raises OSError with the kernel's errno."""
    return _call(Command.MAP_CREATE, struct.pack("=IIIII", kind, key_size, value_size, entries, flags))


def load_program(kind: ProgramType, verdict: int) -> int:
    """A descriptor of a program that returns ``verdict`` for every packet."""
    instructions = struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)  # r0 = verdict; exit
    code, licence = ctypes.create_string_buffer(instructions, len(instructions)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", kind, 2, ctypes.addressof(code), ctypes.addressof(licence))
    return _call(Command.PROG_LOAD, attributes)


def link(program: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """A descriptor of a link that hangs the program on an interface for as long as it is open."""
    return _call(Command.LINK_CREATE, struct.pack("=IIII", program, ifindex, attach_type, flags))


def _call(command: Command, attributes: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    padded = ctypes.create_string_buffer(attributes, 128)
    result = int(_libc.syscall(number, int(command), padded, len(padded)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
