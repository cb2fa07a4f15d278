"""A PostgreSQL of our own for tests: made and started as an unprivileged user, on a free port, gone afterwards.

with a_postgres() as server:
    server.target()          # config.dsn.Target for our clients
    server.sql("SELECT 1")   # rows as text, through psql
    server.kill(); server.start()
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from config.dsn import Target, parse_postgres
from tests.support.service import NOBODY, as_user

#: A password that every second URL parser stumbles over.
PASSWORD = "p/ss=w+rd@home:7"
START_LIMIT_S = 20.0


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else name


class Postgres:
    """One server; it may be killed and started again over the same data."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "data"
        self._socket = directory
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = probe.getsockname()[1]
        secret = directory / "secret"
        secret.write_text(PASSWORD)
        self._own(directory, secret)
        self._run("initdb", "-D", str(self._data), "-N", "-U", "skin", "-A", "scram-sha-256", "--pwfile", str(secret),
                  "-E", "UTF8", "--locale", "C")  # fmt: skip

    def start(self) -> None:
        """Start and wait until it answers; a killed one may need a moment for its children to go."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with open(self._log, "ab") as log:
                self._process = subprocess.Popen(
                    [*self._as(), _program("postgres"), "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1",
                     "-k", str(self._socket), "-c", "fsync=off", "-c", "shared_buffers=8MB"],
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                )  # fmt: skip
            while self._process.poll() is None:
                with contextlib.suppress(AssertionError):
                    self.sql("SELECT 1")
                    return
                time.sleep(0.05)
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGQUIT)

    def target(self) -> Target:
        return Target(
            scheme="postgresql", host="127.0.0.1", port=self.port, user="skin", password=PASSWORD, name="postgres"
        )

    def raw_dsn(self, scheme: str = "postgresql+asyncpg") -> str:
        """An address as people paste it: another scheme, the password as it is."""
        text = f"{scheme}://skin:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        assert parse_postgres(text).password == PASSWORD
        return text

    def sql(self, query: str) -> list[str]:
        """The rows of an answer, one line each."""
        done = subprocess.run(
            ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
             "-U", "skin", "-d", "postgres", "-c", query],
            env=os.environ | {"PGPASSWORD": PASSWORD}, capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def _run(self, program: str, *argv: str) -> None:
        done = subprocess.run([*self._as(), _program(program), *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _as(self) -> list[str]:
        return as_user(NOBODY) if os.geteuid() == 0 else []

    def _own(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                os.chown(path, NOBODY, NOBODY)


@contextlib.contextmanager
def a_postgres() -> Iterator[Postgres]:
    """A running server."""
    directory = Path(tempfile.mkdtemp(prefix="tgpg"))
    directory.chmod(0o755)
    server = None
    try:
        server = Postgres(directory)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)
