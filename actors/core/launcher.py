"""Launcher: the process that ``python run.py`` is. It starts the actor system, watches it, and starts it again.

One thread, one poll: the admin's and the supervisor's pidfds, signals, and a question to the supervisor every two
seconds. Everything it started dies with it (PDEATHSIG down the tree), and as the subreaper it collects whatever loses
its parent, so that nothing is left after any kill and the next start works at once.
"""

import fcntl
import gc
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from actors.core import log, reach, thrift
from actors.core.anatomy import Anatomy, CellSpec, Privileges, SettingsLike
from actors.core.capability import Identity, service_identity
from actors.core.client import SOCKETS, Client, deliver
from actors.core.codec import encode
from actors.core.errors import TegumentarError
from actors.core.frames import family
from actors.core.host import Nursery, Seed
from actors.core.lifecycle import Birth, StopNode
from actors.core.membrane import Self
from actors.core.notify import Notifier
from actors.core.nurse import SupervisorActor
from actors.core.pulse import Pulse
from actors.core.reception import SUPERVISOR
from actors.core.sockets import use_directory
from actors.core.supervisor import BasalLayer
from actors.core.system import RunningSystem, single_threaded
from actors.core.transport import Access, become_subreaper
from actors.core.wiring import receptors

EXIT_OK, EXIT_ALREADY_RUNS, EXIT_GAVE_UP, EXIT_SETTINGS = 0, 1, 70, 78
ASK_EVERY_S, ASK_LIMIT_S, MISSES_MAX = 2.0, 0.5, 3
_UNREADY_EVERY_S = 0.1
STOP_LIMIT_S = 8.0
#: Failures before the system was ready once, one after another; and of any kind within the window.
_UNREADY_MAX, _FAILURES_MAX, _FAILURES_WINDOW_S = 5, 20, 300.0
_LOCK_PATIENCE_S = 3.0

OnEvent = Callable[[str, dict[str, Any]], None]


class StartRefused(TegumentarError):  # noqa: N818
    """The service cannot start here; ``exit_code`` says to the service manager whether to try again."""

    def __init__(self, message: str, *, remedy: str, exit_code: int) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = exit_code


def serve(settings: SettingsLike, anatomy: Anatomy, on_event: OnEvent | None = None) -> int:
    """Run the node until SIGTERM or SIGINT.

    Returns the exit code: 0 after a stop, 1 when it runs already, 70 when it does not stay alive, 78 when the settings
    cannot work.

    on_event(kind, detail), for the terminal: ``started``, ``ready``, ``failed``, ``gave_up``, ``stopping``,
    ``stopped``, ``refused`` (with ``problem`` and ``remedy``)."""
    log.configure(getattr(settings, "log_level", "info"))
    launcher = Launcher(settings, anatomy, on_event or (lambda kind, detail: None))
    try:
        launcher.prepare()
    except StartRefused as refused:
        launcher.tell("refused", problem=str(refused), remedy=refused.remedy)
        return refused.exit_code
    try:
        return launcher.run()
    finally:
        launcher.clean()


