"""Notices when addresses, routes or links of this network namespace change, by netlink; nothing is polled.

A full reading takes longer the more routes there are; to hear that none is needed takes one microsecond.
"""

import socket

#: rtnetlink multicast groups: links, IPv4 addresses and routes, IPv6 addresses and routes.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
#: Messages taken at a time; when there are more, the next look finds them.
_MANY = 256


class RouteWatch:
    """Belongs to the network namespace in which it was made. Needs no privilege."""

    def __init__(self) -> None:
        """Raises OSError where there is no rtnetlink."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))

    def news(self) -> bool:
        """Whether anything has changed since the last call. What was missed in a burst (ENOBUFS) is news, too."""
        heard = False
        for _ in range(_MANY):
            try:
                self._socket.recv(1)  # what it says does not matter; the rest of the message is cut off
            except BlockingIOError:
                return heard
            except OSError:
                return True
            heard = True
        return heard
