"""The host around the service: directories, disk, memory, clock, user, port, its own name."""

import ctypes
import os
import pwd
import shutil
import socket
from pathlib import Path

from actors.admin.doctor.check import Check, Weight, bad, good, unclear
from config.settings import Settings

LITTLE_DISK = 256 << 20
#: The whole service uses under 250 MB when idle; tables for a million entries want as much again.
LITTLE_MEMORY = 512 << 20
_STA_UNSYNC = 0x40


def checks(settings: Settings) -> list[Check]:
    return [
        *(_directory(name, getattr(settings, name)) for name in ("state_dir", "run_dir", "log_dir")),
        _disk(settings.state_dir),
        _memory(),
        _clock(),
        _user(settings.user),
        _port(settings),
        _own_name(),
    ]


def _directory(name: str, path: Path) -> Check:
    """Writable, or to be made inside a parent that is."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return good(name, str(path) if place == path else f"{path}, to be made")
    return bad(
        name,
        f"{path} cannot be written" if place == path else f"{path} cannot be made in {place}",
        "the service does not start without its run directory" if name == "run_dir" else "nothing is remembered there",
        f"set TEGUMENTAR_{name.upper()} to a writable directory, or make this one writable",
        Weight.VITAL if name == "run_dir" else Weight.USEFUL,
    )


def _disk(path: Path) -> Check:
    while not path.exists() and path != path.parent:
        path = path.parent
    free = shutil.disk_usage(path).free
    if free >= LITTLE_DISK:
        return good("disk_space", f"{free / (1 << 30):.1f} GiB free at {path}")
    return bad(
        "disk_space",
        f"{free >> 20} MiB free at {path}",
        "the journal may stop; protection goes on",
        "make room, or set TEGUMENTAR_STATE_DIR to another disk",
    )


def _memory() -> Check:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    free = int(lines.get("MemAvailable", "0 kB").split()[0]) << 10
    if free >= LITTLE_MEMORY:
        return good("memory", f"{free / (1 << 30):.1f} GiB available")
    return bad(
        "memory",
        f"{free >> 20} MiB available",
        "large blocklists may not fit, and the kernel may end a cell (it is started again)",
        f"give the host {LITTLE_MEMORY >> 20} MiB more",
    )


def _clock() -> Check:
    """What the kernel's own clock discipline says; a daemon that steps the clock without it cannot be seen."""
    buffer = ctypes.create_string_buffer(256)
    result = ctypes.CDLL(None).adjtimex(buffer)
    status = ctypes.c_int.from_buffer(buffer, 40).value if ctypes.sizeof(ctypes.c_long) == 8 else 0
    if result >= 0 and not status & _STA_UNSYNC and result != 5:
        return good("time_sync", "the clock is kept by a time source")
    return unclear(
        "time_sync",
        "no time source disciplines the clock",
        "times in the journal may be wrong; bans in the kernel are not affected",
        "start chrony or systemd-timesyncd, unless the hypervisor keeps the time",
    )


def _user(user: str) -> Check:
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        return bad(
            "service_user",
            f"there is no user {user}",
            "cells without privileges run under a number that nobody else uses",
            f"adduser --system --group --no-create-home {user}",
            Weight.NOTE,
        )
    return good("service_user", f"{entry.pw_name}, uid {entry.pw_uid}")


def _port(settings: Settings) -> Check:
    host, port = settings.gateway.host, settings.gateway.port
    if not settings.gateway.enabled or port == 0:
        return good("gateway_port", "off" if not settings.gateway.enabled else "any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as exc:
        if _is_ours(host, port):
            return good("gateway_port", f"{port}, held by the running service")
        return bad(
            "gateway_port",
            f"{host} port {port}: {exc.strerror}",
            "no HTTP interface and no metrics until it is free; protection is not affected",
            "ss -ltnp shows who holds it; gateway.port chooses another",
        )
    return good("gateway_port", f"{port} is free")


def _is_ours(host: str, port: int) -> bool:
    """Something answers there the way the gateway does."""
    try:
        with socket.create_connection((host, port), timeout=0.5) as connection:
            connection.settimeout(0.5)
            connection.sendall(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return b" 200 " in connection.recv(256).splitlines()[0]
    except (OSError, IndexError):
        return False


def _own_name() -> Check:
    name = socket.gethostname()
    try:
        lines = Path("/etc/hosts").read_text().splitlines()
    except OSError:
        lines = []
    if any(name in line.partition("#")[0].split()[1:] for line in lines):
        return good("host_name", name)
    return bad(
        "host_name",
        f"{name} is not in /etc/hosts",
        "every look-up of the own name asks a resolver, and waits for it when it is away",
        f"add a line to /etc/hosts: 127.0.1.1 {name}",
        Weight.NOTE,
    )
