"""Notices when network interfaces come, go or change, by netlink; nothing is polled."""

import socket

_RTMGRP_LINK = 1


class LinkWatch:
    """``fd`` is readable after a change. Belongs to the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _RTMGRP_LINK))
        self.fd = self._socket.fileno()

    def drain(self) -> bool:
        """Forget what was told; whether there was anything. An overrun (ENOBUFS) is news too."""
        news = False
        for _ in range(64):
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return news
            except OSError:
                return True
            news = True
        return news

    def close(self) -> None:
        self._socket.close()
