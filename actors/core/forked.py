"""Forked: a child process as Thespian and the supervisor use one, in place of ``multiprocessing.Process``.

What a child does before it runs its function makes pages of its own of memory that it shares with its parent. The
ceremonies of ``multiprocessing`` (a new standard input, finalizers, resource trackers) cost half a megabyte in each of
a dozen processes, and nothing here has use for them.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any


class Forked:
    """One child process. ``start`` forks; ``exitcode`` collects it when it has ended."""

    def __init__(self, *, target: Callable[..., Any], args: tuple[Any, ...] = (), name: str = "") -> None:
        self._target, self._args, self.name = target, args, name
        self.pid = 0
        self._exitcode: int | None = None

    def start(self) -> None:
        """Fork. The child runs the target and ends with 0, with 1 after an exception, or as ``sys.exit`` says."""
        sys.stdout.flush()
        sys.stderr.flush()  # what is buffered would be written twice
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._run())

    def _run(self) -> int:
        try:
            self._target(*self._args)
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            threading._shutdown()  # type: ignore[attr-defined] # as at any end of Python: worker threads finish
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative for the signal that ended it. Stays None when somebody else collected it."""
        if self._exitcode is None and self.pid:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid:
                self._exitcode = os.waitstatus_to_exitcode(status)
        return self._exitcode

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, _timeout: float | None = None) -> None:
        """Nothing to wait for: Thespian joins what it knows to have ended."""


class Context:
    """What stands in for a context of ``multiprocessing``."""

    Process = Forked
