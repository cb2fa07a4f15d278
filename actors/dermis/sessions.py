"""Sessions: what each conversation of the flow table amounts to. Pure, whole batches at a time.

A node behind its own kernel program sees what arrives; a capture or a router sees both directions. Everything here is
true for both: a TCP session is *connected* once its initiator has acknowledged something (he can only have got a
SYN+ACK), and a *probe* is a first sight without that. What was refused and what was ignored look alike to a node that
does not watch its own answers, so both are told as "led to no connection".

Not seen: a UDP conversation that the node itself began shows only its answers. They arrive at the ports the kernel
gives to clients, and what arrives there is never called a probe; a scan of only those ports stays unseen.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.flows import Snapshots
from ml.groups import among
from ml.own import as_void, from_own
from ml.records import ACK, PROTO_TCP, PROTO_UDP, RST, SYN, Flows
from ml.table import mix
from ml.windows import key_of_source

#: A login attempt that fails is over in seconds and has said little, but something: what lasts longer or sends more is
#: somebody at work, and what says nothing is a monitor that looks whether the service is up.
SHORT_S, SHORT_BYTES = 10.0, 4096
#: Datagrams of a conversation that may still be a knock at a door.
KNOCKS: Final = 2
_MULTICAST4, _MULTICAST6, _BROADCAST4 = (224, 240), 0xFF, b"\0" * 10 + b"\xff" * 6

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Host:
    """What the node knows of itself. own: its addresses (void16[K]); client_ports: the kernel's range for clients."""

    own: NDArray[np.void]
    client_ports: tuple[int, int] = (32768, 60999)

    def near(self, key: Flows) -> Mask:
        """Flows that neighbours in an IPv6 /64 of our own began: there an address stands for itself only. bool[N]."""
        links = np.frombuffer(self.own.tobytes(), "<u8").reshape(-1, 2)
        links = links[links[:, 0] != 0, 0]
        words = np.ascontiguousarray(key["addr"][:, 0]).view("<u8").reshape(-1, 2)
        return np.asarray((key["family"] == 6) & among(words[:, 0], links))


@dataclass(frozen=True, slots=True)
class Acts:
    """One row per act. source: uint64, an IPv4 address or an IPv6 /64 as ml.windows numbers them, or one neighbour's
    whole address (near); began_s: monotonic; size: payload bytes that the initiator sent; key: the flow keys."""

    source: NDArray[np.uint64]
    near: Mask
    key: Flows
    began_s: NDArray[np.float64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)

    def pick(self, chosen: Mask | NDArray[np.int64]) -> "Acts":
        return Acts(self.source[chosen], self.near[chosen], self.key[chosen], self.began_s[chosen], self.size[chosen])


@dataclass(frozen=True, slots=True)
class Conduct:
    """What the shown flows did since the last look: first sights that led to nothing, first sights that connected, and
    short TCP sessions to a login service that have just ended."""

    probes: Acts
    connections: Acts
    logins: Acts


def connected(flows: Flows) -> Mask:
    """Whether the initiator has acknowledged anything; a reset that carries an acknowledgement does not count."""
    caller = flows["side"]["flags"][:, 0]
    answered = flows["side"]["packets"][:, 1] > 0
    tcp = flows["key"]["proto"] == PROTO_TCP
    return np.asarray(np.where(tcp, caller[:, ACK] > caller[:, RST], answered))


def half_open(flows: Flows) -> Mask:
    """TCP sessions whose SYN came and nothing after it."""
    caller = flows["side"]["flags"][:, 0]
    return np.asarray((flows["key"]["proto"] == PROTO_TCP) & (caller[:, SYN] > 0) & (caller[:, ACK] == 0))


def conduct(shown: Snapshots, host: Host, login_ports: NDArray[np.uint16]) -> Conduct:
    """Sort the shown flows of other hosts into acts. The node's own flows and multicast are left out."""
    flows, key = shown.flows, shown.flows["key"]
    foreign = ~from_own(key, host.own) & ~_to_many(key) & (flows["side"]["packets"][:, 0] > 0)
    met = connected(flows)
    sent = flows["side"]["payload_bytes"][:, 0].astype("i8")
    near = host.near(key)
    acts = Acts(_numbered(key, near), near, key, (shown.first_ns * 1e-9).astype("f8"), sent)
    fresh = shown.fresh & foreign
    ended = shown.final & foreign & met & (key["proto"] == PROTO_TCP)
    short = flows["last_ns"].astype("i8") - shown.first_ns < SHORT_S * 1e9
    short &= (sent > 0) & (sent <= SHORT_BYTES)
    login = ended & short & among(key["port"][:, 1], login_ports)
    return Conduct(acts.pick(fresh & ~met & _knocks(flows, host)), acts.pick(fresh & met), acts.pick(login))


def _numbered(key: Flows, near: Mask) -> NDArray[np.uint64]:
    """One number per source."""
    words = np.ascontiguousarray(key["addr"][:, 0]).view("<u8").reshape(-1, 2)
    return np.where(near, mix(words[:, 0] ^ mix(words[:, 1])), key_of_source(key))


def _knocks(flows: Flows, host: Host) -> Mask:
    """A SYN; or what begins without one, is tiny and goes where no client of this node listens."""
    key, caller = flows["key"], flows["side"][:, 0]
    low, high = host.client_ports
    port = key["port"][:, 1]
    server = (port > 0) & ((port < low) | (port > high))
    syn = (key["proto"] == PROTO_TCP) & (caller["flags"][:, SYN] > 0)
    datagram = (key["proto"] == PROTO_UDP) & (caller["packets"] <= KNOCKS)
    return np.asarray(syn | (datagram & server))


def _to_many(key: Flows) -> Mask:
    """Multicast and broadcast: neighbours announce themselves on many ports, which is no scan."""
    dest, four = key["addr"][:, 1], key["family"] == 4
    low, high = _MULTICAST4
    multicast = np.where(four, (dest[:, 12] >= low) & (dest[:, 12] < high), dest[:, 0] == _MULTICAST6)
    return np.asarray(multicast | (as_void(dest) == np.void(_BROADCAST4)))
