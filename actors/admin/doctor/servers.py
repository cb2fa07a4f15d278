"""Servers that this node is told to use. Nothing is contacted that the settings do not name; no secret is sent."""

import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path

from actors.admin.doctor.check import Check, Weight, bad, good, unclear
from config.dsn import Target
from config.settings import Settings

LIMIT_S = 1.2


def checks(settings: Settings) -> list[Check]:
    """All at once, because each may take its whole time limit."""
    asked: list[tuple[str, Callable[[], Check]]] = [("name_resolution", lambda: _resolution(settings))]
    if (postgres := settings.memory.postgres()) is not None:
        loss = "the journal stays on the node until the server is back"
        asked.append(("postgresql", lambda: _reach("postgresql", postgres, loss)))
    if (redis := settings.redis.target()) is not None:
        asked.append(("redis", lambda: _reach("redis", redis, "rate limits are kept by this node alone")))
    for server in settings.kafka.bootstrap_servers:
        host, _, port = server.rpartition(":")
        target = Target(scheme="kafka", host=host.strip("[]"), port=int(port))
        asked.append((f"kafka:{server}", _kafka(server, target)))
    pool = ThreadPoolExecutor(len(asked), thread_name_prefix="doctor")
    futures = [(name, pool.submit(ask)) for name, ask in asked]
    pool.shutdown(wait=False)
    deadline = time.monotonic() + LIMIT_S
    found = []
    for name, future in futures:
        try:
            found.append(future.result(max(0.0, deadline - time.monotonic())))
        except TooLate:
            found.append(_late(name))
    return found


def _kafka(server: str, target: Target) -> Callable[[], Check]:
    return lambda: _reach(f"kafka:{server}", target, "what this node learns waits in its outbox")


def _late(name: str) -> Check:
    if name == "name_resolution":
        return unclear(name, f"no answer within {LIMIT_S:g} s", "servers and feeds given by name are not reached")
    return bad(name, f"no answer within {LIMIT_S:g} s", "it is used as soon as it answers", "check address and network")


def _reach(name: str, target: Target, loss: str) -> Check:
    """Whether something accepts a connection there; that it is the right server, the service finds out by itself."""
    place = target.socket or f"{target.host}:{target.port}"
    try:
        if target.socket:
            path = Path(target.socket)
            path = path / f".s.PGSQL.{target.port or 5432}" if path.is_dir() else path
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
                connection.settimeout(LIMIT_S)
                connection.connect(str(path))
        else:
            socket.create_connection((target.host, target.port), timeout=LIMIT_S).close()
    except socket.gaierror as exc:
        return bad(name, f"the name {target.host} is not resolved: {exc.strerror}", loss, "check the name and the DNS")
    except OSError as exc:
        why = exc.strerror or "no answer in time"
        return bad(
            name, f"{place} does not accept connections: {why}", loss, "start the server or correct the settings"
        )
    return good(name, f"{place} accepts connections")


def _resolution(settings: Settings) -> Check:
    """Ask the resolvers for a name that every one of them knows; only matters where a server is given by name."""
    names = [name for name in _names(settings) if not _literal(name)]
    needed = Weight.USEFUL if names else Weight.NOTE
    asked = names[0] if names else "localhost.localdomain"
    try:
        servers = [
            line.split()[1]
            for line in Path("/etc/resolv.conf").read_text().splitlines()
            if line.startswith("nameserver") and len(line.split()) > 1
        ]
    except OSError:
        servers = []
    if not servers:
        return bad(
            "name_resolution",
            "/etc/resolv.conf names no server",
            "servers and feeds given by name are not reached",
            "name a resolver; in Kubernetes set dnsPolicy: ClusterFirstWithHostNet for pods on the host network",
            needed,
        )
    if not names:
        return unclear("name_resolution", f"not needed; resolvers: {', '.join(servers[:3])}")
    try:
        socket.getaddrinfo(asked, None)
    except OSError as exc:
        return bad(
            "name_resolution",
            f"{asked} is not resolved by {', '.join(servers[:3])}: {exc.strerror}",
            "servers and feeds given by name are not reached",
            "in Kubernetes, on the host network, set dnsPolicy: ClusterFirstWithHostNet; else check the resolver",
            needed,
        )
    return good("name_resolution", f"{asked} is resolved")


def _names(settings: Settings) -> list[str]:
    targets = [settings.memory.postgres(), settings.redis.target()]
    named = [target.host for target in targets if target is not None and target.host]
    return named + [server.rpartition(":")[0].strip("[]") for server in settings.kafka.bootstrap_servers]


def _literal(name: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, name)
            return True
    return name == "localhost"
