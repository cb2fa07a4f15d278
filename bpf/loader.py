"""The real data plane: the compiled program in the kernel, pinned, hung on interfaces through links.

Nothing here tears down in order to build up. A link found in the pins is kept; another version of the program replaces
the attached one in one atomic step; tables are adopted with their content. Only ``detach`` takes protection away.
"""

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from bpf import abi, bpffs, libbpf
from bpf.ban_rows import BanRows
from bpf.dataplane import (
    AllRungsRefused,
    Attachment,
    Ban,
    Charge,
    Counters,
    DataPlane,
    DataPlaneError,
    Drain,
    Egress,
    EgressWay,
    FlowReader,
    Loaded,
    NoSuchInterface,
    Policy,
    Proof,
    Rung,
    SampleDrain,
    Vaccine,
)
from bpf.driver import can_answer
from bpf.egress import Carriers, EgressHooks
from bpf.flow_table import FlowTable
from bpf.maps import SYN_COOKIE, SYN_DROP, SYN_PASS, BanTable, Knobs, SnapshotSlot, Tolerance, VaccineTable
from bpf.perf import PerfDrain
from bpf.prog_run import Runner, prove, prove_payload
from bpf.program import Build, EventPath, Program, keep_pins, open_program, retire_others
from bpf.ring import NoSamples, NoStream, RecordRing, SampleRing
from bpf.sources import SourceTable
from bpf.stats import StatsReader

_ATTACH = {
    Rung.NATIVE: ("xdp", libbpf.ATTACH_XDP, libbpf.XDP_NATIVE),
    Rung.TCX: ("tc", libbpf.ATTACH_TCX_INGRESS, 0),
    Rung.GENERIC: ("xdp", libbpf.ATTACH_XDP, libbpf.XDP_GENERIC),
}
_LOOPBACK = 1


