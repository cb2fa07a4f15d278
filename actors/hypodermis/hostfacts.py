"""What this host is on the net: its addresses, gateways, resolvers, and who administers it right now.

Read without privileges: addresses and routes over rtnetlink, resolvers from ``resolv.conf``, sessions over sock_diag
or, where the kernel lacks it, from ``/proc/self/net/tcp`` and ``tcp6`` (up to ``TCP_TABLE_LIMIT`` bytes). What cannot
be read is left out and named in ``HostFacts.unread``: policy goes on with what is known. Reading takes longer the more
routes there are, so ``changed`` says when there is no need to.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actors.core import rtnetlink
from actors.core.errors import Refused
from actors.hypodermis import tcp_diag
from actors.hypodermis.route_watch import RouteWatch
from actors.hypodermis.subjects import IPV4_BITS, IPV6_BITS, Prefix, parse_prefix

#: About 50,000 sockets. Beyond that the rest is not looked at, and ``unread`` says so.
TCP_TABLE_LIMIT = 8 * 1024 * 1024
RESOLV_CONF_LIMIT = 65_536
_ESTABLISHED = "01"


@dataclass(frozen=True)
class HostFacts:
    """addresses carry the length of their network; everything else is a host. unread: sentences."""

    addresses: tuple[Prefix, ...] = ()
    networks: tuple[Prefix, ...] = ()
    gateways: tuple[Prefix, ...] = ()
    resolvers: tuple[Prefix, ...] = ()
    unread: tuple[str, ...] = ()


class HostSource(Protocol):
    """Where the facts come from. Neither call raises."""

    def facts(self) -> HostFacts:
        """Addresses, networks on the link, gateways and resolvers as of now."""
        ...

    def changed(self) -> bool:
        """Whether the facts may be others than at the last reading."""
        ...

    def admin_sessions(self, ports: Iterable[int]) -> frozenset[Prefix]:
        """Peers with an established TCP connection to one of these local ports, as of now."""
        ...


class FakeHost:
    """Facts set by hand. Folds and sorts exactly as the real one does."""

    def __init__(self, facts: HostFacts | None = None, sessions: dict[int, list[str]] | None = None) -> None:
        self.known = facts or HostFacts()
        self.sessions = sessions or {}

    def facts(self) -> HostFacts:
        return self.known

    def changed(self) -> bool:
        return True

    def admin_sessions(self, ports: Iterable[int]) -> frozenset[Prefix]:
        return frozenset(parse_prefix(peer) for port in ports for peer in self.sessions.get(port, ()))


class LinuxHost:
    """The host, or network namespace, that this process lives in."""

    def __init__(
        self,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        proc_net: Path = Path("/proc/self/net"),
        ask: Callable[[Collection[int]], set[bytes]] = tcp_diag.peers,
    ) -> None:
        self._ask = ask
        self._resolv_conf = resolv_conf
        self._proc_net = proc_net
        self._resolvers_read: tuple[int, ...] | None = None
        self._routes: RouteWatch | None = None
        with suppress(OSError):  # without it the facts are read each time
            self._routes = RouteWatch()

    def changed(self) -> bool:
        moved = self._routes is None or self._routes.news()
        return moved or self._resolvers_read is None or self._resolvers_read != _stamp(self._resolv_conf)

    def facts(self) -> HostFacts:
        unread: list[str] = []
        self._resolvers_read = _stamp(self._resolv_conf)
        addresses: list[Prefix] = []
        networks: list[Prefix] = []
        gateways: list[Prefix] = []
        try:
            addresses, networks, gateways = _from_netlink()
        except OSError as exc:  # a missing fact must not stop policy
            unread.append(f"the addresses and routes of this host could not be read: {exc}")
        try:
            resolvers = _resolvers(self._resolv_conf.read_bytes()[:RESOLV_CONF_LIMIT].decode("utf-8", "replace"))
        except FileNotFoundError:
            resolvers = []
        except OSError as exc:
            resolvers = []
            unread.append(f"{self._resolv_conf} could not be read: {exc.strerror}")
        return HostFacts(_set(addresses), _set(networks), _set(gateways), _set(resolvers), tuple(unread))

    def admin_sessions(self, ports: Iterable[int]) -> frozenset[Prefix]:
        wanted = frozenset(ports)
        try:
            return frozenset(map(_of_bytes, self._ask(wanted)))
        except OSError:  # a kernel without sock_diag: the same as text
            named = {f"{port:04X}" for port in wanted}
            return frozenset(_peers(self._table("tcp"), named) | _peers(self._table("tcp6"), named))

    def _table(self, name: str) -> str:
        try:
            with (self._proc_net / name).open("rb") as table:
                return table.read(TCP_TABLE_LIMIT).decode("ascii", "replace")
        except OSError:  # no IPv6 in this kernel, or no proc in this container
            return ""


def _from_netlink() -> tuple[list[Prefix], list[Prefix], list[Prefix]]:
    """Own addresses, networks on the link, and gateways of every table."""
    addresses: list[Prefix] = []
    networks: list[Prefix] = []
    for own in rtnetlink.addresses():
        if (host := _host(str(own.address))) is None:
            continue
        addresses.append(host)
        networks.append(host.widened(own.length))
        if own.broadcast is not None and (broadcast := _host(str(own.broadcast))) is not None:
            addresses.append(broadcast)
    hops = {gateway for route in rtnetlink.routes() for gateway in route.gateways}
    gateways = [host for hop in hops if (host := _host(str(hop))) is not None]
    return addresses, networks, gateways


def _stamp(path: Path) -> tuple[int, ...]:
    """Another one when the file is another."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _set(prefixes: list[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(set(prefixes)))


def _host(text: str | None) -> Prefix | None:
    try:
        return parse_prefix(text) if text else None
    except Refused:
        return None


def _resolvers(text: str) -> list[Prefix]:
    """Addresses of ``nameserver`` lines; a zone id is cut off, what is no address is passed over."""
    found: list[Prefix] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and (host := _host(words[1].partition("%")[0])) is not None:
            found.append(host)
    return found


def _peers(table: str, local_ports: set[str]) -> set[Prefix]:
    """Remote ends of the established rows whose local port is wanted; a row that does not parse is passed over."""
    found: set[Prefix] = set()
    for line in table.splitlines()[1:]:
        columns = line.split(None, 4)
        if len(columns) < 4 or columns[3] != _ESTABLISHED or columns[1][-4:] not in local_ports:
            continue
        digits = columns[2].partition(":")[0]
        try:
            raw = bytes.fromhex(digits)
        except ValueError:
            continue
        if len(raw) not in (4, 16):
            continue
        # the kernel prints each 32-bit word in the order of the processor, which here means little-endian
        found.add(_of_bytes(b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))))
    return found


def _of_bytes(raw: bytes) -> Prefix:
    """An address in network order, an IPv4 one in IPv6 clothes as IPv4."""
    value = int.from_bytes(raw, "big")
    prefix = Prefix(4, value, IPV4_BITS) if len(raw) == 4 else Prefix(6, value, IPV6_BITS)
    return parse_prefix(prefix.text)
