"""Flow tables made by hand for the mast cell: rows of the kernel's record, one helper per kind of conversation."""

import ipaddress
from collections.abc import Iterable

import numpy as np

from actors.dermis.scans import Finding, Watchlist
from actors.dermis.sessions import Host, conduct
from ml.flows import FlowReader
from ml.meter import Tick
from ml.own import parse_own
from ml.records import ACK, FIN, FLOW, PROTO_TCP, PROTO_UDP, PSH, RST, SYN

NODE, NODE6 = "192.0.2.10", "2001:db8::10"
HOST = Host(parse_own([NODE, NODE6]))
LOGINS = np.array([22, 3389], "u2")
S = 1_000_000_000


def packed(address: str) -> list[int]:
    found = ipaddress.ip_address(address)
    return list(found.packed if found.version == 6 else b"\0" * 10 + b"\xff\xff" + found.packed)


class Table:
    """A flow table that grows; ``at_s`` is when a conversation began, seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def add(
        self,
        source: str,
        port: int,
        at_s: float,
        *,
        dest: str = NODE,
        proto: int = PROTO_TCP,
        sport: int = 0,
        packets: int = 1,
        payload: int = 0,
        flags: Iterable[int] = (SYN,),
        answer: Iterable[int] = (),
        lasted_s: float = 0.0,
    ) -> None:
        row = np.zeros(1, FLOW)
        key, (first, second) = row["key"][0], row["side"][0]
        key["addr"][0], key["addr"][1] = packed(source), packed(dest)
        key["port"] = (sport or 30_000 + len(self.rows) % 20_000, port)
        key["proto"], key["family"] = proto, 6 if ":" in source else 4
        row["incarnation"] = 1
        began, ended = int(at_s * S), int((at_s + lasted_s) * S)
        first["first_ns"], first["last_ns"], row["last_ns"] = began, ended, ended
        first["packets"], first["wire_bytes"], first["payload_bytes"] = packets, 60 * packets + payload, payload
        for flag in flags:
            first["flags"][flag] += 1
        if answer := list(answer):
            second["first_ns"] = second["last_ns"] = began
            second["packets"], second["wire_bytes"] = len(answer), 60 * len(answer)
            for flag in answer:
                second["flags"][flag] += 1
        self.rows.append(row)

    def knock(self, source: str, port: int, at_s: float, **more: object) -> None:
        """A SYN that led to nothing, as the node's own program sees it: one direction only."""
        self.add(source, port, at_s, **more)  # type: ignore[arg-type]

    def session(self, source: str, port: int, at_s: float, payload: int = 200, lasted_s: float = 0.5) -> None:
        """A whole short TCP session, one direction."""
        self.add(
            source, port, at_s, packets=6, payload=payload, flags=(SYN, ACK, ACK, PSH, ACK, FIN, ACK), lasted_s=lasted_s
        )

    def datagram(self, source: str, port: int, at_s: float, sport: int = 0, packets: int = 1) -> None:
        self.add(source, port, at_s, proto=PROTO_UDP, sport=sport, packets=packets, payload=40, flags=())

    def refused(self, source: str, port: int, at_s: float) -> None:
        """A SYN and the reset it got, where both directions are seen."""
        self.add(source, port, at_s, answer=(RST, ACK))

    @property
    def records(self) -> np.ndarray:
        return np.concatenate(self.rows)


def watch(table: Table, until_s: float, since_s: float = 1000.0, host: Host = HOST) -> list[tuple[float, Finding]]:
    """Look twice a second as the cell does; what was found, and when."""
    reader, watchlist, found = FlowReader(), Watchlist(), []
    records = table.records
    began = records["side"]["first_ns"][:, 0].astype("i8")
    for half in range(int((until_s - since_s) * 2) + 1):
        now_ns = int(since_s * S) + half * S // 2
        live = np.flatnonzero((began <= now_ns) & (now_ns - records["last_ns"].astype("i8") < 20 * S))
        shown = reader.tick(Tick(now_ns, records, live))
        if len(shown):
            found += [(now_ns / S, finding) for finding in watchlist.observe(now_ns / S, conduct(shown, host, LOGINS))]
    return found
