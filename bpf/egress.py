"""The program for what leaves (bpf/egress.h), hung on interfaces beside the one for what comes.

First as a TCX link, pinned at ``egress/<interface>``, before all programs that others have hung there, because it sees
what they would take and takes nothing from them; where the kernel has no TCX (before 6.6), as a filter of the queue
``clsact`` in a place of our own. Both live in the kernel: a dead service changes nothing, the next one adopts them, and
another version takes their place in one step. A place that somebody else's program holds is left alone.
"""

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from bpf import bpffs, libbpf
from bpf.dataplane import Egress, EgressWay, NoSuchInterface

#: Our place among the filters: the first priority, and the number by which the shaper's queue is known, too.
PRIORITY, HANDLE = 1, 0x7E6
#: The kernel keeps 15 letters of a program's name.
NAME = "tegumentar_egress"[:15]
#: errno of a link that has lost its device, and of a pin that is no link.
_NO_LINK = (errno.ENOLINK, errno.EINVAL)


class Carriers:
    """The interfaces that carry the program, as the kernel looks them up: what came in through one of them, and is only
    passed on, has been accounted there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def replace(self, indexes: Iterable[int]) -> None:
        wanted, one = set(indexes), np.ones(1, "<u4")
        standing = set(libbpf.read_all(self._fd, np.dtype("<u4"), np.dtype("<u4"))[0].tolist())
        for index in wanted - standing:
            libbpf.put(self._fd, np.array([index], "<u4"), one)
        for index in standing - wanted:
            libbpf.delete(self._fd, np.array([index], "<u4"))


class EgressHooks:
    """Those of one data plane. program -1: this kernel, or this loader, has none, and ``why`` says so."""

    def __init__(self, program: int, bpf_dir: Path | None, why: str = "") -> None:
        self._program, self._why = program, why
        self._directory = None if bpf_dir is None else bpf_dir / "egress"
        self._links: dict[str, int] = {}
        self._filtered: set[str] = set()

    def hang(self, interface: str, ifindex: int) -> Egress:
        """Adopt, replace, or hang anew. Raises NoSuchInterface when the device goes meanwhile."""
        if self._program < 0:
            return Egress(interface, refused={"program": self._why}, remedy="see `doctor`")
        refused: dict[str, str] = {}
        remedy = ""
        for way, attempt in ((EgressWay.TCX, self._as_link), (EgressWay.CLSACT, self._as_filter)):
            try:
                attempt(interface, ifindex)
            except libbpf.KernelRefused as error:
                if error.errno == errno.ENODEV:
                    raise NoSuchInterface(f"interface {interface} is gone", errno=error.errno) from error
                refused[str(way)], remedy = str(error), error.remedy
                continue
            if way is EgressWay.TCX:
                self._drop_filter(interface, ifindex)  # from a life that had no links: no frame counts twice
            return Egress(interface, way, refused)
        return Egress(interface, None, refused, remedy)

    def take_down(self, interface: str) -> bool:
        """Whether there was anything of ours."""
        link, held = self._link(interface), False
        if link >= 0:
            held = libbpf.link_info(link).ifindex != 0
            self._drop_link(interface)
        with suppress(OSError):
            held = self._drop_filter(interface, socket.if_nametoindex(interface)) or held
        return held

    def standing(self) -> dict[str, EgressWay]:
        """What hangs now, of what was hung or adopted here."""
        found = {}
        for name, link in self._links.items():
            if libbpf.link_info(link).ifindex:
                found[name] = EgressWay.TCX
        for name in self._filtered:
            with suppress(OSError, libbpf.KernelRefused):
                if _is_ours(_place(socket.if_nametoindex(name)).program_id()):
                    found[name] = EgressWay.CLSACT
        return found

    def keep_pins(self) -> int:
        """Pin links again that somebody unpinned. Returns how many."""
        missing = [name for name in self._links if (path := self._pin(name)) is not None and not path.exists()]
        for name in missing:
            self._pin_link(name)
        return len(missing)

    def close(self) -> None:
        """The kernel goes on where there are pins or filters; private links end here."""
        for link in self._links.values():
            os.close(link)
        self._links.clear()

    # --- as a link ----------------------------------------------------------------------------------------

    def _as_link(self, interface: str, ifindex: int) -> None:
        link = self._link(interface)
        if link >= 0:
            if self._takes(link, ifindex):
                return
            self._drop_link(interface)
        self._links[interface] = libbpf.link_create(self._program, ifindex, libbpf.ATTACH_TCX_EGRESS, libbpf.FIRST)
        self._pin_link(interface)

    def _takes(self, link: int, ifindex: int) -> bool:
        """Whether this link holds the device; then our program is on it."""
        info = libbpf.link_info(link)
        if info.ifindex != ifindex:
            return False
        try:
            if info.program_id != libbpf.program_id(self._program):
                libbpf.link_replace(link, self._program)
        except libbpf.KernelRefused as error:
            if error.errno in _NO_LINK:
                return False
            raise
        return True

    def _link(self, interface: str) -> int:
        """The link of this life, or the one that a former life has pinned; -1 without."""
        path = self._pin(interface)
        if interface not in self._links and path is not None and path.exists():
            found = libbpf.get_pinned(path)
            if libbpf.link_info(found).type != libbpf.LINK_TCX:
                os.close(found)
                bpffs.unpin(path)  # some other object that bears our name
                return -1
            self._links[interface] = found
        return self._links.get(interface, -1)

    def _drop_link(self, interface: str) -> None:
        link = self._links.pop(interface)
        with suppress(libbpf.KernelRefused):
            libbpf.link_detach(link)  # unpinning alone would wait for the last descriptor anywhere
        os.close(link)
        if (path := self._pin(interface)) is not None:
            bpffs.unpin(path)

    def _pin(self, interface: str) -> Path | None:
        return None if self._directory is None else self._directory / bpffs.pin_name(interface)

    def _pin_link(self, interface: str) -> None:
        if self._directory is not None and (path := self._pin(interface)) is not None:
            bpffs.ensure(self._directory)
            libbpf.pin(self._links[interface], path)

    # --- as a filter --------------------------------------------------------------------------------------

    def _as_filter(self, interface: str, ifindex: int) -> None:
        place = _place(ifindex)
        number = place.program_id()
        if number != libbpf.program_id(self._program):
            if number and not _is_ours(number):
                raise libbpf.KernelRefused("egress attach", interface, errno.EBUSY)
            place.put(self._program)
        self._filtered.add(interface)

    def _drop_filter(self, interface: str, ifindex: int) -> bool:
        self._filtered.discard(interface)
        with suppress(libbpf.KernelRefused):
            place = _place(ifindex)
            if _is_ours(place.program_id()):
                place.remove()
                return True
        return False


def _place(ifindex: int) -> libbpf.EgressFilter:
    return libbpf.EgressFilter(ifindex, PRIORITY, HANDLE)


def _is_ours(program_id: int) -> bool:
    return bool(program_id) and libbpf.program_name(program_id) == NAME
