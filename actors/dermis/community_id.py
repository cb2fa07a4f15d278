"""Community ID v1: one short name for a conversation, the same in every tool that sees it. Pure.

``"1:" + base64(sha1(seed, smaller end, larger end, protocol, 0, ports))``: both directions get one name. ICMP has no
ports: its type stands for the source port and the type of the answer for the other; messages without an answer keep
their direction, with the code in the second place. Other protocols leave the ports out. Source: community-id-spec.
"""

import base64
import hashlib
import ipaddress
import struct

ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132
#: Types that ask, and the types that answer them; each way round.
_ANSWERS = {
    ICMP: ((8, 0), (13, 14), (15, 16), (17, 18), (10, 9)),
    ICMP6: ((128, 129), (133, 134), (135, 136), (130, 131), (139, 140), (144, 145)),
}
_COUNTERPART = {
    proto: {kind: other for pair in pairs for kind, other in (pair, pair[::-1])} for proto, pairs in _ANSWERS.items()
}


def community_id(proto: int, source: str, source_port: int, dest: str, dest_port: int, seed: int = 0) -> str:
    """The name of a conversation. For ICMP the ports are type and code. Raises ValueError for what is no address."""
    left, right = ipaddress.ip_address(source).packed, ipaddress.ip_address(dest).packed
    one_way = False
    if proto in _COUNTERPART:
        answer = _COUNTERPART[proto].get(source_port)
        one_way, dest_port = answer is None, dest_port if answer is None else answer
    if not one_way and (left, source_port) > (right, dest_port):
        left, right, source_port, dest_port = right, left, dest_port, source_port
    ports = struct.pack("!HH", source_port, dest_port) if proto in (ICMP, TCP, UDP, ICMP6, SCTP) else b""
    digest = hashlib.sha1(struct.pack("!H", seed) + left + right + bytes((proto, 0)) + ports, usedforsecurity=False)
    return "1:" + base64.b64encode(digest.digest()).decode()
