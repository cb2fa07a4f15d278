"""A Redis server of the test's own, on a Unix socket; and shared buckets without one, which keep the same promises."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from actors.hypodermis import token_bucket
from actors.hypodermis.redis_bucket import Ask, Grant, RedisAway
from actors.hypodermis.token_bucket import Bucket, Limit


class RedisServer:
    """Keeps nothing on disk. ``kill`` is SIGKILL; ``start`` brings it back, empty."""

    def __init__(self, directory: Path, password: str = "") -> None:
        self.path = directory / "redis.sock"
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{f':{self._password}@' if self._password else ''}{self.path}"

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed: deploy/packages.sh test"
        options = ["--port", "0", "--unixsocket", str(self.path), "--unixsocketperm", "777"]
        options += ["--save", "", "--appendonly", "no", "--dir", str(self.path.parent)]
        options += ["--requirepass", self._password] if self._password else []
        self._process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server did not start within 10 s"
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.path))
            except OSError:
                return False
            probe.send(b"PING\r\n")
            return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))


@contextmanager
def redis_server(password: str = "") -> Iterator[RedisServer]:
    directory = Path(tempfile.mkdtemp(prefix="redis-"))
    directory.chmod(0o755)
    server = RedisServer(directory, password)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


class FakeBuckets:
    """``Buckets`` in this process; ``away`` makes it refuse as a dead server does."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, members: int = 1) -> None:
        self.away = False
        self.members = members
        self.asked: list[Ask] = []
        self._clock = clock
        self._buckets: dict[tuple[str, Limit], Bucket] = {}
        self._totals: dict[str, int] = {}

    def lease(self, ask: Ask) -> Grant:
        self._check()
        self.asked.append(ask)
        limit, now_ns = ask.limit, self._clock()
        bucket = self._buckets.get((ask.key, limit)) or token_bucket.full(limit, now_ns)
        bucket = token_bucket.refill(bucket, limit, now_ns)
        whole = limit.burst * limit.period_ns
        bucket = Bucket(min(bucket.level + ask.unused * limit.period_ns, whole), now_ns)
        have, granted = token_bucket.left(bucket, limit), 0
        if have >= ask.cost:
            granted = max(ask.cost, min(ask.want, have // (2 * self.members)))
            bucket, _ = token_bucket.take(bucket, limit, now_ns, granted)
        self._buckets[ask.key, limit] = bucket
        wait_ns = 0 if granted else token_bucket.wait_ns(bucket, limit, ask.cost)
        return Grant(granted, token_bucket.left(bucket, limit), wait_ns, self.members)

    def spend(self, packets: Mapping[str, int]) -> dict[str, int]:
        self._check()
        for name, count in packets.items():
            self._totals[name] = self._totals.get(name, 0) + count
        return {name: self._totals[name] for name in packets}

    def close(self) -> None:
        """Nothing is open."""

    def _check(self) -> None:
        if self.away:
            raise RedisAway("Redis does not answer: it was told not to", 0.5)
