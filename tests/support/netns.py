"""Network namespaces for tests: the lab's own, so that tests and lab cannot drift apart.

    with Network() as net:                       # node (skin0), attacker and innocent (wire0) on one wire
        net.node.namespace.run("nft", "list", "ruleset")
    with Namespace("nft") as space:              # one empty namespace with lo up
        with space.entered(): ...                # this thread is inside: sockets made here belong to it
    with pins() as directory: ...                # a bpffs directory of our own

Everything is removed at the end, with the processes that still run inside; leftovers of killed runs are swept first.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from actors.admin.lab.net import Host, LabError, Namespace, Network, mount_bpffs, owner_tag, remove_pins, sweep

__all__ = ["Host", "LabError", "Namespace", "Network", "mount_bpffs", "owner_tag", "pins", "sweep", "veth"]


@contextlib.contextmanager
def pins() -> Iterator[Path]:
    """A directory on bpffs that nobody else uses; every pin in it is unlinked at the end."""
    directory = mount_bpffs() / owner_tag()
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        remove_pins(directory)


def veth(left: Namespace, right: Namespace, left_name: str = "v0", right_name: str = "v0") -> None:
    """A plain veth pair between two namespaces, both ends up, no addresses."""
    left.ip(f"link add {left_name} type veth peer name {right_name} netns {right.name}", f"link set {left_name} up")
    right.ip(f"link set {right_name} up")


sweep()
