"""The few functions of libbpf.so.1 that a data plane needs, through ctypes: no compiler, no headers, 350 KiB.

Every failure is a ``KernelRefused`` with errno and a sentence that names the true cause: errno alone misleads (EINVAL
at map creation is a wrong definition, never a missing right; EACCES is the verifier). libbpf's own words are kept and
attached. Buffers are numpy arrays or bytes; file descriptors are plain numbers that the caller closes.
"""

import ctypes as c
import errno
import os
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bpf.errors import DataPlaneError

ARRAY, HASH, PERF_EVENT_ARRAY, ARRAY_OF_MAPS = 2, 1, 4, 12
MMAPABLE = 1 << 10
ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS = 37, 46, 47
FIRST = 1 << 3  #: of a TCX link: before all programs that hang there
XDP_GENERIC, XDP_NATIVE = 1 << 1, 1 << 2
LIVE_FRAMES = 1 << 1  #: of BPF_PROG_TEST_RUN
LINK_XDP, LINK_TCX = 6, 11

#: (what was tried, errno) → (cause, remedy). "" stands for every attempt.
CAUSES: Mapping[tuple[str, int], tuple[str, str]] = {
    ("load", errno.EPERM): ("not allowed: CAP_BPF and CAP_NET_ADMIN are needed, or the kernel is locked down",
                            "run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"),
    ("load", errno.EACCES): ("the verifier refused the program; without CAP_PERFMON it refuses most pointer arithmetic",
                             "grant CAP_PERFMON, or see the verifier's words"),
    ("load", errno.EINVAL): ("a map or the program is defined in a way this kernel does not know; a pinned map of "
                             "another shape has the same effect", "use a newer kernel, or remove the old pins"),
    ("load", errno.E2BIG): ("the program is too large for this kernel's verifier", "use kernel 5.13 or newer"),
    ("load", errno.ENOMEM): ("no memory for the tables", "lower the table sizes, or raise the memory limit"),
    ("attach", errno.ERANGE): ("the MTU is too large for XDP in this driver", "lower the MTU"),
    ("attach", errno.EOPNOTSUPP): ("the driver knows no XDP in this mode", "none is needed: the next rung is used"),
    ("attach", errno.EBUSY): ("another XDP program holds the interface", "remove it; else the next rung is used"),
    ("attach", errno.EEXIST): ("another XDP program holds the interface in another mode",
                               "remove it, or leave it: the next rung is used"),
    ("attach", errno.ENODEV): ("the interface is gone", "name an interface that exists"),
    ("attach", errno.EPERM): ("not allowed: CAP_NET_ADMIN is needed", "run as root, or grant CAP_NET_ADMIN"),
    ("attach", errno.EINVAL): ("this kernel or driver cannot attach here in this way (TCX came with kernel 6.6)",
                               "none is needed: the next rung is used"),
    ("attach", errno.ENOMEM): ("the driver has no memory for XDP", "none is needed: the next rung is used"),
    ("attach", errno.ENOSPC): ("the driver has not enough queues for XDP", "reduce the number of channels"),
    ("egress attach", errno.EINVAL): ("this kernel cannot hang a program there in this way (TCX came with kernel 6.6), "
                                      "or another kind of filter has its place", "see: tc filter show dev IF egress"),
    ("egress attach", errno.ENOENT): ("this kernel lacks the queue clsact, or the classifier for BPF",
                                      "load the modules sch_ingress and cls_bpf, or boot kernel 6.6 or newer"),
    ("egress attach", errno.EOPNOTSUPP): ("this kernel lacks the classifier for BPF",
                                          "load the module cls_bpf, or boot kernel 6.6 or newer"),
    ("egress attach", errno.EBUSY): ("somebody else's program has our place (priority 1, handle 0x7e6)",
                                     "see: tc filter show dev IF egress"),
    ("egress attach", errno.EPERM): ("not allowed: CAP_NET_ADMIN is needed", "run as root, or grant CAP_NET_ADMIN"),
    ("egress attach", errno.ENODEV): ("the interface is gone", "name an interface that exists"),
    ("replace", errno.ENOLINK): ("the device of this link is gone", "attach again"),
    ("replace", errno.EPERM): ("another process has replaced the program meanwhile", "try again"),
    ("map", errno.E2BIG): ("the table is full", "raise its size, or release entries"),
    ("map", errno.ENOSPC): ("the table is full", "raise its size, or release entries"),
    ("map", errno.ENOENT): ("there is no such entry", ""),
    ("map", errno.EPERM): ("not allowed to use this table", "open it before privileges are dropped"),
    ("pin", errno.EPERM): ("not a BPF file system, or not allowed", "mount -t bpf bpf /sys/fs/bpf"),
    ("pin", errno.EINVAL): ("not a BPF file system", "mount -t bpf bpf /sys/fs/bpf"),
    ("pin", errno.ENOENT): ("there is no such pin", ""),
    ("test run", errno.EINVAL): ("the frame is too short or too long for a test run", "14 to 3500 bytes are possible"),
    ("test run", errno.EPERM): ("not allowed: CAP_BPF and CAP_NET_ADMIN are needed", "run as root"),
}  # fmt: skip


