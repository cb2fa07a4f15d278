"""Made-up traffic for checks that must run anywhere: a small network, its habits, and five plain attacks on it.

Everything follows from a seed. Clients ask a web, a name and a shell service with random pauses and sizes; the attacks
are caricatures of a port scan, a spoofed SYN flood, password guessing, slow requests and a UDP flood. Good enough to
see that the pipeline works and that a model is not blind; detection quality is measured on recordings, never on this.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

NODE: Final = "192.0.2.10"
CLIENTS: Final = ("192.0.2.21", "192.0.2.22", "192.0.2.23")
START_NS: Final = 1_000_000_000_000_000_000
FAMILIES: Final = ("port_scan", "syn_flood", "password_guessing", "slow_requests", "udp_flood")

SYN, ACK, FIN, RST, PSH = 2, 16, 1, 4, 8

#: One frame: seconds from the start, and the bytes on the wire.
Frame = tuple[float, bytes]


@dataclass(frozen=True, slots=True)
class Attack:
    """One campaign: its frames, and its flows as (start, end, source, sport, dport, proto)."""

    family: str
    frames: list[Frame]
    flows: list[tuple[float, float, str, int, int, int]]


def ip_frame(src: str, dst: str, proto: int, payload: bytes) -> bytes:
    """Ethernet and IPv4 around a transport segment; checksums are left zero, no reader here looks at them."""
    pack = bytes(int(part) for part in src.split(".")), bytes(int(part) for part in dst.split("."))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, proto, 0, *pack)
    return b"\x02" * 6 + b"\x04" * 6 + b"\x08\x00" + header + payload


def tcp(src: str, sport: int, dst: str, dport: int, flags: int, size: int = 0, seq: int = 1) -> bytes:
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, 0, 5 << 4, flags, 64240, 0, 0)
    return ip_frame(src, dst, 6, header + bytes(size))


def udp(src: str, sport: int, dst: str, dport: int, size: int) -> bytes:
    return ip_frame(src, dst, 17, struct.pack("!HHHH", sport, dport, 8 + size, 0) + bytes(size))


def session(at: float, client: str, sport: int, dport: int, steps: Iterable[tuple[float, int, int]]) -> list[Frame]:
    """A whole TCP session: handshake, one (pause, request size, answer size) after the other, orderly end."""
    out = [
        (at, tcp(client, sport, NODE, dport, SYN)),
        (at + 0.0001, tcp(NODE, dport, client, sport, SYN | ACK)),
        (at + 0.0002, tcp(client, sport, NODE, dport, ACK)),
    ]
    now = at + 0.0003
    for pause, asked, answered in steps:
        now += pause
        out.append((now, tcp(client, sport, NODE, dport, PSH | ACK, asked)))
        now += 0.002
        while answered > 0:
            out.append((now, tcp(NODE, dport, client, sport, PSH | ACK, min(answered, 1448))))
            answered -= 1448
            now += 0.0001
        out.append((now, tcp(client, sport, NODE, dport, ACK)))
    out.append((now + 0.001, tcp(client, sport, NODE, dport, FIN | ACK)))
    out.append((now + 0.0012, tcp(NODE, dport, client, sport, FIN | ACK)))
    return out


def clean_traffic(seconds: float, seed: int, rate: float = 12.0) -> list[Frame]:
    """What the clients do in so many seconds, about ``rate`` flows a second; a few refused and unanswered ones too."""
    rng = np.random.default_rng(seed)
    frames: list[Frame] = []
    at, port = 0.0, 20_000
    while (at := at + float(rng.exponential(1 / rate))) < seconds:
        client, port = CLIENTS[rng.integers(len(CLIENTS))], 20_000 + (port - 19_999) % 40_000
        kind = rng.random()
        if kind < 0.45:
            frames.append((at, udp(client, port, NODE, 53, int(rng.integers(25, 60)))))
            if kind > 0.01:
                frames.append((at + 0.001, udp(NODE, 53, client, port, int(rng.integers(60, 300)))))
        elif kind < 0.92:
            asked = [(float(rng.exponential(0.05)), int(rng.integers(80, 700)), int(rng.lognormal(7, 1.2)))]
            frames += session(at, client, port, 80, asked * int(rng.integers(1, 4)))
        elif kind < 0.98:
            typed = [
                (float(rng.exponential(0.4)), int(rng.integers(20, 60)), int(rng.integers(30, 400))) for _ in range(12)
            ]
            frames += session(at, client, port, 22, typed)
        else:
            frames.append((at, tcp(client, port, NODE, 8080, SYN)))
            frames.append((at + 0.0001, tcp(NODE, 8080, client, port, RST | ACK)))
    return frames


def attack(family: str, at: float, seed: int) -> Attack:
    """One of FAMILIES, beginning at ``at`` seconds."""
    rng = np.random.default_rng(seed)
    frames: list[Frame] = []
    flows: list[tuple[float, float, str, int, int, int]] = []
    who = f"198.51.100.{10 + FAMILIES.index(family)}"

    def note(begin: float, own: list[Frame], source: str, sport: int, dport: int, proto: int) -> None:
        frames.extend(own)
        flows.append((begin, own[-1][0], source, sport, dport, proto))

    if family == "port_scan":
        for i, port in enumerate(rng.permutation(400)):
            now, dport = at + i * 0.01, int(port) + 1000
            answer = (now + 0.0001, tcp(NODE, dport, who, 40_000, RST | ACK))
            note(now, [(now, tcp(who, 40_000, NODE, dport, SYN)), answer], who, 40_000, dport, 6)
    elif family == "syn_flood":
        for i in range(600):
            source, sport = f"203.0.{113 + i % 100}.{i % 250 + 1}", 1024 + i
            note(at + i * 0.005, [(at + i * 0.005, tcp(source, sport, NODE, 80, SYN))], source, sport, 80, 6)
    elif family == "password_guessing":
        for i in range(60):
            now, sport = at + i * 0.15, 50_000 + i
            note(now, session(now, who, sport, 22, [(0.01, 40, 80), (0.02, 120, 60)]), who, sport, 22, 6)
    elif family == "slow_requests":
        for i in range(80):
            now, sport = at + i * 0.02, 51_000 + i
            note(now, session(now, who, sport, 80, [(2.0, 8, 0)] * 6), who, sport, 80, 6)
    else:
        for i in range(600):
            now, dport = at + i * 0.005, int(rng.integers(1, 60_000))
            note(now, [(now, udp(who, 4000 + i, NODE, dport, 64))], who, 4000 + i, dport, 17)
    return Attack(family, frames, flows)


def write_pcap(path: Path, frames: list[Frame]) -> None:
    """Frames in order of time as a microsecond pcap beginning at START_NS."""
    with path.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for at, data in sorted(frames, key=lambda frame: frame[0]):
            second, rest = divmod(START_NS + round(at * 1e9), 1_000_000_000)
            out.write(struct.pack("<IIII", second, rest // 1000, len(data), len(data)) + data)


def write_site(folder: Path, clean_s: float = 240.0, test_s: float = 150.0, seed: int = 1) -> None:
    """A recording in the form that ml.evaluate reads: clean and mixed captures with their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pcap(folder / "train_clean.pcap", clean_traffic(clean_s, seed))
    attacks = [attack(family, 15.0 + 25.0 * i, seed + i) for i, family in enumerate(FAMILIES)]
    benign = clean_traffic(test_s, seed + 100)
    write_pcap(folder / "test_mixed.pcap", benign + [frame for one in attacks for frame in one.frames])
    base = START_NS / 1e9
    with (folder / "flow_labels.csv").open("w", encoding="ascii") as out:
        out.write("t_first,t_last,src,sport,dst,dport_or_icmp_type,proto,pkts_fwd,pkts_bwd,label,family\n")
        for first, last, src, sport, dport, proto in _benign_flows(benign):
            out.write(f"{base + first:.6f},{base + last:.6f},{src},{sport},{NODE},{dport},{proto},0,0,0,benign\n")
        for one in attacks:
            for first, last, src, sport, dport, proto in one.flows:
                out.write(
                    f"{base + first:.6f},{base + last:.6f},{src},{sport},{NODE},{dport},{proto},0,0,1,{one.family}\n"
                )
    with (folder / "attack_windows.csv").open("w", encoding="ascii") as out:
        out.write("t_start,t_end,family,tool,src,dst,proto,dport\n")
        for one in attacks:
            begin, end = one.frames[0][0], max(frame[0] for frame in one.frames)
            out.write(f"{base + begin:.6f},{base + end:.6f},{one.family},synthetic,,,,\n")


def _benign_flows(frames: list[Frame]) -> list[tuple[float, float, str, int, int, int]]:
    """Flows of clean traffic: no client uses a port twice within a recording shorter than an hour."""
    found: dict[tuple[str, int, int, int], tuple[float, float]] = {}
    for at, data in frames:
        src, dst = (".".join(map(str, data[i : i + 4])) for i in (26, 30))
        sport, dport = struct.unpack("!HH", data[34:38])
        key = (src, sport, dport, data[23]) if dst == NODE else (dst, dport, sport, data[23])
        first, last = found.get(key, (at, at))
        found[key] = (min(first, at), max(last, at))
    return [(first, last, src, sport, dport, proto) for (src, sport, dport, proto), (first, last) in found.items()]
