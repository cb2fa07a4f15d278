"""The account of a start for the person at the terminal: which cells came up, in which layer and state, and why not."""

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from actors.admin import render, render_state, session
from actors.core.client import connect
from actors.core.errors import TegumentarError
from config.settings import Settings


class Account:
    """Called by the launcher with each of its events; draws on stderr."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._console = Console(file=sys.stderr, highlight=False, emoji=False)

    def __call__(self, kind: str, detail: dict[str, Any]) -> None:
        if kind == "ready":
            self._console.print(self._came_up(str(detail.get("state", ""))))
        elif kind == "failed":
            self._console.print(render.problem(f"started again: {detail.get('cause', 'unknown cause')}"))
        elif kind == "refused":
            self._console.print(render.problem(str(detail.get("problem")), str(detail.get("remedy", ""))))
        elif kind in {"stopping", "stopped"}:
            kept = "; what the kernel holds goes on protecting" if kind == "stopped" else ""
            self._console.print(render.quiet(f"{kind}{kept}"))

    def _came_up(self, state: str) -> Any:
        interfaces = ", ".join(self._settings.interfaces) or "the interfaces of the default routes"
        head = Text("Tegumentar  ", style="bold").append_text(render.state(state))
        head.append_text(render.quiet(f"  {interfaces}"))
        hint = render.quiet("python run.py status · cells · blocks · why ADDR · posture NAME     Ctrl-C stops")
        return Group(Text(), head, Text(), self._cells(), Text(), hint, Text())

    def _cells(self) -> Any:
        """Asked of the service just started, again for a second while some of them are starting still."""
        deadline = time.monotonic() + 1.0
        try:
            with connect(self._settings.run_dir) as client:
                while True:
                    cells = client.ask("cells", by=session.BY)
                    if time.monotonic() > deadline or all(cell["state"] != "starting" for cell in cells):
                        return render_state.cells({"cells": cells})
                    time.sleep(0.05)
        except TegumentarError as error:
            return render.problem(str(error), error.remedy)