class KernelRefused(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """The kernel or libbpf said no. ``said`` is what libbpf printed, cut to a bounded length."""

    def __init__(self, attempt: str, subject: str, number: int, said: str = "") -> None:
        cause, remedy = CAUSES.get((attempt, number), (os.strerror(number), ""))
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{attempt} of {subject} failed: {cause} ({name})", errno=number, remedy=remedy)
        self.said = said[-2000:]


class _OpenOpts(c.Structure):
    _fields_ = (
        ("size", c.c_size_t), ("object_name", c.c_char_p), ("relaxed_maps", c.c_bool), ("pin_root_path", c.c_char_p),
        ("_unused", c.c_uint32), ("kconfig", c.c_char_p), ("btf_custom_path", c.c_char_p),
        ("kernel_log_buf", c.c_char_p), ("kernel_log_size", c.c_size_t), ("kernel_log_level", c.c_uint32),
    )  # fmt: skip


class _TestRunOpts(c.Structure):
    _fields_ = (
        ("size", c.c_size_t), ("data_in", c.c_void_p), ("data_out", c.c_void_p), ("data_size_in", c.c_uint32),
        ("data_size_out", c.c_uint32), ("ctx_in", c.c_void_p), ("ctx_out", c.c_void_p), ("ctx_size_in", c.c_uint32),
        ("ctx_size_out", c.c_uint32), ("retval", c.c_uint32), ("repeat", c.c_int), ("duration", c.c_uint32),
        ("flags", c.c_uint32), ("cpu", c.c_uint32), ("batch_size", c.c_uint32),
    )  # fmt: skip


class _MapCreateOpts(c.Structure):
    _fields_ = (
        ("size", c.c_size_t), ("btf_fd", c.c_uint32), ("btf_key", c.c_uint32), ("btf_value", c.c_uint32),
        ("btf_vmlinux_value", c.c_uint32), ("inner_map_fd", c.c_uint32), ("map_flags", c.c_uint32),
        ("map_extra", c.c_uint64), ("numa_node", c.c_uint32), ("ifindex", c.c_uint32),
    )  # fmt: skip


class _BatchOpts(c.Structure):
    _fields_ = (("size", c.c_size_t), ("elem_flags", c.c_uint64), ("flags", c.c_uint64))


class _LinkCreateOpts(c.Structure):
    _fields_ = (("size", c.c_size_t), ("flags", c.c_uint32), ("_rest", c.c_char * 60))


class MapInfo(NamedTuple):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class LinkInfo(NamedTuple):
    type: int
    id: int
    program_id: int
    ifindex: int  #: 0 when the device is gone


_printed: deque[str] = deque(maxlen=60)


@cache
def _library() -> c.CDLL:
    try:
        library = c.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise DataPlaneError("libbpf.so.1 is not installed", remedy="apt-get install libbpf1") from error
    library.libbpf_set_print.argtypes = (c.c_void_p,)
    library.libbpf_set_print.restype = c.c_void_p
    library.libbpf_set_print(c.cast(_catch_print, c.c_void_p))
    return library


def _print(level: int, text: bytes, arguments: int) -> int:
    if level <= 1:  # warnings and information; debugging output is not kept
        buffer = c.create_string_buffer(4096)
        c.CDLL(None).vsnprintf(buffer, c.c_size_t(len(buffer)), c.c_char_p(text), c.c_void_p(arguments))
        _printed.append(buffer.value.decode(errors="replace"))
    return 0


_catch_print = c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, c.c_void_p)(_print)


