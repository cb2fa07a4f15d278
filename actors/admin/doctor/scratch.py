"""Try each way of attaching a program, on a virtual pair in a network namespace that dies with this process.

Run as ``python -m actors.admin.doctor.scratch``; prints one JSON object: way → "" when it works, else the cause. The
pair exists only inside the namespace, so no packet of the host can ever meet the programs.
"""

import ctypes
import errno
import json
import os
import socket
import subprocess
from collections.abc import Callable

from actors.admin.doctor import bpf_calls as bpf

_CLONE_NEWNET = 0x40000000
NAMES = ("tgprobe0", "tgprobe1")


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        error = ctypes.get_errno()
        print(json.dumps({"namespace": os.strerror(error)}))
        return
    try:
        for command in (
            ["link", "add", NAMES[0], "type", "veth", "peer", "name", NAMES[1]],
            ["link", "set", NAMES[0], "up"],
        ):
            subprocess.run(["ip", *command], check=True, capture_output=True, text=True, timeout=2)
    except FileNotFoundError:
        print(json.dumps({"namespace": "the program ip (package iproute2) is not installed"}))
        return
    except (subprocess.SubprocessError, OSError) as exc:
        print(json.dumps({"namespace": f"a virtual pair cannot be made: {getattr(exc, 'stderr', '') or exc}"[:300]}))
        return
    index = socket.if_nametoindex(NAMES[0])
    found = {"namespace": ""}
    found["xdp_native"] = _try(
        lambda: _attach(bpf.ProgramType.XDP, bpf.XDP_PASS, index, bpf.ATTACH_XDP, bpf.XDP_NATIVE)
    )
    found["xdp_generic"] = _try(
        lambda: _attach(bpf.ProgramType.XDP, bpf.XDP_PASS, index, bpf.ATTACH_XDP, bpf.XDP_GENERIC)
    )
    found["tcx"] = _try(lambda: _attach(bpf.ProgramType.SCHED_CLS, bpf.TC_PASS, index, bpf.ATTACH_TCX_INGRESS, 0))
    found["egress"] = _try(
        lambda: _attach(bpf.ProgramType.SCHED_CLS, bpf.TC_PASS, index, bpf.ATTACH_TCX_EGRESS, 0)
    ) and _try(_filter)
    print(json.dumps(found))


def _filter() -> None:
    """What the egress program hangs in where there is no TCX; tried with a classic program, which tc itself loads."""
    for words in (["qdisc", "add", "dev", NAMES[0], "clsact"],
                  ["filter", "add", "dev", NAMES[0], "egress", "bpf", "bytecode", "1,6 0 0 4294967295"]):  # fmt: skip
        try:
            subprocess.run(["tc", *words], check=True, capture_output=True, text=True, timeout=1)
        except subprocess.CalledProcessError as exc:
            raise OSError(errno.EINVAL, str(exc.stderr)) from exc
        except subprocess.TimeoutExpired as exc:
            raise OSError(errno.ETIMEDOUT, "tc did not answer in time") from exc


def _attach(kind: bpf.ProgramType, verdict: int, index: int, hook: int, flags: int) -> None:
    program = bpf.load_program(kind, verdict)
    try:
        os.close(bpf.link(program, index, hook, flags))
    finally:
        os.close(program)


def _try(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as exc:
        return bpf.cause(exc)
    return ""


if __name__ == "__main__":
    main()
