"""The application behind the skin: an echo over TCP and UDP, IPv4 and IPv6, on every port given.

Runs in the node's namespace (``python -m actors.admin.lab.echo PORT ...``), prints ``ready``, ends with its stdin."""

import asyncio
import contextlib
import os
import socket
import sys
from typing import cast

BACKLOG = 4096
#: The burst that a budget allows must fit into the socket, or the application itself would drop an innocent datagram.
QUEUE_BYTES = 8 << 20
SO_RCVBUFFORCE = 33


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not data.startswith(b"TGLB"):  # a flood is swallowed, so that the node does not amplify it
            self._transport.sendto(data, addr)


class Stream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def serve(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        for host in ("0.0.0.0", "::"):  # noqa: S104 - inside a namespace of our own
            await loop.create_server(Stream, host, port, backlog=BACKLOG)
        await loop.create_datagram_endpoint(Datagrams, local_addr=("::", port))  # hears IPv4 too
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    with contextlib.suppress(PermissionError):
        os.nice(-5)
    asyncio.run(serve([int(word) for word in sys.argv[1:]]))


if __name__ == "__main__":
    main()
