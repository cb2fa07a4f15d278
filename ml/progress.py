"""Says how a command is getting on, on stderr, once a second and only if it lasts longer than two."""

import sys
import time


class Progress:
    """``show`` as often as you like; ``done`` once, with what came out."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = time.monotonic()
        self._last = self._start + 1.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= 1.0:
            self._last = now
            print(f"{self._label}: {text} ({now - self._start:.0f} s)", file=sys.stderr, flush=True)

    def done(self, text: str) -> None:
        spent = time.monotonic() - self._start
        if spent > 2.0:
            print(f"{self._label}: {text}, done in {spent:.1f} s", file=sys.stderr, flush=True)
