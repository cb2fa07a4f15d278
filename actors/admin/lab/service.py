"""The real service as a process inside the node's namespace, with directories of its own.

Started as a user would start it (``python run.py``), asked through the same admin socket as the command line uses.
Nothing of the caller's own ``TEGUMENTAR_*`` environment leaks in: a lab says the same on every machine.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from actors.admin.lab.children import ROOT
from actors.admin.lab.net import Host, LabError
from actors.admin.lab.processes import await_end, tree
from actors.core.errors import ServiceNotRunning, TegumentarError, Unavailable

#: The promise is 3 s; a machine busy with other labs gets more before the lab gives up.
START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0


class Protector(Protocol):
    """What stands between the attacker and the node. The real service, or in tests of the lab itself: nobody."""

    run_dir: Path

    def start(self) -> float:
        """Start and wait until it protects. Returns the seconds it took; raises LabError with its last words."""
        ...

    def ask(self, verb: str, **args: Any) -> Any:
        """One question to the running service. Raises Unavailable or Refused."""
        ...

    def stop(self) -> None:
        """End it; what it put into the kernel stays."""
        ...

    def pid(self) -> int:
        """Of the launcher; 0 when there is none."""
        ...


class Service:
    """``python run.py`` for one node. Restartable: ``start`` after ``stop`` or after a kill finds its leftovers."""

    def __init__(self, node: Host, directory: Path, bpf_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self.node = node
        self.directory = directory
        self.run_dir = directory / "run"
        self.log = directory / "service.log"
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("TEGUMENTAR_")} | {
            "TEGUMENTAR_STATE_DIR": str(directory / "state"),
            "TEGUMENTAR_RUN_DIR": str(self.run_dir),
            "TEGUMENTAR_LOG_DIR": str(directory / "log"),
            "TEGUMENTAR_BPF_DIR": str(bpf_dir),
            "TEGUMENTAR_INTERFACES": node.interface,
            "TEGUMENTAR_FEEDS__ENABLED": "false",
            "PYTHONUNBUFFERED": "1",
            **(settings or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    def start(self) -> float:
        began = time.monotonic()
        self.launch()
        self.wait_ready(began + START_LIMIT_S)
        return time.monotonic() - began

    def launch(self) -> None:
        """Start the process and return at once."""
        with open(self.log, "ab") as sink:
            self.process = self.node.namespace.popen(
                sys.executable, str(ROOT / "run.py"), env=self.env, stdout=sink, stderr=sink, cwd=ROOT
            )

    def wait_ready(self, deadline: float) -> None:
        """Until enforcement stands (the ``ready`` of the verb ``node``)."""
        why = "it never answered"
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise LabError(f"the service ended with exit code {self.process.returncode}: {self.last_words()}")
            try:
                node = self.ask("node")
                if node["ready"] and node.get("launcher_pid", self.pid()) == self.pid():
                    return  # and it is ours that answers, not one that is still dying
                why = f"it says {node['state']}"
            except TegumentarError as error:
                why = str(error)
            time.sleep(0.02)
        raise LabError(f"the service was not ready in time ({why}): {self.last_words()}")

    def ask(self, verb: str, **args: Any) -> Any:
        """One question, over a connection that is made anew when the service behind it was replaced."""
        from actors.core.client import connect

        for attempt in (1, 2):
            try:
                if self._client is None:
                    self._client = connect(self.run_dir)
                return self._client.ask(verb, args, by="lab")
            except Unavailable as error:
                self.forget()  # a service that was started anew does not know our end of the old connection
                if attempt == 2 or not isinstance(error, ServiceNotRunning):
                    raise
        raise AssertionError("unreachable")

    def forget(self) -> None:
        """Drop the connection: the other end is gone or about to go."""
        if self._client is not None:
            with contextlib.suppress(OSError, TegumentarError):
                self._client.close()
            self._client = None

    def command(self, *argv: str, timeout_s: float = 15.0) -> subprocess.CompletedProcess[str]:
        """``python run.py ARGV`` in another shell of the same node, to its end."""
        return self.node.namespace.run(
            sys.executable, str(ROOT / "run.py"), *argv, check=False, timeout_s=timeout_s, env=self.env
        )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL. The kernel keeps what protects."""
        self.forget()
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL to the launcher; returns when its whole family has died with it, as it must."""
        self.forget()
        if self.process is None:
            return
        family = tree(self.process.pid)
        self.process.kill()
        self.process.wait()
        self.process = None
        survivors = await_end(family)
        if survivors:
            raise LabError(f"{', '.join(one.title for one in survivors)} survived the death of the launcher")

    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-1500:].strip() or "it said nothing"
        return "it said nothing"
