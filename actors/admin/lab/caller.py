"""A patient attacker: real TCP connections, one after the other, to one port after the other, with a greeting or not.

He connects by his own kernel, as a scanner without root or a guesser of passwords does. What no answer came to within
``TIMEOUT_S`` is given up. Runs as a child inside the attacker's namespace (``python -m actors.admin.lab.caller
FAMILY SOURCE ADDRESS PACE_S GREETING_BYTES PORT...``; source is an address of his), prints ``ready``, waits for one
line, and prints one JSON object a call: port, at_ns (CLOCK_MONOTONIC) and end: ``connected``, ``refused`` or
``silence``. It goes round the ports for ever and ends with its stdin.
"""

import contextlib
import itertools
import json
import select
import socket
import sys
import time

TIMEOUT_S = 0.5


def call(family: int, source: str, address: str, port: int, greeting: bytes) -> str:
    """One connection; with a greeting the answer of the same length is awaited before it ends."""
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as link:
        link.settimeout(TIMEOUT_S)
        try:
            link.bind((source, 0))
            link.connect((address, port))
            if greeting:
                link.sendall(greeting)
                got = 0
                while got < len(greeting) and (part := link.recv(4096)):
                    got += len(part)
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silence"
    return "connected"


def main() -> None:
    family, source, address, pace_s, size, *ports = sys.argv[1:]
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        due = time.monotonic()
        for port in itertools.cycle(map(int, ports)):
            at_ns = time.monotonic_ns()
            end = call(int(family), source, address, port, b"." * int(size))
            print(json.dumps({"port": port, "at_ns": at_ns, "end": end}), flush=True)
            due = max(due + float(pace_s), time.monotonic())
            if select.select([0], [], [], max(0.0, due - time.monotonic()))[0]:
                return


if __name__ == "__main__":
    main()
