"""What a SYN of a random-source flood costs: answered by the skin, by the kernel's own cookies, by nft synproxy.

Like for like: the same SYNs over the same kind of veth, each from another forged source, the answers sent back over the
same wire to nobody; generator and node share one core, so what the generator costs alone is taken off. The listener's
queue is full throughout. The skin hangs in generic mode, because a veth returns no native answers: a real driver spares
it the packet buffer as well, so this is the worse half of the truth.
"""

import contextlib
import socket
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from actors.admin.lab.net import Namespace
from bench.blocklist_harness import SOURCES
from bench.claims import Claim, Options, median_net, run
from bench.kernel import Mutator, pins, stay_on_one_cpu, tcp_frame
from bench.wire import Lane, gro_on, timed
from bpf.dataplane import Budget, Policy, Rung
from bpf.loader import KernelPlane
from bpf.program import Build

NODE, PEER, PORT = "192.0.2.1", "192.0.2.2", 443
#: Aimed at: twice the rate of the kernel's own path, so half the time.
AIM = 0.5
FLOODED = Policy(syn_dest=Budget(1, 1), syn=Budget(0, 0))
SYNPROXY = """table inet t {
    chain early { type filter hook prerouting priority raw; tcp dport 443 tcp flags syn notrack; }
    chain proxy {
        type filter hook input priority filter;
        tcp dport 443 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
    }
}
"""


def measure(options: Options) -> list[Claim]:
    stay_on_one_cpu()
    random = np.random.default_rng(options.seed)
    sources = np.zeros((SOURCES, 16), np.uint8)
    forged = random.integers(0x0B000000, 0x0C000000, SOURCES, dtype=np.uint64)
    sources[:, :4] = forged.astype(">u4").view(np.uint8).reshape(-1, 4)
    frames = 5_000 if options.quick else 200_000
    times: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(pins())
        generator = stack.enter_context(Namespace("generator"))
        mutator = Mutator(directory)
        mutator.use(sources)
        send, discard = mutator.program("send_syn4"), mutator.program("discard4")
        plane = KernelPlane(None, Build(), FLOODED)
        stack.callback(plane.close)
        lanes = [stack.enter_context(_node(name, index, generator, plane)) for index, name in enumerate(NAMES)]
        for lap in range(options.rounds + 1):
            for lane in lanes:
                taken = lane.send(generator, mutator, send, tcp_frame(mac=lane.mac, syn=True), frames)
                if lap:  # the first lap fills the queues
                    times[lane.name].append(taken)
            with generator.entered():
                times["generator"].append(timed(discard, tcp_frame(syn=True), frames) / frames)
        answered = plane.counters().tally["syn_cookies"]
        assert answered > 0.9 * lanes[0].came, f"the skin answered only {answered} of {lanes[0].came} SYNs"
    net = {name: median_net(spent, times["generator"]) for name, spent in times.items()}
    return [
        Claim(what="a SYN answered with a cookie", entries=0, ours=net[OURS], unit="ns/SYN", peer=peer,
              theirs=net[peer], limit=AIM)
        for peer in NAMES[1:]
    ]  # fmt: skip


OURS = "skin, generic"
NAMES = (OURS, "kernel's own cookies", "nft synproxy")


@contextlib.contextmanager
def _node(name: str, index: int, generator: Namespace, plane: KernelPlane) -> Iterator[Lane]:
    """A node with a listener behind a veth pair."""
    near, far = f"g{index}", f"v{index}"
    with Namespace(f"node{index}") as space, contextlib.ExitStack() as stack:
        generator.ip(f"link add {near} type veth peer name {far} netns {space.name}", f"link set {near} up")
        space.ip(f"addr add {NODE}/24 dev {far}", f"link set {far} up")
        mac = generator.mac(near)
        space.ip(f"neigh add {PEER} lladdr {mac} dev {far}", f"route add default via {PEER}")
        space.sysctl(ipv4__conf__all__rp_filter=0, ipv4__tcp_syncookies=1)
        with space.entered():
            gro_on(far)
            listening = stack.enter_context(socket.create_server((NODE, PORT), backlog=8))
            assert listening
            if name == OURS:
                plane.attach(far, (Rung.GENERIC,))
        if name == "nft synproxy":
            space.sysctl(netfilter__nf_conntrack_tcp_loose=0)
            space.run("nft", "-f", "-", text=SYNPROXY)
        yield Lane(name, near, far, space, bytes.fromhex(space.mac(far).replace(":", "")))


if __name__ == "__main__":
    run(measure, __doc__)
