"""Which driver serves an interface, and whether it sends back what an XDP program answers."""

import ctypes
import fcntl
import socket
import struct

from bpf.dataplane import Attachment, Rung

SIOCETHTOOL, GET_DRIVER = 0x8946, 0x03
#: Offset of the name in struct ethtool_drvinfo, and the size of all of it.
_NAME, _SIZE = 4, 196
#: A veth takes an answer only while its peer runs an XDP program too; otherwise answers pile up and are lost.
DEAF = frozenset({"veth"})


def driver_of(interface: str) -> str:
    """As the kernel names it, in the namespace of the calling thread; empty when the interface does not say."""
    info = ctypes.create_string_buffer(struct.pack("=I", GET_DRIVER), _SIZE)
    request = struct.pack("16sP", interface.encode()[:15], ctypes.addressof(info)) + bytes(16)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)
    except OSError:
        return ""
    return info.raw[_NAME : _NAME + 32].split(b"\0", 1)[0].decode(errors="replace")


def can_answer(attachment: Attachment) -> bool:
    """Whether a packet that the program sends back there reaches the wire."""
    if attachment.rung is Rung.GENERIC:
        return True
    return attachment.rung is Rung.NATIVE and driver_of(attachment.interface) not in DEAF
