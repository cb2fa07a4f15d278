"""The flow record: one row per bidirectional flow, integers only, the same layout as ``struct tg_flow``.

``bpf/shared.h`` is the home of this layout; here stands its twin for the side that may not import ``bpf``, and
a test compares the two. The kernel program writes such rows into a mapped table, the offline meter
(:mod:`ml.meter`) writes them from a capture, and :mod:`ml.features` reads them from either.

Side 0 is the initiator, side 1 the responder. Addresses are 16 bytes in network order (IPv4 mapped), ports and
counts in host order, ``*_ns`` of one monotonic clock, lengths in bytes. A side without packets was
never seen, whatever else its fields hold; readers of the table give it as all zeros.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMPV6 = 1, 6, 17, 58

#: Upper bounds (inclusive) of the payload length bins; the last bin holds what is longer.
SIZE_BOUNDS: Final = (0, 64, 256, 512, 1024, 1400)
SIZE_BINS: Final = len(SIZE_BOUNDS) + 1

#: Places in ``flags``: the TCP bits in the order of the wire.
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = range(8)

NEW, HALF_OPEN, ESTABLISHED, REFUSED, CLOSED = range(5)

KEY: Final = np.dtype([("addr", "u1", (2, 16)), ("port", "<u2", 2), ("proto", "u1"), ("family", "u1"), ("_pad", "<u2")])
SIDE: Final = np.dtype(
    [
        ("last_ns", "<u8"), ("wire_bytes", "<u8"), ("payload_bytes", "<u8"), ("payload_sumsq", "<u8"),
        ("iat_sum_ns", "<u8"), ("iat_sumsq_us", "<u8"), ("iat_max_us", "<u4"), ("packets", "<u4"),
        ("payload_min", "<u2"), ("payload_max", "<u2"), ("window", "<u2"), ("ttl", "u1"), ("flags_seen", "u1"),
        ("sizes", "<u4", SIZE_BINS), ("fragments", "<u4"), ("flags", "<u4", 8),
        ("first_ns", "<u8"), ("sampled_bytes", "<u4"), ("syn_seq", "<u4"), ("illegal_flags", "<u2"),
        ("syn_retries", "<u2"), ("mss", "<u2"), ("_pad", "u1", 42),
    ]
)  # fmt: skip
FLOW: Final = np.dtype(
    [
        ("key", KEY), ("incarnation", "<u4"), ("state", "u1"), ("icmp_type", "u1"), ("icmp_code", "u1"),
        ("_pad", "u1"), ("ifindex", "<u4"), ("vlan", "<u2"), ("said", "u1", 2), ("last_ns", "<u8"), ("side", SIDE, 2),
    ]
)  # fmt: skip

Flows = NDArray[Any]
_NEVER: Final = np.uint64(2**64 - 1)


class RecordsError(ValueError):
    """Flow records that the model cannot read. The message says what differs."""


def check(records: Flows) -> Flows:
    """The same rows, if they have the :data:`FLOW` layout.

    Raises RecordsError otherwise: reading another layout would give plausible nonsense.
    """
    if records.dtype.itemsize != FLOW.itemsize or records.dtype.names != FLOW.names:
        raise RecordsError(
            f"flow records of {records.dtype.itemsize} bytes with fields {records.dtype.names} cannot be read: the "
            f"data plane and the learning code are of different versions (expected {FLOW.itemsize} bytes)"
        )
    return records.view(FLOW)


def first_ns(flows: Flows) -> NDArray[np.int64]:
    """When each flow began: the earlier of its two sides that was seen; 0 where neither was. int64[N]."""
    starts = np.where(flows["side"]["packets"] > 0, flows["side"]["first_ns"], _NEVER)
    first = np.minimum(starts[:, 0], starts[:, 1])
    return np.where(first == _NEVER, 0, first).astype(np.int64)


def is_closed(flows: Flows) -> NDArray[np.bool_]:
    """Which flows are over by their own word: a reset, or FIN from every side that was seen. bool[N]."""
    seen = flows["side"]["packets"] > 0
    flags = flows["side"]["flags"]
    reset = ((flags[:, :, RST] > 0) & seen).any(axis=1)
    finished = ((flags[:, :, FIN] > 0) | ~seen).all(axis=1)
    return np.asarray((flows["key"]["proto"] == PROTO_TCP) & (reset | finished))
