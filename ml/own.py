"""Which addresses are the node's own: they are never blamed.

The live cell knows them from the kernel and says so. A capture does not say, but it was taken at the protected
node's interface: of each address family, the node is the one address that takes part in most flows.
"""

import ipaddress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: An address that is an end of more than this share of its family's flows is the node's.
MOST: Final = 0.5
#: Fewer flows of a family say nothing about who is who.
LEAST_FLOWS: Final = 20


def guess_own(key: NDArray[Any]) -> NDArray[np.void]:
    """The node's addresses as seen in flow keys of a capture; at most one per family. void16[K]."""
    found = []
    for family in (4, 6):
        rows = key[key["family"] == family]
        if len(rows) < LEAST_FLOWS:
            continue
        ends, counts = np.unique(as_void(rows["addr"].reshape(-1, 16)), return_counts=True)
        most = ends[counts.argmax()]
        if counts.max() > MOST * len(rows) and not ipaddress.ip_address(to_text(most.tobytes())).is_multicast:
            found.append(most)
    return np.array(found, "V16")


def parse_own(addresses: list[str]) -> NDArray[np.void]:
    """Addresses in text, as an operator gives them. Raises ValueError for one that is none."""
    packed = []
    for text in addresses:
        address = ipaddress.ip_address(text)
        packed.append(b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed)
    return np.array(packed, "V16") if packed else np.zeros(0, "V16")


def from_own(key: NDArray[Any], own: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which flows the node itself began. bool[N]."""
    if not len(own):
        return np.zeros(len(key), "?")
    sources = np.ascontiguousarray(key["addr"][:, 0])
    mine = np.zeros(len(key), "?")
    for address in own:
        mine |= (sources == np.frombuffer(address.tobytes(), "u1")).all(axis=1)
    return mine


def as_void(addresses: NDArray[np.uint8]) -> NDArray[np.void]:
    """uint8[N, 16] as comparable items. void16[N]."""
    return np.ascontiguousarray(addresses).view("V16").reshape(-1)


def to_text(address: bytes) -> str:
    """Sixteen bytes as people write them."""
    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)


def source_text(key: Any) -> str:
    """The initiator of one flow as a subject: an IPv4 address, or an IPv6 /64."""
    address = key["addr"][0].tobytes()
    if key["family"] == 4:
        return to_text(address)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
