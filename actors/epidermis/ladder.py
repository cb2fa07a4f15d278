"""The ladder: where the skin stands on one interface, what is tried next, and why each better rung was refused. Pure.

From the top: ``native`` XDP, ``tcx``, ``generic`` XDP carry the kernel program; ``nft_ingress`` and
``nft_prerouting`` are nftables hooks with the same bans and feeds but no reflexes; ``observe`` drops nothing. The order
is a setting. A fall is immediate; climbing is tried again by itself, later and later while it fails.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

KERNEL_RUNGS = ("native", "tcx", "generic")
NFT_INGRESS, NFT_PREROUTING, OBSERVE = "nft_ingress", "nft_prerouting", "observe"
CLIMB_FIRST_S, CLIMB_CAP_S = 5.0, 300.0


@dataclass(slots=True)
class Ladder:
    """One interface. ``standing`` empty: not yet decided, or the interface is gone (then ``gone`` is true)."""

    interface: str
    order: Sequence[str]
    standing: str = ""
    gone: bool = False
    #: rung → why it was refused last, in words
    refused: dict[str, str] = field(default_factory=dict)
    _wait_s: float = CLIMB_FIRST_S
    _climb_at_s: float = 0.0

    @property
    def kernel_rungs(self) -> tuple[str, ...]:
        """The rungs that carry the kernel program, as far as the setting allows them, best first."""
        return tuple(rung for rung in self.order if rung in KERNEL_RUNGS)

    @property
    def on_program(self) -> bool:
        """Whether packets meet the kernel program here."""
        return self.standing in KERNEL_RUNGS

    @property
    def wants_hook(self) -> bool:
        """Whether the nftables ingress hook is needed here."""
        return not self.gone and not self.on_program and NFT_INGRESS in self.order

    @property
    def first(self) -> str:
        return self.order[0] if self.order else OBSERVE

    def due(self, now_s: float) -> bool:
        """Whether the kernel rungs are to be tried now: nothing stands yet, or a better one may by now."""
        if self.gone or not self.kernel_rungs or self.standing == self.kernel_rungs[0]:
            return False
        return now_s >= self._climb_at_s

    def stands(self, rung: str, refused: Mapping[str, str], now_s: float) -> bool:
        """The kernel took the program at this rung. Returns whether that is news."""
        news = rung != self.standing
        self.standing, self.gone = rung, False
        better = self.order[: self.order.index(rung)] if rung in self.order else ()
        self.refused = {name: refused.get(name, self.refused.get(name, "")) for name in better}
        self.refused = {name: why for name, why in self.refused.items() if why}
        if rung == self.first:
            self._wait_s = CLIMB_FIRST_S
        self._pause(now_s)
        return news

    def falls(self, refused: Mapping[str, str], now_s: float) -> None:
        """No kernel rung held. What nftables offers is told by ``hook``; until then nothing is known to stand."""
        self.refused |= refused
        if self.on_program or not self.standing:
            self.standing = NFT_PREROUTING if NFT_PREROUTING in self.order else OBSERVE
        self._pause(now_s)

    def hook(self, ingress: bool, prerouting: bool, why_not: str) -> bool:
        """What became of the nftables hooks. Returns whether that is news."""
        if self.on_program or self.gone:
            return False
        before = self.standing
        if ingress and NFT_INGRESS in self.order:
            self.standing = NFT_INGRESS
            self.refused.pop(NFT_INGRESS, None)
        else:
            if NFT_INGRESS in self.order:
                self.refused[NFT_INGRESS] = why_not or "the nftables filter is not there"
            takes = prerouting and NFT_PREROUTING in self.order
            self.standing = NFT_PREROUTING if takes else OBSERVE
            if not prerouting and NFT_PREROUTING in self.order:
                self.refused[NFT_PREROUTING] = "the nftables filter is not there"
        return before != self.standing

    def lost(self) -> None:
        """What stood is gone: another program's doing, or the device. The next attempt is at once."""
        self.standing, self._climb_at_s, self._wait_s = "", 0.0, CLIMB_FIRST_S

    def vanished(self) -> None:
        """The interface is no more."""
        self.lost()
        self.gone = True
        self.refused = {}

    def returned(self) -> None:
        """The interface is there (again)."""
        if self.gone:
            self.gone = False
            self.lost()

    def _pause(self, now_s: float) -> None:
        self._climb_at_s = now_s + self._wait_s
        self._wait_s = min(self._wait_s * 2, CLIMB_CAP_S)