class Launcher:
    """The state of one service process."""

    def __init__(self, settings: SettingsLike, anatomy: Anatomy, on_event: OnEvent) -> None:
        self._settings, self._anatomy, self._on_event = settings, anatomy, on_event
        self._run_dir = Path(settings.run_dir)
        self._sockets = self._run_dir / SOCKETS
        self._log = log.logger(cell="launcher")
        self._notify = Notifier()
        self._lock: Any = None
        self._signals: set[int] = set()
        self._wake_read, self._wake_write = socket.socketpair()
        self._failures: list[float] = []
        self._unready_failures = 0
        self._was_ready = False

    def tell(self, kind: str, **detail: Any) -> None:
        """An event, for the log and for whoever called ``serve``."""
        (self._log.warning if kind in ("failed", "refused") else self._log.info)(kind, **detail)
        self._on_event(kind, detail)

    # --- before and after ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Lock, directories, signals. Raises StartRefused, with nothing changed that would stand in another's way."""
        identity = service_identity(self._settings.user)
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._take_lock()
            self._sockets.mkdir(exist_ok=True)
            self._sockets.chmod(0o750)
            if os.geteuid() == 0:
                os.chown(self._sockets, 0, identity.gid)
            use_directory(self._sockets)
            self._empty_sockets()
            for kind in ("run_dir", "state_dir", "log_dir"):
                self._open_the_way(kind, identity)
        except OSError as exc:
            raise StartRefused(
                f"cannot use the run directory {self._run_dir}: {exc.strerror}",
                remedy="name one that this user can write to (TEGUMENTAR_RUN_DIR)",
                exit_code=EXIT_SETTINGS,
            ) from exc
        self._import_cells()
        if not single_threaded():
            raise StartRefused(
                "something started a thread before the service could fork its cells",
                remedy="start no thread before serve(); numpy needs OPENBLAS_NUM_THREADS=1 in the environment",
                exit_code=EXIT_GAVE_UP,
            )
        Access.uids = frozenset({0, os.geteuid(), identity.uid})
        Access.gid = identity.gid
        family.found_here()
        become_subreaper()
        setproctitle("tegumentar: launcher")
        with suppress(OSError):  # only root may ask to be spared
            Path("/proc/self/oom_score_adj").write_text("-500")
        self._catch_signals()

    def clean(self) -> None:
        """Leave no socket and no lock behind."""
        self._empty_sockets()
        signal.set_wakeup_fd(-1)
        self._lock.close()

    def _take_lock(self) -> None:
        """One service per run directory. The lock is inherited: it is free when the last of an old one has gone."""
        self._lock = open(self._run_dir / "lock", "a+", opener=_private)  # noqa: SIM115 — held for life
        os.fchmod(self._lock.fileno(), 0o600)  # whoever may read the file may lock it, and so forbid the next start
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._lock.seek(0)
                owner = self._lock.read(20).strip()
                if time.monotonic() > deadline or (owner.isdigit() and _is_alive(int(owner))):
                    raise StartRefused(
                        f"a service already runs in {self._run_dir} (process {owner or 'unknown'})",
                        remedy="stop it first, or give this one a run directory of its own (TEGUMENTAR_RUN_DIR)",
                        exit_code=EXIT_ALREADY_RUNS,
                    ) from None
                time.sleep(0.02)
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _open_the_way(self, kind: str, identity: Identity) -> None:
        """Cells that gave up root must be able to walk to the directories of the node."""
        directory = getattr(self._settings, kind, None)
        if directory is None:
            return
        opened = reach.open_the_way(Path(directory), identity)
        if opened:
            self._log.info(
                "way_opened", directory=str(directory), through=[str(each) for each in opened], uid=identity.uid
            )

    def _import_cells(self) -> None:
        """Once here instead of in every cell and at every restart. What cannot be imported fails in its own cell."""
        for spec in self._anatomy.cells:
            if not spec.late_import and spec.name not in self._settings.supervisor.off:
                try:
                    receptors(spec.cell_class())
                except Exception as exc:
                    self._log.warning("not_imported", name=spec.name, problem=f"{type(exc).__name__}: {exc}"[:500])

    def _empty_sockets(self) -> None:
        for entry in self._sockets.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def _catch_signals(self) -> None:
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda got, _frame: self._signals.add(got))
        signal.signal(signal.SIGCHLD, lambda _got, _frame: None)

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start, watch, start again; returns the exit code."""
        gc.collect()
        gc.freeze()  # what is in memory now is shared with every cell as long as nobody writes to it
        while not self._asked_to_stop():
            began = time.monotonic()
            try:
                cause = self._one_life()
            except (TegumentarError, OSError) as exc:
                cause = str(exc)
            self._kill_tree()
            if self._asked_to_stop():
                break
            self.tell("failed", cause=cause, lived_s=round(time.monotonic() - began, 3))
            pause_s = self._count_failure()
            if pause_s is None:
                self.tell("gave_up", cause=cause)
                return EXIT_GAVE_UP
            self._pause(pause_s)
        self.tell("stopped")
        return EXIT_OK

    def _one_life(self) -> str:
        """From the start of the actor system to its end; returns why it ended."""
        self._empty_sockets()
        self._was_ready = False
        self._plant()
        system = RunningSystem()
        self._admin = system.admin_pid
        supervisor = self._start_supervisor(system)
        admin_fd = os.pidfd_open(self._admin)
        supervisor_fd = os.pidfd_open(supervisor)
        try:
            self.tell("started", supervisor=supervisor, admin=self._admin)
            with self._join([admin_fd, supervisor_fd]) as client:
                return self._watch(client, admin_fd, supervisor_fd)
        finally:
            os.close(admin_fd)
            os.close(supervisor_fd)

    @staticmethod
    def _start_supervisor(system: RunningSystem) -> int:
        """Have the admin fork it from what ``_plant`` left in memory, and call it into life. Returns its process id."""
        address = system.create(SupervisorActor, SUPERVISOR)
        system.leave()
        birth = encode(Birth(incarnation=1), "launcher", 0)
        return deliver(address.addressDetails.name, "launcher", birth, 5.0).pid

    def _join(self, watched: list[int]) -> Client:
        """A client, as soon as the supervisor has hung out its sign. Raises TegumentarError when it never does."""
        deadline = time.monotonic() + 10.0
        while True:
            try:
                return Client(self._run_dir)
            except TegumentarError:
                if time.monotonic() > deadline or self._wait(watched, 0.005):
                    raise

    def _watch(self, client: Client, admin_fd: int, supervisor_fd: int) -> str:
        """Until the supervisor or the admin ends, does not answer, or we are asked to stop."""
        misses, sweeps, next_ask = 0, -1, 0.0
        while True:
            if self._asked_to_stop():
                self._stop(client, supervisor_fd)
                return "asked to stop"
            if signal.SIGHUP in self._signals:
                self._signals.discard(signal.SIGHUP)
                self._reload(client)
            if time.monotonic() >= next_ask:
                node = self._ask_node(client)
                if node is None or node["sweeps"] == sweeps:
                    misses += 1
                    next_ask = time.monotonic() + ASK_LIMIT_S
                else:
                    misses, sweeps = 0, int(node["sweeps"])
                    self._notify.alive()
                    self._note_readiness(node)
                    next_ask = time.monotonic() + (ASK_EVERY_S if self._was_ready else _UNREADY_EVERY_S)
                    if not self._was_ready:
                        sweeps = -1
                if misses >= MISSES_MAX:
                    return "the supervisor does not answer"
            ended = self._wait([admin_fd, supervisor_fd], max(0.0, next_ask - time.monotonic()))
            if ended:
                return "the supervisor ended" if supervisor_fd in ended else "the admin ended"

    @staticmethod
    def _ask_node(client: Client) -> dict[str, Any] | None:
        try:
            node: dict[str, Any] = client.ask("node", by="launcher", timeout_s=ASK_LIMIT_S)
            return node
        except TegumentarError:
            return None

    def _note_readiness(self, node: dict[str, Any]) -> None:
        cells = node["cells"]
        status = f"{node['state']}, {cells['healthy']} of {cells['all']} cells healthy"
        if node["ready"] and not self._was_ready:
            self._was_ready = True
            self._unready_failures = 0
            self._notify.ready(status)
            self.tell("ready", state=node["state"], cells=cells)
            thrift.settle()
        else:
            self._notify.status(status)

    def _reload(self, client: Client) -> None:
        self._notify.reloading()
        try:
            client.ask("reload", by="SIGHUP", timeout_s=5.0)
        except TegumentarError as error:
            self.tell("failed", cause=f"reload: {error}")
        self._notify.ready("reloaded")

    def _stop(self, client: Client, supervisor_fd: int) -> None:
        self._notify.stopping()
        self.tell("stopping")
        self._signals.clear()
        try:
            client.send(StopNode())
        except TegumentarError:
            return
        deadline = time.monotonic() + STOP_LIMIT_S
        while time.monotonic() < deadline and not self._wait([supervisor_fd], deadline - time.monotonic()):
            if self._asked_to_stop():  # asked twice: no more patience
                break
        self._signals.add(signal.SIGTERM)

    # --- small parts ---------------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> bool:
        return signal.SIGTERM in self._signals or signal.SIGINT in self._signals

    def _wait(self, fds: list[int], seconds: float) -> list[int]:
        """Sleep until one of ``fds`` is readable, a signal comes, or the time is over; returns the readable ones."""
        poll = select.poll()
        for fd in (*fds, self._wake_read.fileno()):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(seconds * 1000)]
        with suppress(BlockingIOError):
            self._wake_read.recv(256)
        return [fd for fd in ready if fd in fds]

    def _pause(self, seconds: float) -> None:
        """Sleep that only a wish to stop cuts short."""
        until = time.monotonic() + seconds
        while not self._asked_to_stop() and (left := until - time.monotonic()) > 0:
            self._wait([], left)

    def _plant(self) -> None:
        """Leave in memory what the supervisor will be made of; the admin inherits it and hands it on."""
        spec = CellSpec(SUPERVISOR, BasalLayer, "root", Privileges.root(), oom_score_adj=-500)
        rules = self._settings.supervisor
        Nursery.seed = Seed(
            spec=spec,
            me=Self(
                name=SUPERVISOR, layer="root", settings=self._settings, incarnation=1, heartbeat_s=rules.heartbeat_s
            ),
            pulse=Pulse(),
            identity=None,
            read_settings=self._anatomy.read_settings,
            anatomy=self._anatomy,
        )

    def _count_failure(self) -> float | None:
        """How long to pause before the next start; None to give up."""
        now = time.monotonic()
        self._failures = [*(at for at in self._failures if now - at < _FAILURES_WINDOW_S), now]
        if not self._was_ready:
            self._unready_failures += 1
        if self._unready_failures > _UNREADY_MAX or len(self._failures) > _FAILURES_MAX:
            return None
        return 0.0 if self._was_ready else min(5.0, 0.1 * 2.0**self._unready_failures)

    def _kill_tree(self) -> None:
        """SIGKILL to everything that was started, and wait until it is gone."""
        if self._admin:
            for kill in (os.killpg, os.kill):
                with suppress(ProcessLookupError):
                    kill(self._admin, signal.SIGKILL)
            self._admin = 0
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(0.005)

    _admin = 0


def _private(path: str, flags: int) -> int:
    """Open for root alone."""
    return os.open(path, flags, 0o600)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"
