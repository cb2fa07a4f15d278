"""Ordinary traffic of a small network: ``python -m tests.support.learning ADDRESS PORT SOURCE ...`` lets clients ask.

Each source asks in its own time for answers of its own sizes, over TCP and now and then over UDP, until stdin ends.
"""

import contextlib
import random
import socket
import sys
import threading
import time

PAUSE_S = 0.035


def ask(address: str, port: int, source: str, rng: random.Random) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:
        link.settimeout(2)
        link.bind((source, 0))
        link.connect((address, port))
        for _ in range(rng.randint(1, 4)):
            size = int(rng.lognormvariate(6, 1))
            link.sendall(b"x" * size)
            while size > 0 and (part := link.recv(65536)):
                size -= len(part)
            time.sleep(rng.expovariate(50))


def call(address: str, port: int, source: str, rng: random.Random) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(1)
        link.bind((source, 0))
        link.sendto(b"y" * rng.randint(20, 300), (address, port))
        link.recv(2048)


def live(address: str, port: int, source: str, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        with contextlib.suppress(OSError):
            (call if rng.random() < 0.25 else ask)(address, port, source, rng)
        time.sleep(rng.expovariate(1 / PAUSE_S))


def main() -> None:
    address, port, *sources = sys.argv[1:]
    for seed, source in enumerate(sources):
        threading.Thread(target=live, args=(address, int(port), source, seed), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
