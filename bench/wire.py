"""Nanoseconds per dropped packet on a real wire: the skin on its rungs, nft and ipset, each behind a veth of its own.

    generator namespace ── g0 ═ v0 ── namespace of candidate 0, and so on

Live frames leave through one end of a veth pair and meet the filter on the other; generator and receiver share one
core, and what is measured is that core's time for both. The harness is the generator and a wire of its own, the same
kind of pair, whose far end drops at once in XDP and looks at nothing: what that costs in the same round is taken off
for every candidate alike. "with the wire" takes off the generator only. All lists hold hosts only, so that each peer
may use its fastest table (nft: a hash set); sources are random and all of them listed.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from actors.admin.lab.net import Namespace
from actors.epidermis import prefixes
from actors.epidermis.prefixes import Prefixes
from bench.blocklist_harness import listed_sources, made_up_list
from bench.claims import Claim, Options, median_net, run
from bench.kernel import Mutator, Skin, pins, stay_on_one_cpu, tcp_frame
from bpf import libbpf
from bpf.dataplane import Rung

PROMISED = {"native": 0.35, "generic": 0.8}
LAPS = 2  #: of each round: short ones, because a neighbour on the machine disturbs some of them
REFERENCE = "nft ingress, hash set"
WIRE = "wire, dropped at once"
SIOCETHTOOL, SET_GRO = 0x8946, 0x2C
NFT = """table {family} t {{
    set hosts {{ type ipv4_addr; elements = {{ {hosts} }} }}
    chain c {{
        type filter hook {hook}
        ip saddr @hosts counter drop
    }}
}}
"""
HOOKS = {
    "nft ingress, hash set": ("netdev", "ingress device {device} priority -500;"),
    "nft prerouting, hash set": ("ip", "prerouting priority -300;"),
}


def measure(options: Options) -> list[Claim]:
    stay_on_one_cpu()
    claims = []
    for size in options.sizes():
        claims += _one_size(size, options)
    return claims


def _one_size(size: int, options: Options) -> list[Claim]:
    random = np.random.default_rng(options.seed)
    hosts = made_up_list(4, size, random, hosts_only=True)
    frames = 20_000 if options.quick else 250_000
    times: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(pins())
        generator = stack.enter_context(Namespace("generator"))
        mutator, skin = Mutator(directory), Skin(directory, live=True, steps=False)
        stack.callback(skin.close)
        skin.publish(hosts, random)
        mutator.use(listed_sources(hosts, random))
        send, discard = mutator.program("send4"), mutator.program("discard4")
        candidates = [_lane(name, index, generator, skin, hosts) for index, name in enumerate(NAMES)]
        lanes = [stack.enter_context(lane) for lane in candidates]
        lanes.append(stack.enter_context(_bare_wire(len(lanes), generator, mutator)))
        for lap in range(LAPS * options.rounds + 1):
            with generator.entered():
                spent = timed(discard, tcp_frame(), frames) / frames
            for lane in lanes:
                taken = lane.send(generator, mutator, send, tcp_frame(mac=lane.mac), frames)
                if lap:  # the first lap only warms up
                    times[lane.name].append(taken)
            if lap:
                times["generator"].append(spent)
        seen = skin.plane.counters().did_packets["blocklist"]
        came = sum(lane.came for lane in lanes if lane.name.startswith("skin"))
        assert seen > 0.99 * came, f"the skin dropped {seen} of {came}"
        for lane in lanes:
            assert lane.went_on() == 0, f"{lane.name} let {lane.went_on()} packets pass"
    return _claims(size, times)


def _claims(size: int, times: dict[str, list[float]]) -> list[Claim]:
    claims = []
    for floor, words in ((WIRE, ""), ("generator", ", with the wire")):
        net = {name: median_net(times[name], times[floor]) for name in NAMES}
        for rung in ("native", "generic"):
            for peer in (name for name in NAMES if not name.startswith("skin")):
                if words and peer != REFERENCE:
                    continue
                promised = floor == WIRE and peer == REFERENCE and size >= 1_000_000
                claims.append(
                    Claim(what=f"veth, blocked, {rung}{words}", entries=size, ours=net[f"skin, {rung}"],
                          unit="ns/packet", peer=peer, theirs=net[peer], limit=PROMISED[rung] if promised else None)
                )  # fmt: skip
    return claims


NAMES = ("skin, native", "skin, generic", *HOOKS, "ipset hash:ip, raw table")


@contextlib.contextmanager
def _lane(name: str, index: int, generator: Namespace, skin: Skin, hosts: Prefixes) -> Iterator["Lane"]:
    """A veth pair with one candidate on its far end."""
    with _pair(index, generator, name) as lane:
        space, far = lane.space, lane.far
        if name.startswith("skin"):
            with space.entered():
                skin.plane.attach(far, (Rung(name.removeprefix("skin, ")),))
        elif name in HOOKS:
            family, hook = HOOKS[name]
            text = NFT.format(family=family, hook=hook.format(device=far), hosts=", ".join(prefixes.to_text(hosts)))
            space.run("nft", "-f", "-", text=text, timeout_s=120)
        elif name.startswith("ipset"):
            space.run("ipset", "restore", text=_ipset(prefixes.to_text(hosts)), timeout_s=120)
            space.run("iptables", "-t", "raw", "-A", "PREROUTING", "-m", "set", "--match-set", "t", "src", "-j", "DROP")
        yield lane


@contextlib.contextmanager
def _bare_wire(index: int, generator: Namespace, mutator: Mutator) -> Iterator["Lane"]:
    """A veth pair that is nobody's: its far end drops every frame before anything looks at it."""
    with _pair(index, generator) as lane:
        with lane.space.entered():
            ifindex = socket.if_nametoindex(lane.far)
            link = libbpf.link_create(mutator.program("drop_at_once"), ifindex, libbpf.ATTACH_XDP, libbpf.XDP_NATIVE)
        try:
            yield lane
        finally:
            os.close(link)


