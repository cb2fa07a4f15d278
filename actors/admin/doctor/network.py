"""What stands between the node and the network: interfaces, nftables, conntrack. Real interfaces are only looked at."""

import ctypes
import fcntl
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from actors.admin.doctor.check import Check, Weight, bad, good, unclear
from actors.core.capability import effective

#: Drivers that carry XDP themselves in the kernels this runs on (those whose hardware is common in servers and clouds).
NATIVE_DRIVERS = frozenset(
    [
        "atlantic",
        "bnxt_en",
        "dpaa2-eth",
        "ena",
        "enetc",
        "fsl_dpaa",
        "gve",
        "hv_netvsc",
        "i40e",
        "iavf",
        "ice",
        "idpf",
        "igb",
        "igc",
        "ixgbe",
        "ixgbevf",
        "mana",
        "mlx4_en",
        "mlx5_core",
        "mtk_eth_soc",
        "mvneta",
        "mvpp2",
        "nfp",
        "octeontx2",
        "qede",
        "sfc",
        "stmmac",
        "tsnep",
        "tun",
        "veth",
        "virtio_net",
        "xen_netfront",
        "netvsc",
        "bond",
    ]
)
#: Above this a page no longer holds the frame, and many drivers refuse native XDP.
LARGE_MTU = 3498
_SIOCGIFMTU, _SIOCETHTOOL, _ETHTOOL_GDRVINFO, _DRVINFO_BYTES = 0x8921, 0x8946, 3, 196


def checks(interfaces: tuple[str, ...]) -> list[Check]:
    chosen = interfaces or tuple(default_route_interfaces())
    if not chosen:
        return [
            bad(
                "interfaces",
                "no interface is configured and no default route names one",
                "no interface is protected by the kernel program",
                "name them with --interface or in the settings",
                Weight.VITAL,
            ),
            *_nftables(),
            _conntrack(),
        ]
    return [*(_interface(name) for name in chosen), *_nftables(), _conntrack()]


def default_route_interfaces() -> list[str]:
    """Interfaces of the default routes of both families, as the service itself would choose them."""
    found: dict[str, None] = {}
    for line in _lines("/proc/net/route")[1:]:
        part = line.split()
        if len(part) > 7 and part[1] == part[7] == "00000000":
            found[part[0]] = None
    for line in _lines("/proc/net/ipv6_route"):
        part = line.split()
        if len(part) == 10 and part[1] == "00" and set(part[0]) == {"0"} and part[9] != "lo":
            found[part[9]] = None
    return list(found)


def _interface(name: str) -> Check:
    title = f"interface:{name}"
    try:
        socket.if_nametoindex(name)
        mtu, driver = _mtu(name), _driver(name)
    except OSError:
        return bad(
            title,
            "there is no such interface",
            "it is protected as soon as it appears",
            "check the name with: ip link",
            Weight.USEFUL,
        )
    said = f"driver {driver or 'unknown'}, MTU {mtu}"
    if mtu > LARGE_MTU:
        return unclear(
            title, said, "native XDP may be refused because of the MTU; generic XDP or TCX takes over", "lower the MTU"
        )
    if driver in NATIVE_DRIVERS:
        return good(title, f"{said}, native XDP expected")
    return unclear(title, said, "this driver may have no native XDP; the next rung is taken by itself")


# Asked by ioctl: /sys/class/net shows the network namespace it was mounted in, which need not be ours.


def _mtu(name: str) -> int:
    """Raises OSError when there is no such interface."""
    return int(struct.unpack_from("i", _ask(_SIOCGIFMTU, struct.pack("16s16x8x", name.encode())), 16)[0])


def _driver(name: str) -> str:
    """The driver's name as the driver itself gives it; empty when it does not say."""
    told = (ctypes.c_char * _DRVINFO_BYTES)()
    struct.pack_into("I", told, 0, _ETHTOOL_GDRVINFO)
    try:
        _ask(_SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(told)))
    except OSError:
        return ""
    return bytes(told)[4:36].split(b"\0")[0].decode("ascii", "replace")


def _ask(request: int, ifreq: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, request, ifreq)


def _nftables() -> list[Check]:
    binary = shutil.which("nft")
    if binary is None:
        loss = "postures and the rungs below XDP are off; the kernel program protects alone"
        says, remedy = "the program nft is not installed", "apt-get install nftables"
        if outside := shutil.which("nft", path="/usr/sbin:/sbin"):  # Debian's su leaves both out of PATH
            says, remedy = f"{outside} is not in PATH", f"add {Path(outside).parent} to PATH, as su - does"
        return [
            bad("nft", says, loss, remedy, Weight.VITAL),
            unclear("nft_rights", "cannot be asked without nft"),
        ]
    version = _first_line([binary, "--version"]).removeprefix("nftables ")
    found = [good("nft", f"{version}, {binary}")]
    if "CAP_NET_ADMIN" not in effective():
        found.append(
            bad(
                "nft_rights",
                "without CAP_NET_ADMIN no rule can be written",
                "no filter",
                "run it as root",
                Weight.VITAL,
            )
        )
        return found
    try:
        done = subprocess.run(
            [binary, "--check", "-f", "-"],
            input=b"add table inet tegumentar_doctor\n",
            capture_output=True,
            timeout=1.5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        found.append(unclear("nft_rights", "nft did not answer in time"))
        return found
    if done.returncode == 0:
        found.append(good("nft_rights", "a table may be written (checked only, nothing was)"))
    else:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        cause = (said[-1] if said else f"nft ended with {done.returncode}")[:200]
        found.append(bad("nft_rights", cause, "no filter", "load nf_tables, or run it as root", Weight.VITAL))
    return found


def _conntrack() -> Check:
    fill, limit = (_number(f"/proc/sys/net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if limit is None:
        return unclear(
            "conntrack",
            "connection tracking is not loaded yet",
            "the kernel loads it with the first rule that needs it",
        )
    if fill is not None and limit and fill / limit > 0.8:
        return bad(
            "conntrack",
            f"{fill:,} of {limit:,} entries used",
            "new connections will be refused when it is full",
            "sysctl net.netfilter.nf_conntrack_max, with a larger number",
        )
    return good("conntrack", f"room for {limit:,} connections")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _first_line(command: list[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=1, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    return said.splitlines()[0] if said else "?"
