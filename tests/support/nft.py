"""A network namespace of one's own for tests that run nft: nothing outside it is touched."""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, in the namespace."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as away:
        _enter(away.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


@contextmanager
def namespace(label: str = "nft") -> Iterator[str]:
    """A fresh namespace with its loopback up; gone afterwards."""
    name = f"tg-{label}-{os.getpid()}-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def nft(script: str) -> None:
    """Somebody else's hand: run nft in the current namespace."""
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)


def nft_listing(*what: str) -> str:
    return subprocess.run(["nft", "list", *what], text=True, check=True, capture_output=True).stdout


def sent(source: str, target: str) -> bool:
    """Whether one ping from the source address gets its answer within half a second."""
    command = ["ping", "-n", "-q", "-c", "1", "-W", "0.5", "-I", source, target]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def has_root() -> bool:
    return os.geteuid() == 0 and Path("/run/netns").parent.is_dir()


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