@cache
def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(_library(), name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


_P, _I, _U32, _U64, _S = c.c_void_p, c.c_int, c.c_uint32, c.c_uint64, c.c_char_p


def _checked(result: int | None, attempt: str, subject: str) -> int:
    """libbpf answers -1 with errno, a negative errno, or NULL with errno."""
    if result is None or result < 0:
        number = c.get_errno() or (-result if result else errno.EIO)
        said = "".join(_printed)
        _printed.clear()
        raise KernelRefused(attempt, subject, number, said)
    return result


def address_of(buffer: npt.NDArray[Any]) -> c.c_void_p:
    return c.c_void_p(buffer.ctypes.data)


class BpfObject:
    """A compiled object on its way into the kernel: open, adjust, load, take descriptors, close.

    ``pin_root`` is always given to libbpf, because without it libbpf would look in /sys/fs/bpf itself and silently
    adopt a foreign map of the same name."""

    def __init__(self, image: bytes, name: str, pin_root: Path) -> None:
        options = _OpenOpts(size=c.sizeof(_OpenOpts), object_name=name.encode(), pin_root_path=str(pin_root).encode())
        self._name = name
        opened = _function("bpf_object__open_mem", _P, _P, c.c_size_t, _P)(image, len(image), c.byref(options))
        self._object = _checked(opened, "load", name)
        self._descriptors: list[int] = []

    def _map(self, name: str) -> int:
        found = _function("bpf_object__find_map_by_name", _P, _P, _S)(self._object, name.encode())
        return _checked(found, "load", f"map {name}")

    def map_names(self) -> list[str]:
        found, at = [], None
        while at := _function("bpf_object__next_map", _P, _P, _P)(self._object, at):
            found.append(_function("bpf_map__name", _S, _P)(at).decode())
        return found

    def resize(self, name: str, entries: int) -> None:
        _checked(_function("bpf_map__set_max_entries", _I, _P, _U32)(self._map(name), entries), "load", f"map {name}")

    def leave_out(self, name: str) -> None:
        """Do not create this map; the program must not touch it (a constant in .rodata kills the branch)."""
        _checked(_function("bpf_map__set_autocreate", _I, _P, c.c_bool)(self._map(name), False), "load", f"map {name}")

    def spoil(self, name: str) -> None:
        """For tests: a key size that no kernel accepts here, so that this very map is refused."""
        _checked(_function("bpf_map__set_key_size", _I, _P, _U32)(self._map(name), 3), "load", f"map {name}")

    def pin_to(self, name: str, path: Path) -> None:
        """Adopt the map that is pinned there, or create it and pin it there."""
        encoded = str(path).encode()
        _checked(_function("bpf_map__set_pin_path", _I, _P, _S)(self._map(name), encoded), "pin", f"map {name}")

    def skip_program(self, name: str) -> None:
        program = _function("bpf_object__find_program_by_name", _P, _P, _S)(self._object, name.encode())
        _checked(program, "load", f"program {name}")
        _function("bpf_program__set_autoload", _I, _P, c.c_bool)(program, False)

    def set_constants(self, values: Mapping[str, int], layout: Mapping[str, tuple[int, int]]) -> None:
        """Write .rodata before loading; layout is ``Btf.variables('.rodata')``."""
        section = next(name for name in self.map_names() if name.endswith(".rodata"))
        size = c.c_size_t()
        start = _function("bpf_map__initial_value", _P, _P, _P)(self._map(section), c.byref(size))
        base = _checked(start, "load", ".rodata")
        for name, value in values.items():
            offset, width = layout[name]
            c.memmove(base + offset, value.to_bytes(width, "little"), width)

    def load(self) -> None:
        _printed.clear()
        _checked(_function("bpf_object__load", _I, _P)(self._object), "load", self._name)

    def map_fd(self, name: str) -> int:
        """A descriptor of the caller's own, valid after ``close``."""
        return os.dup(_checked(_function("bpf_map__fd", _I, _P)(self._map(name)), "map", name))

    def program_fd(self, name: str) -> int:
        program = _function("bpf_object__find_program_by_name", _P, _P, _S)(self._object, name.encode())
        _checked(program, "load", f"program {name}")
        return os.dup(_checked(_function("bpf_program__fd", _I, _P)(program), "load", name))

    def close(self) -> None:
        if self._object:
            _function("bpf_object__close", None, _P)(self._object)
            self._object = 0


# --- pins ---------------------------------------------------------------------------------------------------


def pin(fd: int, path: Path) -> None:
    _checked(_function("bpf_obj_pin", _I, _I, _S)(fd, str(path).encode()), "pin", str(path))


def get_pinned(path: Path) -> int:
    """Always opened for writing: the kernel lets nobody map a map into memory that was opened for reading only."""
    return _checked(_function("bpf_obj_get", _I, _S)(str(path).encode()), "pin", str(path))


# --- information --------------------------------------------------------------------------------------------


def _info(fd: int, words: int) -> list[int]:
    buffer = (c.c_uint32 * 64)()
    length = c.c_uint32(c.sizeof(buffer))
    get = _function("bpf_obj_get_info_by_fd", _I, _I, _P, _P)
    _checked(get(fd, c.byref(buffer), c.byref(length)), "map", f"descriptor {fd}")
    return list(buffer[:words])


def map_info(fd: int) -> MapInfo:
    return MapInfo(*_info(fd, 6))


def program_id(fd: int) -> int:
    return _info(fd, 2)[1]


def program_name(number: int) -> str:
    """The first 15 letters of the name of a loaded program; empty when there is none of this number."""
    try:
        fd = program_by_id(number)
    except KernelRefused:
        return ""
    try:
        words = _info(fd, 20)[16:]
    finally:
        os.close(fd)
    return b"".join(word.to_bytes(4, "little") for word in words).split(b"\0", 1)[0].decode(errors="replace")


def link_info(fd: int) -> LinkInfo:
    words = _info(fd, 5)
    return LinkInfo(words[0], words[1], words[2], words[4])


def map_by_id(number: int) -> int:
    return _checked(_function("bpf_map_get_fd_by_id", _I, _U32)(number), "map", f"number {number}")


def type_information(fd: int) -> bytes:
    """What a BTF descriptor stands for: the bytes of a section ``.BTF``."""
    get = _function("bpf_obj_get_info_by_fd", _I, _I, _P, _P)
    info = (c.c_uint64 * 2)()  # address of a buffer; its size, and the number of the object in the upper half
    for room in (0, 1):
        found = c.create_string_buffer((info[1] & 0xFFFFFFFF) or 1)
        info[0], info[1] = (c.addressof(found), len(found)) if room else (0, 0)
        _checked(get(fd, c.byref(info), c.byref(c.c_uint32(c.sizeof(info)))), "map", f"descriptor {fd}")
    return found.raw


def program_by_id(number: int) -> int:
    return _checked(_function("bpf_prog_get_fd_by_id", _I, _U32)(number), "map", f"program number {number}")


# --- links --------------------------------------------------------------------------------------------------


def link_create(program: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    options = _LinkCreateOpts(size=c.sizeof(_LinkCreateOpts), flags=flags)
    create = _function("bpf_link_create", _I, _I, _I, _I, _P)
    attempt = "egress attach" if attach_type == ATTACH_TCX_EGRESS else "attach"
    return _checked(create(program, ifindex, attach_type, c.byref(options)), attempt, f"interface {ifindex}")


def link_replace(link: int, program: int) -> None:
    """One atomic step: every packet is judged by the old program or by the new one."""
    _checked(_function("bpf_link_update", _I, _I, _I, _P)(link, program, None), "replace", "the attached program")


def link_detach(link: int) -> None:
    _checked(_function("bpf_link_detach", _I, _I)(link), "replace", "the attached program")


# --- traffic control without links: filters of the queue "clsact" -------------------------------------------


class _TcHook(c.Structure):
    _fields_ = (("size", c.c_size_t), ("ifindex", c.c_int), ("point", c.c_int), ("parent", c.c_uint32))


class _TcOpts(c.Structure):
    _fields_ = (
        ("size", c.c_size_t), ("prog_fd", c.c_int), ("flags", c.c_uint32), ("prog_id", c.c_uint32),
        ("handle", c.c_uint32), ("priority", c.c_uint32),
    )  # fmt: skip


_TC_EGRESS, _TC_REPLACE = 2, 1


class EgressFilter:
    """One place among the filters for what leaves an interface: ``priority`` and ``handle`` name it."""

    def __init__(self, ifindex: int, priority: int, handle: int) -> None:
        self._hook = _TcHook(size=c.sizeof(_TcHook), ifindex=ifindex, point=_TC_EGRESS)
        self._priority, self._handle = priority, handle
        self._name = f"interface {ifindex}"

    def _options(self, **more: int) -> _TcOpts:
        return _TcOpts(size=c.sizeof(_TcOpts), priority=self._priority, handle=self._handle, **more)

    def _call(self, name: str, *options: _TcOpts) -> None:
        call = _function(name, _I, *[_P] * (1 + len(options)))
        _checked(call(c.byref(self._hook), *(c.byref(one) for one in options)), "egress attach", self._name)

    def program_id(self) -> int:
        """Number of the program in this place; 0 without one."""
        options = self._options()
        try:
            self._call("bpf_tc_query", options)
        except KernelRefused as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # no such filter; no queue for filters
                return 0
            raise
        return int(options.prog_id)

    def put(self, program: int) -> None:
        """Hang the program here, or in one step in the place of another version. The queue is made where it lacks."""
        try:
            self._call("bpf_tc_hook_create")
        except KernelRefused as error:
            if error.errno != errno.EEXIST:
                raise
        self._call("bpf_tc_attach", self._options(prog_fd=program, flags=_TC_REPLACE))

    def remove(self) -> None:
        """Take the program away; the queue stays, others may use it."""
        self._call("bpf_tc_detach", self._options())


# --- maps ---------------------------------------------------------------------------------------------------


def create_array(name: str, value_size: int, entries: int) -> int:
    """An array that can be mapped into memory."""
    options = _MapCreateOpts(size=c.sizeof(_MapCreateOpts), map_flags=MMAPABLE)
    create = _function("bpf_map_create", _I, _I, _S, _U32, _U32, _U32, _P)
    return _checked(create(ARRAY, name.encode(), 4, value_size, entries, c.byref(options)), "map", name)


def put(fd: int, key: npt.NDArray[Any], value: npt.NDArray[Any]) -> None:
    update = _function("bpf_map_update_elem", _I, _I, _P, _P, _U64)
    _checked(update(fd, address_of(key), address_of(value), 0), "map", f"descriptor {fd}")


def find(fd: int, key: npt.NDArray[Any], value: npt.NDArray[Any]) -> bool:
    """Fill ``value`` from the map. False when there is no such key."""
    result = _function("bpf_map_lookup_elem", _I, _I, _P, _P)(fd, address_of(key), address_of(value))
    if result < 0 and c.get_errno() == errno.ENOENT:
        return False
    _checked(result, "map", f"descriptor {fd}")
    return True


def read_value(source: int | Path) -> bytes:
    """The first value of an array, by descriptor or by pin."""
    fd = source if isinstance(source, int) else get_pinned(source)
    try:
        value = np.zeros(map_info(fd).value_size, np.uint8)
        find(fd, np.zeros(1, "<u4"), value)
        return value.tobytes()
    finally:
        if not isinstance(source, int):
            os.close(fd)


def delete(fd: int, key: npt.NDArray[Any]) -> bool:
    result = _function("bpf_map_delete_elem", _I, _I, _P)(fd, address_of(key))
    if result < 0 and c.get_errno() == errno.ENOENT:
        return False
    _checked(result, "map", f"descriptor {fd}")
    return True


def delete_where(fd: int, keys: npt.NDArray[Any], value: npt.NDArray[Any], holds: Callable[[], bool]) -> int:
    """Delete those of ``keys`` (contiguous) whose value, looked at again just before, still meets the condition.

    value: one row, where the look is put and ``holds`` finds it. About 3 us a key. Returns how many went."""
    look = _function("bpf_map_lookup_elem", _I, _I, _P, _P)
    remove = _function("bpf_map_delete_elem", _I, _I, _P)
    seen, at, step, gone = address_of(value), keys.ctypes.data, keys.itemsize, 0
    for key in range(at, at + len(keys) * step, step):
        if look(fd, key, seen) == 0 and holds():
            gone += remove(fd, key) == 0
    return gone


def put_many(fd: int, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> int:
    """Returns how many were stored; fewer than given means that the map is full."""
    options = _BatchOpts(size=c.sizeof(_BatchOpts))
    count = c.c_uint32(len(keys))
    update = _function("bpf_map_update_batch", _I, _I, _P, _P, _P, _P)
    result = update(fd, address_of(keys), address_of(values), c.byref(count), c.byref(options))
    if result < 0 and c.get_errno() in (errno.E2BIG, errno.ENOSPC):
        return count.value
    _checked(result, "map", f"descriptor {fd}")
    return count.value


def read_all(fd: int, key: np.dtype[Any], value: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """All entries, in bulk; the map may change meanwhile. (LPM tries know bulk reads since kernel 5.13.)"""
    chunk = max(map_info(fd).max_entries, 1)
    options = _BatchOpts(size=c.sizeof(_BatchOpts))
    lookup = _function("bpf_map_lookup_batch", _I, _I, _P, _P, _P, _P, _P, _P)
    keys, values = np.zeros(chunk, key), np.zeros(chunk, value)
    found: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    cursor, first = c.create_string_buffer(max(key.itemsize, 8)), True
    while True:
        count = c.c_uint32(chunk)
        at = None if first else c.byref(cursor)
        result = lookup(fd, at, c.byref(cursor), address_of(keys), address_of(values), c.byref(count), c.byref(options))
        first = False
        number = c.get_errno() if result < 0 else 0
        if number not in (0, errno.ENOENT):
            _checked(result, "map", f"descriptor {fd}")
        found.append((keys[: count.value].copy(), values[: count.value].copy()))
        if number == errno.ENOENT:
            return np.concatenate([k for k, _ in found]), np.concatenate([v for _, v in found])


# --- test runs ----------------------------------------------------------------------------------------------


class TestRunner:
    """BPF_PROG_TEST_RUN with buffers that are set up once: about 2 us a frame.

    ``run`` gives the program's return value; afterwards ``out`` holds the frame as the program left it."""

    __test__ = False  # for pytest: this is no test

    def __init__(self, program: int, *, context_bytes: int = 0) -> None:
        self._program = program
        self._run = _function("bpf_prog_test_run_opts", _I, _I, _P)
        self.out = c.create_string_buffer(4096)
        self.context = c.create_string_buffer(max(context_bytes, 1))
        self._options = _TestRunOpts(size=c.sizeof(_TestRunOpts), repeat=1, data_out=c.cast(self.out, c.c_void_p))
        self._context_bytes = context_bytes
        self._reference = c.byref(self._options)
        self._frame = c.c_char_p()

    def run(self, frame: bytes) -> int:
        options = self._options
        self._frame.value = frame  # keeps the bytes alive during the call
        options.data_in = c.cast(self._frame, c.c_void_p).value
        options.data_size_in = len(frame)
        options.data_size_out = 4096
        if self._context_bytes:
            options.ctx_out, options.ctx_size_out = c.cast(self.context, c.c_void_p).value, self._context_bytes
        if self._run(self._program, self._reference) < 0:
            raise KernelRefused("test run", f"a frame of {len(frame)} bytes", c.get_errno())
        return int(options.retval)

    def nanoseconds(self, frame: bytes, packets: int) -> int:
        """The kernel's own stopwatch: mean time of so many runs over the same buffer, which the program may change."""
        self._options.repeat = packets
        try:
            self.run(frame)
        finally:
            self._options.repeat = 1
        return int(self._options.duration)


def send_frames(program: int, frame: bytes, packets: int, batch: int = 64) -> None:
    """Make so many real frames and do with each what the program says: pass, redirect to a device, drop.

    The kernel recycles the pages, so the program must write every field that something behind it changes."""
    buffer = c.create_string_buffer(frame, len(frame))
    options = _TestRunOpts(
        size=c.sizeof(_TestRunOpts), data_in=c.cast(buffer, c.c_void_p), data_size_in=len(frame), repeat=packets,
        flags=LIVE_FRAMES, batch_size=batch,
    )  # fmt: skip
    result = _function("bpf_prog_test_run_opts", _I, _I, _P)(program, c.byref(options))
    _checked(result, "test run", f"{packets} live frames")
