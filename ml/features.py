"""The features of a flow: defined once, computed by one vectorised function from integer records.

Input is the record array of :mod:`ml.records`, whether it comes from the live map, a replay in the kernel or the
offline meter; output is float32[N, N_FEATURES]. There is no loop over flows.

Never inputs: addresses, the client's port, TTL, window, MSS (they name a machine, not a behaviour), absolute time.
The server's port is used to look up the node's own habits (:class:`Habits`), never as a number.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.flows import Snapshots
from ml.outcome import outcome
from ml.records import FIN, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, PSH, RST, SIZE_BINS, SYN, URG
from ml.windows import PAIR_FEATURES, SOURCE_FEATURES, services

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Feature:
    """One column. ``low`` and ``high`` bound what can come out; values beyond are clipped."""

    name: str
    unit: str
    low: float
    high: float
    source: str


def _per_side(side: str, word: str) -> tuple[Feature, ...]:
    counters = "flow record, " + ("initiator" if side == "fwd" else "responder")
    return (
        Feature(f"{side}_packets", "ln(1 + packets)", 0, 23, counters),
        Feature(f"{side}_bytes", "ln(1 + bytes)", 0, 33, counters),
        Feature(f"{side}_payload", "ln(1 + bytes)", 0, 33, counters),
        Feature(f"{side}_payload_mean", f"share of 1500 bytes per packet {word}", 0, 44, counters),
        Feature(f"{side}_payload_dev", "share of 1500 bytes, standard deviation", 0, 44, counters),
        Feature(f"{side}_payload_max", "share of 1500 bytes", 0, 44, counters),
        *(Feature(f"{side}_size_{i}", "share of packets", 0, 1, counters) for i in range(SIZE_BINS)),
        Feature(f"{side}_gap_mean", "ln(1 + ms)", 0, 20, counters),
        Feature(f"{side}_gap_dev", "ln(1 + ms)", 0, 20, counters),
        Feature(f"{side}_gap_max", "ln(1 + ms)", 0, 20, counters),
        Feature(f"{side}_syn", "share of packets", 0, 1, counters),
        Feature(f"{side}_fin", "share of packets", 0, 1, counters),
        Feature(f"{side}_rst", "share of packets", 0, 1, counters),
        Feature(f"{side}_psh", "share of packets", 0, 1, counters),
    )


_BOTH: Final = "flow record, both sides"
_HABIT: Final = "flow record against the habits of the service in training"
#: Columns whose habit is kept per service: size, length and pace tell services apart best.
HABIT_COLUMNS: Final = (
    "fwd_packets", "bwd_packets", "fwd_payload", "bwd_payload", "fwd_payload_mean", "bwd_payload_mean", "fwd_psh",
    "duration",
)  # fmt: skip

FEATURES: Final = (
    *_per_side("fwd", "sent"),
    *_per_side("bwd", "answered"),
    Feature("duration", "ln(1 + ms)", 0, 25, _BOTH),
    Feature("packet_rate", "ln(1 + packets per second)", 0, 20, _BOTH),
    Feature("byte_ratio", "ln((1 + bytes sent) / (1 + bytes answered))", -33, 33, _BOTH),
    Feature("unanswered", "0 or 1", 0, 1, _BOTH),
    Feature("refused", "0 or 1", 0, 1, _BOTH),
    Feature("half_open", "0 or 1", 0, 1, _BOTH),
    Feature("illegal", "ln(1 + packets with flag sets no stack sends)", 0, 12, _BOTH),
    Feature("urgent", "0 or 1", 0, 1, _BOTH),
    Feature("fragments", "ln(1 + first fragments)", 0, 23, _BOTH),
    Feature("syn_retries", "ln(1 + SYNs)", 0, 12, _BOTH),
    Feature("is_tcp", "0 or 1", 0, 1, _BOTH),
    Feature("is_udp", "0 or 1", 0, 1, _BOTH),
    Feature("is_icmp", "0 or 1", 0, 1, _BOTH),
    Feature("service_habit", "-log10 of the service's share of training flows", 0, 6, _HABIT),
    Feature("service_unseen", "0 or 1", 0, 1, _HABIT),
    *(Feature(f"unlike_{name}", "deviations from the service's median", -12, 12, _HABIT) for name in HABIT_COLUMNS),
)
N_FEATURES: Final = len(FEATURES)
NAMES: Final = tuple(feature.name for feature in FEATURES)
_AT: Final = {name: i for i, name in enumerate(NAMES)}
#: From here on columns depend on the habits; those before are the same on every node.
HABITS_AT: Final = _AT["service_habit"]
_LOW: Final = np.array([f.low for f in FEATURES], "f4")[:, None]
_HIGH: Final = np.array([f.high for f in FEATURES], "f4")[:, None]


def schema_hash() -> str:
    """Changes whenever a column, its unit or its order does: a model of another schema is refused."""
    text = "\n".join([*(f"{f.name}|{f.unit}|{f.low}|{f.high}" for f in FEATURES), *SOURCE_FEATURES, *PAIR_FEATURES])
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Habits:
    """What this node's services look like: sorted service numbers, their share of flows, median and spread.

    service: uint32[K] ascending; share: float32[K]; median, spread: float32[K, len(HABIT_COLUMNS)]."""

    service: NDArray[np.uint32]
    share: Floats
    median: Floats
    spread: Floats

    @classmethod
    def none(cls) -> "Habits":
        width = len(HABIT_COLUMNS)
        return cls(np.zeros(0, "u4"), np.zeros(0, "f4"), np.zeros((0, width), "f4"), np.zeros((0, width), "f4"))

    @classmethod
    def learn(cls, service: NDArray[np.uint32], features: Floats, least: int = 20) -> "Habits":
        """From training flows: services with at least ``least`` flows. Spread is the 5 to 95 % range, never below 0.1
        of a logarithmic step, so that a service of identical flows does not make each small change an event."""
        kept = [s for s, n in zip(*np.unique(service, return_counts=True), strict=True) if n >= least]
        columns = [_AT[name] for name in HABIT_COLUMNS]
        median, spread, share = [], [], []
        for number in kept:
            rows = features[service == number][:, columns]
            low, middle, high = np.quantile(rows, [0.05, 0.5, 0.95], axis=0)
            median.append(middle)
            spread.append(np.maximum((high - low) / 2, 0.1))
            share.append(len(rows) / len(service))
        if not kept:
            return cls.none()
        return cls(np.array(kept, "u4"), np.array(share, "f4"), np.array(median, "f4"), np.array(spread, "f4"))


def extract(shown: Snapshots, habits: Habits) -> Floats:
    """Features of each shown flow. float32[N, N_FEATURES], finite, within the bounds of :data:`FEATURES`."""
    flows = shown.flows
    out = np.empty((N_FEATURES, len(flows)), "f4")
    for place, prefix in ((0, "fwd"), (1, "bwd")):
        _side(out, flows["side"][:, place], prefix)
    _both(out, shown)
    np.clip(out[:HABITS_AT], _LOW[:HABITS_AT], _HIGH[:HABITS_AT], out=out[:HABITS_AT])
    fill_habits(out, services(flows), habits)
    return out.T


def fill_habits(out: Floats, service: NDArray[np.uint32], habits: Habits) -> None:
    """Write the habit columns of ``out`` float32[N_FEATURES, N] from its other columns, in place: how usual the service
    is on this node, and how unlike its usual flows this one is (0 for a service never seen)."""
    at = HABITS_AT
    if not len(habits.service):
        out[at], out[at + 1], out[at + 2 :] = 6, 1, 0
        return
    place = np.minimum(np.searchsorted(habits.service, service), len(habits.service) - 1)
    known = habits.service[place] == service
    out[at] = np.where(known, -np.log10(habits.share)[place], 6)
    out[at + 1] = ~known
    for i, name in enumerate(HABIT_COLUMNS):
        unlike = (out[_AT[name]] - habits.median[:, i][place]) / habits.spread[:, i][place]
        out[at + 2 + i] = np.clip(unlike, _LOW[at + 2 + i], _HIGH[at + 2 + i]) * known


def _side(out: Floats, side: NDArray[np.void], prefix: str) -> None:
    """Counts, sizes, gaps and flag shares of one side of all flows."""
    at = _AT[f"{prefix}_packets"]
    packets = side["packets"].astype("f4")
    per_packet = 1 / np.maximum(packets, 1)
    per_gap = 1 / np.maximum(packets - 1, 1)
    payload = side["payload_bytes"].astype("f4")
    mean = payload * per_packet
    out[at] = np.log1p(packets)
    out[at + 1] = np.log1p(side["wire_bytes"].astype("f4"))
    out[at + 2] = np.log1p(payload)
    out[at + 3] = mean / 1500
    out[at + 4] = _deviation(side["payload_sumsq"].astype("f4") * per_packet, mean) / 1500
    out[at + 5] = side["payload_max"].astype("f4") / 1500
    at += 6
    out[at : at + SIZE_BINS] = side["sizes"].T * per_packet
    at += SIZE_BINS
    gap_ms = side["iat_sum_ns"].astype("f4") * np.float32(1e-6) * per_gap
    out[at] = np.log1p(gap_ms)
    out[at + 1] = np.log1p(_deviation(side["iat_sumsq_us"].astype("f4") * np.float32(1e-6) * per_gap, gap_ms))
    out[at + 2] = np.log1p(side["iat_max_us"].astype("f4") * np.float32(1e-3))
    for i, flag in enumerate((SYN, FIN, RST, PSH)):
        out[at + 3 + i] = side["flags"][:, flag] * per_packet


def _both(out: Floats, shown: Snapshots) -> None:
    """What only both sides together tell."""
    flows, side = shown.flows, shown.flows["side"]
    end = outcome(flows)
    proto = flows["key"]["proto"]
    alive_ms = (np.maximum(flows["last_ns"].astype("i8") - shown.first_ns, 0) * 1e-6).astype("f4")
    total = side["packets"].sum(axis=1, dtype="i8").astype("f4")
    columns = {
        "duration": np.log1p(alive_ms),
        "packet_rate": np.log1p(total / np.maximum(alive_ms * np.float32(1e-3), np.float32(0.1))),
        "byte_ratio": out[_AT["fwd_bytes"]] - out[_AT["bwd_bytes"]],
        "unanswered": end.unanswered,
        "refused": end.refused,
        "half_open": end.half_open,
        "illegal": np.log1p(side["illegal_flags"].sum(axis=1, dtype="f4")),
        "urgent": (side["flags"][:, :, URG] > 0).any(axis=1),
        "fragments": np.log1p(side["fragments"].sum(axis=1, dtype="f4")),
        "syn_retries": np.log1p(side["syn_retries"].sum(axis=1, dtype="f4")),
        "is_tcp": proto == PROTO_TCP,
        "is_udp": proto == PROTO_UDP,
        "is_icmp": (proto == PROTO_ICMP) | (proto == PROTO_ICMPV6),
    }
    for name, column in columns.items():
        out[_AT[name]] = column


def _deviation(mean_of_squares: Floats, mean: Floats) -> Floats:
    return np.sqrt(np.maximum(mean_of_squares - mean * mean, 0))
