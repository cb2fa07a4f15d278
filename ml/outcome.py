"""What became of a flow, from its counters alone; used by the feature vector and by the windows alike.

A flow is shown half a second after its start at the earliest, so "no answer" means that none came in that time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml.records import ACK, PROTO_TCP, RST, SYN, Flows

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """bool[N] each. ``refused`` and ``half_open`` exist for TCP only; ``failed`` is unanswered or refused."""

    unanswered: Mask
    refused: Mask
    half_open: Mask

    @property
    def failed(self) -> Mask:
        return self.unanswered | self.refused


def outcome(flows: Flows) -> Outcome:
    """Judge each flow by what its two sides sent."""
    flags = flows["side"]["flags"]
    tcp = flows["key"]["proto"] == PROTO_TCP
    unanswered = flows["side"]["packets"][:, 1] == 0
    refused = tcp & (flags[:, 1, RST] > 0) & (flags[:, 1, SYN] == 0)
    half_open = tcp & (flags[:, 1, SYN] > 0) & (flags[:, 0, ACK] == 0)
    return Outcome(unanswered, refused, half_open)