class KernelPlane:
    """See ``bpf.dataplane.DataPlane`` for the promises. ``bpf_dir`` None keeps everything private (tests, replay)."""

    events: Drain
    flows: FlowReader

    def __init__(
        self,
        bpf_dir: Path | None,
        build: Build | None = None,
        policy: Policy | None = None,
        *,
        made: tuple[Program, str] | None = None,
    ) -> None:
        """Load or adopt; or take what another loader has ``made``, and why it was its turn. Raises DataPlaneError with
        the cause in words when the kernel refuses."""
        self._dir = bpf_dir
        self._private: dict[tuple[str, Rung], int] = {}  # links without a pin
        self.program, why = made or (open_program(build or Build(), bpf_dir, policy), "")
        self.loaded = Loaded(self.program.loader, why, dict(self.program.refused))
        maps = self.program.maps
        self.knobs = Knobs(maps["knobs"])
        self._cookies_wanted = (policy or Policy()).syn_cookies
        self._bans = BanTable(maps["bans"], maps["ban_filters"], maps["prefix_bans"], maps["prefix_filter"], self.knobs)
        self._tolerance = Tolerance(maps["tolerance"])
        self._vaccines = VaccineTable(maps["vaccines"], maps["vaccine_filter"], self.knobs)
        self._sources = SourceTable(maps["sources"], maps["source_rows"], self.knobs)
        self._snapshots = (SnapshotSlot(maps["snapshot"], 4), SnapshotSlot(maps["snapshot6"], 6))
        self._stats = StatsReader(maps["stats"])
        self._bans.refresh()
        self._vaccines.refresh()
        self.flows = FlowTable(maps["flow_index"], maps["flows"])
        self.events = self._open_events()
        no_egress = self.program.refused.get("egress", "this loader has no program for what leaves")
        self._carriers = Carriers(maps["carriers"])
        self._egress = EgressHooks(self.program.entries.get("egress", -1), bpf_dir, no_egress)
        self._runner = Runner(self.program.entries["xdp"])

    @cached_property
    def samples(self) -> SampleDrain:
        """Mapped when somebody asks: the ring has one reader, and that is not the cell that loads the program."""
        maps = self.program.maps
        return SampleRing(os.dup(maps["samples"])) if "samples" in maps else NoSamples()

    def _arm_cookies(self) -> None:
        """Cookies are answered only while every interface can send the answer; the stack's own stand behind them."""
        if self.knobs["syn_flood_answer"] == SYN_DROP:
            return
        hung = self.attachments() if self._cookies_wanted else []
        armed = bool(hung) and all(can_answer(attachment) for attachment in hung)
        self.knobs["syn_flood_answer"] = SYN_COOKIE if armed else SYN_PASS

    def _open_events(self) -> Drain:
        if self.program.event_path is EventPath.RING:
            return RecordRing(os.dup(self.program.maps["events"]), abi.EVENT)
        if self.program.event_path is EventPath.PERF:
            return PerfDrain(self.program.maps["events_perf"], abi.EVENT)
        return NoStream()

    # --- interfaces ---------------------------------------------------------------------------------------

    def attach(
        self,
        interface: str,
        rungs: Sequence[Rung] = (Rung.NATIVE, Rung.TCX, Rung.GENERIC),
        climb: bool = False,
    ) -> Attachment:
        ifindex = _ifindex(interface)
        standing = self._standing(interface, ifindex, rungs)
        refused: dict[str, str] = {}
        if standing is None or climb or standing.rung not in rungs:
            higher = rungs if standing is None else _better(standing.rung, rungs)
            for rung in higher:
                try:
                    if standing is not None and {standing.rung, rung} == {Rung.NATIVE, Rung.GENERIC}:
                        self._change_mode(interface, ifindex, standing.rung, rung)
                    else:
                        self._hang(interface, ifindex, rung)
                except libbpf.KernelRefused as error:
                    if error.errno == errno.ENODEV:
                        raise NoSuchInterface(f"interface {interface} is gone", errno=error.errno) from error
                    refused[rung] = str(error)
                    continue
                if standing is not None:
                    self._take_down(interface, standing.rung)
                standing = Attachment(interface, ifindex, rung, refused)
                break
        if standing is None:
            raise AllRungsRefused(
                f"the program cannot be hung on {interface}: " + "; ".join(refused.values()),
                refused=refused,
                remedy="the filter cell protects at a lower rung meanwhile",
            )
        retire_others(self.program, self._running())
        self._carriers.replace(attachment.ifindex for attachment in self.attachments())
        self._arm_cookies()
        return Attachment(interface, ifindex, standing.rung, {**standing.refused, **refused}, standing.adopted)

    def _standing(self, interface: str, ifindex: int, rungs: Sequence[Rung]) -> Attachment | None:
        """The pinned link of an allowed rung that still holds its device, with our program on it; severed and foreign
        ones are let go, after the better one has been chosen."""
        found: Attachment | None = None
        for rung in Rung:
            path = self._link_pin(rung, interface)
            if path is None or not path.exists():
                continue
            link = libbpf.get_pinned(path)
            try:
                if libbpf.link_info(link).ifindex != ifindex or found is not None:
                    bpffs.unpin(path)
                    continue
                program = self.program.entries[_ATTACH[rung][0]]
                if libbpf.link_info(link).program_id != libbpf.program_id(program):
                    libbpf.link_replace(link, program)
                found = Attachment(interface, ifindex, rung, adopted=True)
            except libbpf.KernelRefused as error:
                if error.errno != errno.ENOLINK:
                    raise
                bpffs.unpin(path)
            finally:
                os.close(link)
        for name, rung in [key for key in self._private if key[0] == interface]:
            if found is None and libbpf.link_info(self._private[name, rung]).ifindex == ifindex:
                found = Attachment(interface, ifindex, rung, adopted=True)
            else:
                os.close(self._private.pop((name, rung)))
        return found

    def _hang(self, interface: str, ifindex: int, rung: Rung) -> None:
        if ifindex == _LOOPBACK:
            raise libbpf.KernelRefused("attach", f"{interface} (loopback is where proofs come from)", errno.EOPNOTSUPP)
        kind, attach_type, flags = _ATTACH[rung]
        link = libbpf.link_create(self.program.entries[kind], ifindex, attach_type, flags)
        path = self._link_pin(rung, interface)
        if path is None:
            self._private[interface, rung] = link
            return
        try:
            libbpf.pin(link, path)
        finally:
            os.close(link)

    def _change_mode(self, interface: str, ifindex: int, old: Rung, new: Rung) -> None:
        """Two XDP modes exclude each other, so the traffic-control hook guards the moment in between (where the kernel
        has none, there is a gap of some milliseconds)."""
        with suppress(libbpf.KernelRefused):
            self._hang(interface, ifindex, Rung.TCX)
        try:
            self._take_down(interface, old)
            try:
                self._hang(interface, ifindex, new)
            except libbpf.KernelRefused:
                self._hang(interface, ifindex, old)
                raise
        finally:
            self._take_down(interface, Rung.TCX)

    def account_egress(self, interface: str, wanted: bool = True) -> Egress:
        if wanted:
            return self._egress.hang(interface, _ifindex(interface))
        self._egress.take_down(interface)
        return Egress(interface)

    def egress(self) -> dict[str, EgressWay]:
        return self._egress.standing()

    def detach(self, interface: str) -> bool:
        gone = self._egress.take_down(interface)
        for rung in Rung:
            gone = self._take_down(interface, rung) or gone
        self._carriers.replace(attachment.ifindex for attachment in self.attachments())
        return gone

    def _take_down(self, interface: str, rung: Rung) -> bool:
        path = self._link_pin(rung, interface)
        if path is None:
            link = self._private.pop((interface, rung), -1)
            if link >= 0:
                os.close(link)
            return link >= 0
        if not path.exists():
            return False
        link = libbpf.get_pinned(path)
        try:
            held = libbpf.link_info(link).ifindex != 0
            with suppress(libbpf.KernelRefused):
                libbpf.link_detach(link)  # unpinning alone would wait for the last descriptor anywhere
            return held
        finally:
            bpffs.unpin(path)
            os.close(link)

    def attachments(self) -> list[Attachment]:
        found = []
        for (interface, rung), link in self._private.items():
            if ifindex := libbpf.link_info(link).ifindex:
                found.append(Attachment(interface, ifindex, rung))
        for path in self._link_pins():
            rung_text, _, _name = path.name.partition("_")
            link = libbpf.get_pinned(path)
            try:
                ifindex = libbpf.link_info(link).ifindex
            finally:
                os.close(link)
            if ifindex:
                with suppress(OSError):  # the index may be of another namespace, or gone this instant
                    found.append(Attachment(socket.if_indextoname(ifindex), ifindex, Rung(rung_text), adopted=True))
        return found

    def _link_pins(self) -> list[Path]:
        directory = None if self._dir is None else self._dir / "links"
        if directory is None or not directory.is_dir():
            return []
        return sorted(path for path in directory.iterdir() if path.name.partition("_")[0] in set(Rung))

    def _link_pin(self, rung: Rung, interface: str) -> Path | None:
        if self._dir is None:
            return None
        directory = self._dir / "links"
        if not directory.is_dir():
            bpffs.ensure(directory)
        return directory / f"{rung}_{bpffs.pin_name(interface)}"

    def keep_pins(self) -> int:
        return keep_pins(self.program) + self._egress.keep_pins()

    def _running(self) -> dict[str, int]:
        """Link pin → number of the program that hangs there; severed links do not count."""
        found = {}
        for path in self._link_pins():
            link = libbpf.get_pinned(path)
            try:
                info = libbpf.link_info(link)
                if info.ifindex:
                    found[path.name] = info.program_id
            finally:
                os.close(link)
        return found

    # --- tables -------------------------------------------------------------------------------------------

    def set_policy(self, policy: Policy) -> None:
        self.knobs.set_policy(policy)
        self._cookies_wanted = policy.syn_cookies
        self._arm_cookies()

    def ban(self, bans: Iterable[Ban]) -> int:
        return self._bans.put(bans)

    def ban_many(self, rows: bytes, until_ns: int) -> int:
        return self._bans.put_rows(rows, until_ns)

    def release(self, subjects: Iterable[str]) -> int:
        return self._bans.delete(subjects)

    def bans(self) -> list[Ban]:
        return self._bans.read_all()

    def ban_rows(self) -> BanRows:
        return self._bans.read_rows()

    def sweep(self, now_ns: int) -> int:
        return self._bans.sweep(now_ns) + self._vaccines.sweep(now_ns)

    def charge(self, charges: Iterable[Charge]) -> int:
        return self._sources.charge(charges)

    def tolerate(self, prefixes: Sequence[str]) -> None:
        self._tolerance.replace(prefixes)

    def tolerated(self) -> list[str]:
        return self._tolerance.read_all()

    def vaccinate(self, vaccines: Iterable[Vaccine]) -> int:
        return self._vaccines.put(vaccines)

    def unvaccinate(self, vaccines: Iterable[Vaccine]) -> int:
        return self._vaccines.delete(vaccines)

    def vaccines(self) -> list[Vaccine]:
        return self._vaccines.read_all()

    def publish(self, snapshot: Path | None, snapshot6: Path | None) -> None:
        for slot, path in zip(self._snapshots, (snapshot, snapshot6), strict=True):
            if path is not None:
                slot.publish(path)

    # --- answers ------------------------------------------------------------------------------------------

    def prove(self, subjects: Sequence[str]) -> list[Proof]:
        return prove(self._runner, subjects)

    def prove_payload(self, proto: int, dest_port: int, head: bytes) -> Proof:
        return prove_payload(self._runner, proto, dest_port, head)

    def counters(self) -> Counters:
        return self._stats.read()

    def close(self) -> None:
        self.events.close()
        if "samples" in self.__dict__:
            self.samples.close()
        for link in self._private.values():
            os.close(link)
        self._private.clear()
        self._egress.close()
        self.program.close()


def _ifindex(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise NoSuchInterface(
            f"there is no interface {interface}", errno=errno.ENODEV, remedy="ip link shows those that exist"
        ) from error


def _better(current: Rung, rungs: Sequence[Rung]) -> Sequence[Rung]:
    """Allowed rungs above the current one; all of them when the current one is not allowed."""
    return rungs[: rungs.index(current)] if current in rungs else rungs


def open_plane(bpf_dir: Path, build: Build | None = None, policy: Policy | None = None) -> DataPlane:
    """The real data plane with its pins below ``bpf_dir``. Raises DataPlaneError when there can be none here."""
    return KernelPlane(bpf_dir, build, policy)


__all__ = ["Build", "DataPlaneError", "KernelPlane", "open_plane"]
