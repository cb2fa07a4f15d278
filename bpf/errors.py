"""What a data plane refuses, as one small tree; every part of ``bpf`` raises these, ``bpf.dataplane`` shows them.

DataPlaneError
├── BadSubject        no address or prefix
├── MapFull           no room
├── NoSuchInterface   no such network device
├── AllRungsRefused   the program hangs nowhere
├── NotMade           it must be compiled first
└── KernelRefused     errno with its true cause (bpf/libbpf.py)
"""

from collections.abc import Callable


class DataPlaneError(Exception):
    """Root of what a data plane refuses. ``str()`` is one sentence for an operator; ``remedy`` the next step."""

    def __init__(self, message: str, *, errno: int = 0, remedy: str = "") -> None:
        super().__init__(message)
        self.errno = errno
        self.remedy = remedy


class BadSubject(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """The text is no address or prefix that can be banned or tolerated."""


class MapFull(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """No room: some of a batch may already stand; ``done`` says how many."""

    def __init__(self, message: str, *, done: int = 0, errno: int = 0, remedy: str = "") -> None:
        super().__init__(message, errno=errno, remedy=remedy)
        self.done = done


class NoSuchInterface(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """No network device of this name is here (any more)."""


class AllRungsRefused(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """The program could not be hung on the interface in any of the ways that were allowed."""

    def __init__(self, message: str, *, refused: dict[str, str], errno: int = 0, remedy: str = "") -> None:
        super().__init__(message, errno=errno, remedy=remedy)
        self.refused = refused


class NotMade(DataPlaneError):  # noqa: N818 - named for what it says, like its siblings
    """The program must be compiled on this node first: call ``make`` in a thread, as it takes seconds, and open again.
    ``make`` raises DataPlaneError."""

    def __init__(self, message: str, make: Callable[[], None]) -> None:
        super().__init__(message, remedy="wait some seconds")
        self.make = make
