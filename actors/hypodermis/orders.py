"""The desired state as a file, for a cell that has just started: one msgpack array of ``Order`` maps.

Each state gets a name of its own, so that a reader who was told of one never finds another. Files appear whole or not
at all, and only the last few are kept. Readers check every subject again: the writer has no privileges.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from actors.core.errors import ToolFailed
from actors.core.messages import Order
from actors.hypodermis.ledger import Ban

KEEP = 4


def order_of(ban: Ban) -> Order:
    """What the enforcing cells need to know of a ban."""
    return Order(subject=ban.subject.text, action=ban.action, until_unix_s=ban.until_unix_s, reason=ban.reason[:200])


class OrdersDirectory:
    """Where the files lie. The directory is made by ``prepare``, as root where there is one."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "orders"

    def prepare(self, uid: int, gid: int) -> None:
        """Make the directory for this owner; nobody else may write there. Raises OSError."""
        self.path.mkdir(mode=0o750, parents=True, exist_ok=True)
        if os.geteuid() == 0 and not self.path.is_symlink():
            os.chown(self.path, uid, gid, follow_symlinks=False)

    def write(self, orders: Iterable[Order], generation: int) -> tuple[Path, int]:
        """Write the whole state. Returns the file and the number of orders. Raises ToolFailed."""
        listed = list(orders)
        final = self.path / f"orders-{generation}.msgpack"
        draft = self.path / f".orders-{generation}"
        try:
            self.path.mkdir(mode=0o750, parents=True, exist_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(msgspec.msgpack.encode(listed))
            draft.rename(final)
            self._forget_old()
        except OSError as exc:
            raise ToolFailed(
                f"the desired state could not be written to {final}: {exc.strerror}",
                remedy=f"make {self.path} writable for uid {os.geteuid()} and see that its disk has room",
            ) from exc
        return final, len(listed)

    def _forget_old(self) -> None:
        files = sorted(self.path.glob("orders-*.msgpack"), key=lambda path: path.stat().st_mtime_ns)
        for old in files[:-KEEP]:
            old.unlink(missing_ok=True)
        for draft in self.path.glob(".orders-*"):
            draft.unlink(missing_ok=True)
