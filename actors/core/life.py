"""Life: what the supervisor knows about one cell, through all its incarnations."""

import os
import signal
import time
from contextlib import suppress
from typing import Any

from actors.core.anatomy import CellSpec
from actors.core.lifecycle import Hello, Introduction
from actors.core.messages import CellReport, CellState
from actors.core.pulse import Pulse
from actors.core.restart import History


class Life:
    """One cell's process, its past, and the state that is shown of it."""

    def __init__(self, spec: CellSpec) -> None:
        self.spec, self.name = spec, spec.name
        self.incarnation = 0
        self.state, self.reason, self.remedy = CellState.STARTING, "", ""
        self.up = False  #: said hello, and has not ended
        self.pid, self.socket = 0, ""
        self.started_at = self.up_at = 0.0
        self.history = History()
        self.condemned = ""  #: why we have sent SIGKILL
        self.planned = False  #: its end was wanted
        self.off_next = False  #: after its end it stays off
        self.retry_timer = 0
        self.last_cause, self.exit_code = "", None  # type: str, int | None
        self.receives: list[str] = []
        self.answers: list[str] = []
        self.last_report: CellReport | None = None
        self._process: Any = None
        self._pulse: Pulse | None = None

    @property
    def alive(self) -> bool:
        """A process exists that has not been collected."""
        return self._process is not None

    def begin(self, process: Any, pulse: Pulse) -> None:
        """A process was forked."""
        self._process, self._pulse, self.pid = process, pulse, process.pid
        self.started_at = time.monotonic()
        self.up, self.condemned, self.planned, self.off_next, self.socket = False, "", False, False, ""
        self.retry_timer = 0
        self.state, self.reason, self.remedy = CellState.STARTING, "", ""

    def greeted(self, hello: Hello) -> None:
        """It said hello."""
        self.socket, self.receives, self.answers = hello.socket, hello.receives, hello.answers
        self.up, self.up_at = True, time.monotonic()
        self.reported(hello.report)

    def reported(self, report: CellReport) -> None:
        """It said how it is."""
        self.last_report = report
        self.state, self.reason, self.remedy = report.state, report.reason, report.remedy

    def become(self, state: CellState, reason: str, remedy: str) -> None:
        """The supervisor's own word on a cell that is not up."""
        self.state, self.reason, self.remedy = state, reason[:2000], remedy[:2000]

    def silence(self, limit_s: float) -> str:
        """Why it counts as hung, or nothing."""
        if self._pulse is None:
            return ""
        actor_s, loop_s = self._pulse.silent_for()
        if actor_s > limit_s:
            return f"its actor thread showed no life for {min(actor_s, 9999):.1f} s"
        if loop_s > limit_s:
            return f"its asyncio loop showed no life for {min(loop_s, 9999):.1f} s"
        return ""

    def exit_code_now(self) -> int | None:
        """The exit code when the process has ended and was not collected yet; negative for a signal."""
        code: int | None = self._process.exitcode if self._process is not None else None
        return code

    def ended(self, exit_code: int) -> float:
        """Collect the end of a process. Returns how long it was up, in seconds; 0 when it never was."""
        cause = self._pulse.cause() if self._pulse is not None else ""
        self.last_cause = self.condemned or cause or describe_exit(exit_code)
        self.exit_code = exit_code
        lived_s = time.monotonic() - self.up_at if self.up else 0.0
        if self._pulse is not None:
            self._pulse.close()
        self._process, self._pulse, self.up, self.socket = None, None, False, ""
        self.state = CellState.DOWN
        return lived_s

    def signal(self, number: int) -> None:
        """Send a signal to its process; one that has just gone is no error."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def introduction(self) -> Introduction:
        """Its row in the registry."""
        return Introduction(
            cell=self.name,
            state=self.state,
            incarnation=self.incarnation,
            up=self.up,
            socket=self.socket,
            pid=self.pid,
            receives=self.receives,
            answers=self.answers,
        )

    def report(self) -> CellReport:
        """What the supervisor says of it while it cannot speak for itself."""
        return CellReport(cell=self.name, state=self.state, reason=self.reason, remedy=self.remedy)

    def row(self) -> dict[str, Any]:
        """For ``cells``: plain values."""
        return {
            "name": self.name,
            "layer": self.spec.layer,
            "state": self.state.value,
            "reason": self.reason,
            "remedy": self.remedy,
            "pid": self.pid if self.alive else 0,
            "incarnation": self.incarnation,
            "restarts": max(0, self.incarnation - 1),
            "last_cause": self.last_cause,
            "exit_code": self.exit_code,
            "uptime_s": round(time.monotonic() - self.up_at, 3) if self.up else 0.0,
        }


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