@contextlib.contextmanager
def _pair(index: int, generator: Namespace, name: str = WIRE) -> Iterator["Lane"]:
    near, far = f"g{index}", f"v{index}"
    with Namespace(f"lane{index}") as space:
        generator.ip(f"link add {near} type veth peer name {far} netns {space.name}", f"link set {near} up")
        space.ip(f"link set {far} up")
        with space.entered():
            gro_on(far)  # without it a veth takes no frames that were redirected to its peer
        yield Lane(name, near, far, space, bytes.fromhex(space.mac(far).replace(":", "")))


@dataclass
class Lane:
    """One wire: frames leave through ``near``, the candidate meets them on ``far``. came: all that arrived so far."""

    name: str
    near: str
    far: str
    space: Namespace
    mac: bytes
    came: int = 0

    def send(self, generator: Namespace, mutator: Mutator, program: int, frame: bytes, frames: int) -> float:
        """Nanoseconds for each frame that arrived: on a busy machine the wire's queue of 256 may lose some."""
        before = self._received()
        with generator.entered():
            mutator.send_through(socket.if_nametoindex(self.near), frame)
            taken = timed(program, frame, frames)
        arrived = self._received() - before
        self.came += arrived
        assert arrived > frames // 2, f"only {arrived} of {frames} frames arrived at {self.name}"
        return taken / arrived

    def _received(self) -> int:
        with self.space.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        return next(int(line.split(":")[1].split()[1]) for line in lines if line.strip().startswith(f"{self.far}:"))

    def went_on(self) -> int:
        """Packets that IP did anything with: none, where all are dropped. (nft would read a million elements first.)"""
        with self.space.entered():
            names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()[:2])
        told = dict(zip(names, values, strict=True))
        return sum(int(told[name]) for name in ("InDelivers", "InHdrErrors", "InAddrErrors", "ForwDatagrams"))


def _ipset(hosts: list[str]) -> str:
    head = f"create t hash:ip maxelem {len(hosts) + 16} hashsize {max(1024, len(hosts) // 4)}"
    return "\n".join([head, *(f"add t {host}" for host in hosts)]) + "\n"


def gro_on(device: str) -> None:
    value = ctypes.create_string_buffer(struct.pack("II", SET_GRO, 1))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value)) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def timed(program: int, frame: bytes, frames: int) -> int:
    """Nanoseconds of the core for all of them: in this thread, which receives most of what it sends, and in the
    kernel's own thread, which takes over where that becomes too much. What others had of the core does not count."""
    began = time.thread_time_ns() + _softirq_ns()
    libbpf.send_frames(program, frame, frames)
    return time.thread_time_ns() + _softirq_ns() - began


def _softirq_ns() -> int:
    """What the kernel's thread for packets on this core has had of it so far."""
    return int(_softirq_thread().read_text().split()[0])


@cache
def _softirq_thread() -> Path:
    """Its page of times. Raises OSError where the kernel shows none."""
    name = f"ksoftirqd/{max(os.sched_getaffinity(0))}"
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == name:
                return comm.with_name("schedstat")
    raise OSError(f"there is no {name} here: the time of packets cannot be told from that of others")


if __name__ == "__main__":
    run(measure, __doc__)
