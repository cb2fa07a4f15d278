"""What rules see of DNS, TLS and SSH: which of them a flow speaks, names asked for, the server name of a hello. Pure.

Every parser takes any bytes and gives what it understood; none raises. Source: RFC 1035, RFC 8446, RFC 6066, RFC 4253.
"""

import struct

_NAMES_MAX = 64
_LABELS_MAX = 128


def is_dns(data: bytes) -> bool:
    """A DNS message, question or answer, by its header and first name."""
    if len(data) < 12:
        return False
    flags, questions, answers = struct.unpack_from("!2xHHH", data)
    if flags >> 11 & 15 > 6 or not 0 < questions + answers <= 256 or questions > 16:
        return False
    return questions == 0 or bool(_name(data, 12))


def dns_queries(data: bytes) -> list[bytes]:
    """Names in the question section of a query (not of an answer), without the final dot."""
    if len(data) < 12:
        return []
    flags, questions = struct.unpack_from("!2xHH", data)
    if flags & 0x8000:
        return []
    found, at = [], 12
    for _ in range(min(questions, _NAMES_MAX)):
        name = _name(data, at)
        if name is None:
            break
        found.append(name[0])
        at = name[1] + 4
    return found


def dns_over_tcp(data: bytes) -> list[bytes]:
    """The whole messages in a TCP stream of DNS: each follows its length."""
    found: list[bytes] = []
    at = 0
    while at + 2 <= len(data) and len(found) < _NAMES_MAX:
        (length,) = struct.unpack_from("!H", data, at)
        if at + 2 + length > len(data):
            break
        found.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return found


def _name(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The name at this place and where it ends. Pointers are followed a bounded number of times."""
    labels: list[bytes] = []
    end = -1
    for _ in range(_LABELS_MAX):
        if at >= len(data):
            return None
        length = data[at]
        if length >= 0xC0:
            if at + 1 >= len(data):
                return None
            end = at + 2 if end < 0 else end
            at = (length & 0x3F) << 8 | data[at + 1]
        elif length >= 0x40:
            return None
        elif length == 0:
            return b".".join(labels), end if end >= 0 else at + 1
        else:
            label = data[at + 1 : at + 1 + length]
            if len(label) < length:
                return None
            labels.append(label)
            at += 1 + length
    return None


def is_tls(data: bytes) -> bool:
    """A handshake or alert record of SSL 3.0 to TLS 1.3."""
    return len(data) >= 3 and data[0] in (20, 21, 22) and data[1] == 3 and data[2] <= 4


def is_ssh(data: bytes) -> bool:
    return data.startswith(b"SSH-")


def ssh_banner(data: bytes) -> dict[str, list[bytes]]:
    """Protocol and software of the identification line, once it is whole: ``SSH-2.0-OpenSSH_9.6 comment``."""
    line, end, _ = data[:512].partition(b"\n")
    parts = line.rstrip(b"\r").split(b"-", 2)
    if not end or len(parts) < 3:
        return {}
    return {"ssh.proto": [parts[1]], "ssh.software": [parts[2].split(b" ", 1)[0]]}


def tls_sni(data: bytes) -> list[bytes]:
    """The server name in a client hello, which may be spread over records; empty when there is none (yet)."""
    hello = _handshake(data)
    if hello[:1] != b"\x01" or len(hello) < 4:
        return []
    try:
        at = 4 + 2 + 32
        at += 1 + hello[at]
        at += 2 + struct.unpack_from("!H", hello, at)[0]
        at += 1 + hello[at]
        end = min(len(hello), at + 2 + struct.unpack_from("!H", hello, at)[0])
        at += 2
        while at + 4 <= end:
            kind, length = struct.unpack_from("!HH", hello, at)
            if kind == 0:
                size = struct.unpack_from("!3xH", hello, at + 4)[0]
                return [hello[at + 9 : at + 9 + size].lower()]
            at += 4 + length
    except (struct.error, IndexError):
        pass
    return []


def _handshake(data: bytes) -> bytes:
    """The bytes of the handshake protocol, taken out of their records."""
    parts, at = [], 0
    while at + 5 <= len(data) and data[at] == 22:
        (length,) = struct.unpack_from("!3xH", data, at)
        parts.append(data[at + 5 : at + 5 + length])
        at += 5 + length
    return b"".join(parts)
