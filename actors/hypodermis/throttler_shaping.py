"""The queues of all shaped interfaces, kept at one rate, and taken away when shaping is switched off.

Queues outlive every process, so a note in the state directory says where there are some: a node that starts with
shaping switched off finds it and takes them away. Its absence costs a node without shaping nothing.
"""

from collections.abc import Callable
from pathlib import Path

from actors.core.errors import TegumentarError
from actors.hypodermis.shaper import Shaper, TcShaper

NOTE = "shaped-interfaces"
#: An interface that comes back without its queue gets it again within so many seconds.
RENEW_S = 30.0


class Shaping:
    """mbit: what each interface may send; 0 switches shaping off. interfaces: none are those of the default routes."""

    def __init__(
        self,
        mbit: float,
        interfaces: tuple[str, ...],
        state_dir: Path,
        make: Callable[[], Shaper] = TcShaper,
    ) -> None:
        self._bits = round(mbit * 1_000_000)
        self._configured = interfaces
        self._note = state_dir / NOTE
        self._make = make
        self._shaper: Shaper | None = None
        self._next_s = float("-inf")
        self._scale = 1.0
        self.rates: dict[str, int] = {}
        self.problem = ""
        self.remedy = ""

    def begin(self) -> None:
        """As root: open the tool where it is needed, write the note, or take away what an earlier life left."""
        left = self._noted()
        if not self._bits and not left:
            return
        try:
            self._shaper = self._make()
            wanted = [] if not self._bits else list(self._configured) or self._shaper.outward()
            for name in left - set(wanted):
                self._shaper.release(name)
            if wanted:
                self._note.write_text("\n".join(wanted) + "\n")
            else:
                self._note.unlink(missing_ok=True)
        except (TegumentarError, OSError) as error:
            self._fail(error)
            return
        self.rates = dict.fromkeys(wanted, 0)

    def keep(self, scale: float, now_s: float) -> None:
        """Bring every queue to its rate; does nothing while nothing changed. About 1 ms an interface when it did."""
        if self._shaper is None or not self.rates or (scale == self._scale and now_s < self._next_s):
            return
        self._scale, self._next_s = scale, now_s + RENEW_S
        self.problem = self.remedy = ""
        for name in self.rates:
            self.rates[name] = 0
            try:
                self._shaper.shape(name, round(self._bits * scale))
                self.rates[name] = self._shaper.shaped(name)
            except TegumentarError as error:
                self._fail(error)

    def close(self) -> None:
        if self._shaper is not None:
            self._shaper.close()

    def _noted(self) -> set[str]:
        try:
            return set(self._note.read_text().split())
        except OSError:
            return set()

    def _fail(self, error: Exception) -> None:
        self.problem = f"traffic is not shaped: {error}"
        self.remedy = getattr(error, "remedy", "") or "set throttler.shape_egress_mbit = 0, or see `doctor`"
