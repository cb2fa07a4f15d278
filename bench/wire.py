"""Nanoseconds per dropped packet on a real wire: the skin on its rungs, nft and ipset, each behind a veth of its own.

    generator namespace ── g0 ═ v0 ── namespace of candidate 0, and so on

Live frames leave through one end of a veth pair and meet the filter on the other; the clock covers both, as generator
and receiver share one core, so what the generator costs alone is taken off. All lists hold hosts only, so that each
peer may use its fastest table (nft: a hash set); sources are random and all of them listed.
"""

import contextlib
import ctypes
import fcntl
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator

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
REFERENCE = "nft ingress, hash set"
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
    frames = 20_000 if options.quick else 500_000
    times: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(pins())
        generator = stack.enter_context(Namespace("generator"))
        mutator, skin = Mutator(directory), Skin(directory, live=True, steps=False)
        stack.callback(skin.close)
        skin.publish(hosts, random)
        mutator.use(listed_sources(hosts, random))
        send, discard = mutator.program("send4"), mutator.program("discard4")
        lanes = [stack.enter_context(_lane(name, index, generator, skin, hosts)) for index, name in enumerate(NAMES)]
        for lap in range(options.rounds + 1):
            with generator.entered():
                spent = _timed(discard, tcp_frame(), frames)
                for name, device, mac, _ in lanes:
                    mutator.send_through(socket.if_nametoindex(device))
                    taken = _timed(send, tcp_frame(mac=mac), frames)
                    if lap:  # the first lap only warms up
                        times[name].append(taken)
                if lap:
                    times["generator"].append(spent)
        for name, device, _, space in lanes:
            if not name.startswith("skin"):
                came, went_on = _arrivals(space, device.replace("g", "v"))
                expected = frames * (options.rounds + 1)
                assert (came >= expected, went_on) == (True, 0), f"{name}: {came} of {expected} came, {went_on} went on"
        seen = skin.plane.counters().did_packets["blocklist"]
        expected = 2 * frames * (options.rounds + 1)
        assert seen == expected, f"the skin dropped {seen} of {expected}"
    net = {name: median_net(spent, times["generator"]) for name, spent in times.items() if name != "generator"}
    claims = []
    for rung in ("native", "generic"):
        for peer in (name for name in net if not name.startswith("skin")):
            limit = PROMISED[rung] if peer == REFERENCE and size >= 1_000_000 else None
            claims.append(
                Claim(what=f"veth, blocked, {rung}", entries=size, ours=net[f"skin, {rung}"], unit="ns/packet",
                      peer=peer, theirs=net[peer], limit=limit)
            )  # fmt: skip
    return claims


NAMES = ("skin, native", "skin, generic", *HOOKS, "ipset hash:ip, raw table")


@contextlib.contextmanager
def _lane(
    name: str, index: int, generator: Namespace, skin: Skin, hosts: Prefixes
) -> Iterator[tuple[str, str, bytes, Namespace]]:
    """A veth pair with one candidate on its far end: name, device to send through, MAC to send to, namespace."""
    near, far = f"g{index}", f"v{index}"
    with Namespace(f"lane{index}") as space:
        generator.ip(f"link add {near} type veth peer name {far} netns {space.name}", f"link set {near} up")
        space.ip(f"link set {far} up")
        with space.entered():
            gro_on(far)  # without it a veth takes no frames that were redirected to its peer
            if name.startswith("skin"):
                skin.plane.attach(far, (Rung(name.removeprefix("skin, ")),))
        if name in HOOKS:
            family, hook = HOOKS[name]
            text = NFT.format(family=family, hook=hook.format(device=far), hosts=", ".join(prefixes.to_text(hosts)))
            space.run("nft", "-f", "-", text=text, timeout_s=120)
        elif name.startswith("ipset"):
            space.run("ipset", "restore", text=_ipset(prefixes.to_text(hosts)), timeout_s=120)
            space.run("iptables", "-t", "raw", "-A", "PREROUTING", "-m", "set", "--match-set", "t", "src", "-j", "DROP")
        yield name, near, bytes.fromhex(space.mac(far).replace(":", "")), space


def _ipset(hosts: list[str]) -> str:
    head = f"create t hash:ip maxelem {len(hosts) + 16} hashsize {max(1024, len(hosts) // 4)}"
    return "\n".join([head, *(f"add t {host}" for host in hosts)]) + "\n"


def _arrivals(space: Namespace, device: str) -> tuple[int, int]:
    """Packets that came in, and those that IP did anything with. (nft would read a million elements first.)"""
    devices = space.run("cat", "/proc/net/dev").stdout.splitlines()
    came = next(int(line.split(":")[1].split()[1]) for line in devices if line.strip().startswith(f"{device}:"))
    names, values = (line.split() for line in space.run("cat", "/proc/net/snmp").stdout.splitlines()[:2])
    told = dict(zip(names, values, strict=True))
    return came, sum(int(told[name]) for name in ("InDelivers", "InHdrErrors", "InAddrErrors", "ForwDatagrams"))


def gro_on(device: str) -> None:
    value = ctypes.create_string_buffer(struct.pack("II", SET_GRO, 1))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value)) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def _timed(program: int, frame: bytes, frames: int) -> float:
    began = time.perf_counter_ns()
    libbpf.send_frames(program, frame, frames)
    return (time.perf_counter_ns() - began) / frames


if __name__ == "__main__":
    run(measure, __doc__)
