"""Sends frames through the loaded program with BPF_PROG_TEST_RUN: proofs on a live node, whole captures in a replay.

A loaded program recognises such a frame by its interface (loopback, on which it never hangs) and then changes nothing:
no count, no ban, no flow, no event. It writes its reason over the first two bytes, so verdict and reason arrive
together. A program built with ``live=False`` counts such frames like any other.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from bpf import abi, libbpf
from bpf.dataplane import BadSubject, Proof
from bpf.subjects import Subject, parse

XDP_DROP, TC_SHOT = 1, 2
MIN_FRAME, MAX_FRAME = 14, 3_500
_MARK_OFFSET = 8  #: of ``mark`` in struct __sk_buff

#: Proofs come from here: documentation addresses (RFC 5737, RFC 3849), the discard port, an ACK without payload.
_TO4 = bytes((192, 0, 2, 1))
_TO6 = bytes.fromhex("20010db8000000000000000000000001")
#: Payloads are proved from these, until one is neither on a feed nor banned nor tolerated; nothing is counted for them.
PAYLOAD_SOURCES = ("198.51.100.1", "2001:db8::2", "1.1.1.1", "2606:4700::1", "9.9.9.9")
_OF_SOURCES = frozenset({"blocklist", "ban", "ban_prefix", "tolerated"})
_TCP_ACK = struct.pack("!HHIIBBHHH", 49_152, 9, 1, 1, 5 << 4, 0x10, 1024, 0, 0)


class Result(NamedTuple):
    drop: bool
    reason: int  #: number; ``bpf.abi.reason_name`` has the name
    observed: bool  #: the drop was withheld, because the posture only observes


class Runner:
    """One entry point of the program, ready to take frames."""

    def __init__(self, program_fd: int, kind: str = "xdp") -> None:
        self._tc = kind == "tc"
        self._runner = libbpf.TestRunner(program_fd, context_bytes=192 if self._tc else 0)

    def run(self, frame: bytes) -> Result:
        """Frames of 14 to 3500 bytes. Raises KernelRefused for others."""
        verdict = self._runner.run(frame)
        if self._tc:
            word = struct.unpack_from("<I", self._runner.context, _MARK_OFFSET)[0]
        else:
            word = struct.unpack_from("<H", self._runner.out)[0]
        return Result(verdict == (TC_SHOT if self._tc else XDP_DROP), word & 0xFF, bool(word & abi.OBSERVED_BIT))


def proof_frame(subject: Subject) -> bytes:
    """An innocent packet of this source; for a prefix, of its first address that is not the network's own."""
    addr = subject.addr
    if subject.bits < 128 and not addr[15]:
        addr = addr[:15] + b"\1"
    ethernet = b"\2\0\0\0\0\1\2\0\0\0\0\2"
    if subject.is_ip4:
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, addr[12:], _TO4)
        return ethernet + b"\x08\x00" + header + _TCP_ACK
    header = struct.pack("!IHBB16s16s", 6 << 28, len(_TCP_ACK), 6, 64, addr, _TO6)
    return ethernet + b"\x86\xdd" + header + _TCP_ACK


def payload_frame(source: Subject, proto: int, dest_port: int, payload: bytes) -> bytes:
    """A packet of this source to this port that carries these bytes. proto: 6 or 17."""
    if proto == 17:
        segment = struct.pack("!HHHH", 49_152, dest_port, 8 + len(payload), 0) + payload
    else:
        segment = struct.pack("!HHIIBBHHH", 49_152, dest_port, 1, 1, 5 << 4, 0x18, 1024, 0, 0) + payload
    ethernet = b"\2\0\0\0\0\1\2\0\0\0\0\2"
    if source.is_ip4:
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 1, 0, 64, proto, 0, source.addr[12:], _TO4)
        return ethernet + b"\x08\x00" + header + segment
    header = struct.pack("!IHBB16s16s", 6 << 28, len(segment), proto, 64, source.addr, _TO6)
    return ethernet + b"\x86\xdd" + header + segment


def prove_payload(runner: Runner, proto: int, dest_port: int, payload: bytes) -> Proof:
    """What the very program says about a packet that begins like this, from the first source that nothing else is
    known of. Raises BadSubject for a protocol without such a port."""
    if proto not in (6, 17):
        raise BadSubject(f"protocol {proto} has no payload behind a port")
    for text in PAYLOAD_SOURCES:
        result = runner.run(payload_frame(parse(text), proto, dest_port, payload))
        proof = Proof(text, result.drop, abi.reason_name(result.reason))
        if proof.reason not in _OF_SOURCES:
            break
    return proof


def prove(runner: Runner, subjects: Sequence[str]) -> list[Proof]:
    """What the very program says about each source now. Raises BadSubject."""
    proofs = []
    for text in subjects:
        result = runner.run(proof_frame(parse(text)))
        proofs.append(Proof(text, result.drop, abi.reason_name(result.reason)))
    return proofs
