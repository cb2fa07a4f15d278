"""Sessions as rows for people and for the journal. Pure; the flow table comes in as records."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.core.messages import Entry
from actors.dermis.scans_words import address_text, subject_of
from actors.dermis.sessions import connected, half_open
from ml.flows import Snapshots, Why
from ml.records import CLOSED, ESTABLISHED, HALF_OPEN, NEW, PROTO_TCP, REFUSED, Flows, first_ns

PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
STATES: Final = {NEW: "new", HALF_OPEN: "half open", ESTABLISHED: "established", REFUSED: "refused", CLOSED: "closed"}
#: A finished session is worth a line in the journal from so many bytes or so many seconds on.
NOTABLE_BYTES: Final = 10_000_000
NOTABLE_S: Final = 600.0


def heaviest(flows: Flows, now_ns: int, by: str, limit: int) -> list[dict[str, Any]]:
    """The live sessions that moved most, by ``bytes`` or ``packets``, both sides together."""
    weight = flows["side"]["wire_bytes" if by == "bytes" else "packets"].sum(axis=1)
    chosen = np.argsort(-weight.astype("i8"), kind="stable")[:limit]
    return [row_of(flow, now_ns) for flow in flows[chosen]]


def row_of(flow: Any, now_ns: int) -> dict[str, Any]:
    """One session in words and figures; the first of each pair is the initiator's."""
    key, side = flow["key"], flow["side"]
    began_ns = int(first_ns(flow.reshape(1))[0])
    proto = int(key["proto"])
    return {
        "source": address_text(key["addr"][0].tobytes()),
        "source_port": int(key["port"][0]),
        "dest": address_text(key["addr"][1].tobytes()),
        "dest_port": int(key["port"][1]),
        "protocol": PROTOCOLS.get(proto, str(proto)),
        "state": STATES.get(int(flow["state"]), "new") if proto == PROTO_TCP else "",
        "packets": side["packets"].tolist(),
        "bytes": side["wire_bytes"].tolist(),
        "retries": int(side["syn_retries"].sum()),
        "age_s": round(max(0, now_ns - began_ns) / 1e9, 1),
        "silent_s": round(max(0, now_ns - int(flow["last_ns"])) / 1e9, 1),
    }


def summary(flows: Flows) -> dict[str, Any]:
    """How the live sessions stand: numbers by protocol and state, and what share of TCP is half open."""
    tcp = flows["key"]["proto"] == PROTO_TCP
    many = int(tcp.sum())
    return {
        "count": len(flows),
        "by_protocol": {name: int((flows["key"]["proto"] == number).sum()) for number, name in PROTOCOLS.items()},
        "tcp_by_state": {name: int((tcp & (flows["state"] == number)).sum()) for number, name in STATES.items()},
        "half_open_share": round(float(half_open(flows).sum()) / many, 4) if many else 0.0,
        "syn_retries": int(flows["side"]["syn_retries"].sum()),
    }


def notable(
    shown: Snapshots, near: NDArray[np.bool_], now_unix_s: float, offenders: frozenset[str], limit: int
) -> Iterator[Entry]:
    """Finished sessions for the journal: large ones, long ones, and what offenders did after they connected."""
    flows = shown.flows
    tcp = flows["key"]["proto"] == PROTO_TCP
    ended = np.where(tcp, shown.why == Why.CLOSED, shown.why == Why.IDLE)
    size = flows["side"]["wire_bytes"].sum(axis=1)
    lasted = flows["last_ns"].astype("i8") - shown.first_ns
    large = ended & ((size >= NOTABLE_BYTES) | (lasted >= NOTABLE_S * 1e9))
    suspicious = ended & connected(flows) if offenders else np.zeros(len(flows), "?")
    told = 0
    for row in np.flatnonzero(large | suspicious).tolist():
        flow = flows[row]
        subject = subject_of(flow["key"], bool(near[row]))
        if told == limit or not (large[row] or subject in offenders):
            continue
        told += 1
        body = row_of(flow, shown.now_ns) | {"lasted_s": round(int(lasted[row]) / 1e9, 1)}
        digest = hashlib.sha256(flow["key"].tobytes() + int(shown.first_ns[row]).to_bytes(8, "little")).hexdigest()
        key = f"session:{int(now_unix_s) >> 20}:{digest[:24]}:{sum(body['packets'])}"
        yield Entry(key=key, kind="session", at_unix_s=now_unix_s, subject=subject, body=body)
