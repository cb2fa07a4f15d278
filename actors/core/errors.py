"""The errors of Tegumentar, one small tree.

    TegumentarError
    ├── DecodeError          bytes from another process that are not a message
    ├── Refused              a wish that is understood and declined; the sentence is for the person who asked
    │   └── NotFound         the thing named does not exist
    ├── Unavailable          a peer, a server, a kernel feature is not there; carries the remedy
    │   └── ServiceNotRunning
    └── ToolFailed           a foreign tool (nft, tc, libbpf) said no; carries what it said

Each says verb, object, cause, and what the operator can do next. Foreign errors are translated where they
enter (``raise ToolFailed(...) from exc``). An expected failure changes the cell's mode and is said once; an
unexpected one is reported by the base cell, which then dies and is restarted.
"""


class TegumentarError(Exception):
    """Root of the tree. ``str()`` is one sentence, fit for an operator; never holds a secret."""

    remedy: str = ""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class DecodeError(TegumentarError):
    """Bytes that are not one of our messages. Decoders raise this and nothing else."""


class Refused(TegumentarError):  # noqa: N818 — a sentence reads better without "Error"
    """Understood, and declined: nothing was changed."""


class NotFound(Refused):
    """What the request names is not there."""


class Unavailable(TegumentarError):  # noqa: N818
    """Something this part needs is absent for now; the rest goes on."""


class ServiceNotRunning(Unavailable):
    """No Tegumentar service answers in this run directory."""


class ToolFailed(TegumentarError):  # noqa: N818
    """A foreign tool refused. ``said`` is its own text, cut to a bounded length."""

    def __init__(self, message: str, *, said: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.said = said[:2000]
