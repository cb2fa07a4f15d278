"""Reach: let the service user walk to the node's directories, and no further.

A node's directories may lie below one that only root can enter (a private temporary directory, root's home). The cells
that gave up root get the right to pass through those, as an access-control entry for their one user: not to list them,
not to read in them.
"""

import os
import stat
import struct
from pathlib import Path

from actors.core.capability import Identity

_ACCESS = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OWNER, _USER, _GROUP_OWNER, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_SEARCH = 0o1


def open_the_way(directory: Path, identity: Identity) -> list[Path]:
    """Give ``identity`` search permission on those ancestors of ``directory`` that deny it; returns them.

    Does nothing without root. Directories that cannot be opened (a file system without such entries) are left: the
    cells will say what they cannot reach."""
    if os.geteuid() != 0 or identity.uid == 0:
        return []
    return [
        parent for parent in reversed(directory.parents) if not _may_pass(parent, identity) and _admit(parent, identity)
    ]


def _may_pass(directory: Path, identity: Identity) -> bool:
    try:
        about = directory.stat()
    except FileNotFoundError:
        return True
    if any(user == identity.uid and rights & _SEARCH for kind, rights, user in _entries(directory) if kind == _USER):
        return bool(about.st_mode & stat.S_IXGRP)  # the mask of the entries is shown as the group's rights
    if about.st_uid == identity.uid:
        return bool(about.st_mode & stat.S_IXUSR)
    if about.st_gid == identity.gid:
        return bool(about.st_mode & stat.S_IXGRP)
    return bool(about.st_mode & stat.S_IXOTH)


def _entries(directory: Path) -> list[tuple[int, int, int]]:
    """The access-control entries as (kind, rights, user or group); empty when there are none."""
    try:
        raw = os.getxattr(directory, _ACCESS)
    except OSError:
        return []
    return [_ENTRY.unpack_from(raw, at) for at in range(len(_VERSION), len(raw), _ENTRY.size)]


def _admit(directory: Path, identity: Identity) -> bool:
    mode = stat.S_IMODE(directory.stat().st_mode)
    entries = _entries(directory) or [
        (_USER_OWNER, mode >> 6 & 7, _NOBODY),
        (_GROUP_OWNER, mode >> 3 & 7, _NOBODY),
        (_OTHER, mode & 7, _NOBODY),
    ]
    kept = [entry for entry in entries if entry[0] != _MASK and (entry[0], entry[2]) != (_USER, identity.uid)]
    kept.append((_USER, _SEARCH, identity.uid))
    mask = _SEARCH
    for kind, rights, _who in kept:
        if kind not in (_USER_OWNER, _OTHER):
            mask |= rights
    kept.append((_MASK, mask, _NOBODY))
    try:
        os.setxattr(directory, _ACCESS, _VERSION + b"".join(_ENTRY.pack(*entry) for entry in sorted(kept)))
    except OSError:
        return False
    return True
