"""Traces: what sensors proposed a moment ago, kept until policy has decided about it. Pure, bounded."""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from actors.dermis.antigen import Payload

LIMIT = 10_000
#: Policy decides within milliseconds; a throttled source may be banned a little later. Seconds.
KEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Trace:
    """A proposal: by which sensor, why, and when; payload: it is about what was said, not about who said it."""

    sensor: str
    reason: str
    evidence: str
    score: float
    dest_port: int
    at_unix_s: float
    payload: Payload | None = None


class Traces:
    """The latest proposal of each source or payload. Policy may ban the /64 of an IPv6 source: both find one trace."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def __len__(self) -> int:
        return len(self._traces)

    def put(self, subject: str, trace: Trace) -> None:
        name = _name(subject)
        self._traces[name] = trace
        self._traces.move_to_end(name)
        if len(self._traces) > LIMIT:
            self._traces.popitem(last=False)

    def take(self, subject: str, now: float) -> Trace | None:
        """The trace of what policy has decided, once; None when no sensor proposed it lately."""
        trace = self._traces.pop(_name(subject), None)
        return trace if trace is not None and now - trace.at_unix_s < KEEP_S else None


def _name(subject: str) -> str:
    """An IPv6 host goes by its /64; what is no address, by itself."""
    try:
        network = ipaddress.ip_network(subject, strict=False)
    except ValueError:
        return subject
    if network.version == 6 and network.prefixlen > 64:
        return str(network.supernet(new_prefix=64))
    return str(network)
