"""The actor system: Thespian's admin and managers with the corrections that supervision needs.

Launcher → admin → supervisor → cells. All forked, all single-threaded at that moment, all dying with their parent.
There is no logger process: cells write their own lines, and one that sat idle for the rest would cost 5 MB.
"""

import os
import signal
from types import SimpleNamespace
from typing import Any

import thespian.system.multiprocCommon as common  # noqa: N813
from setproctitle import setproctitle
from thespian.actors import ActorSystem, ActorSystemFailure, DeadEnvelope, InvalidActorAddress
from thespian.system.messages.multiproc import EndpointConnected
from thespian.system.systemCommon import actorStartupFailed
from thespian.system.transport import ReceiveEnvelope, TransmitIntent

from actors.core import frames
from actors.core.errors import Unavailable
from actors.core.forked import Context
from actors.core.transport import UnixTransport


class _Manager(common.MultiProcManager):  # type: ignore[misc]
    """The Thespian side of one actor process."""

    def _childExited(self, _address: Any) -> None:  # noqa: N802
        """The original reaps other dead children too and forgets to report them. SIGCHLD covers this one as well."""

    def _send_intent(self, intent: Any) -> None:
        """Dead letters go nowhere: the registry says who is down, and the admin would have to trust the sender."""
        if not isinstance(intent.message, DeadEnvelope):
            super()._send_intent(intent)


class _Admin(common.MultiProcAdmin):  # type: ignore[misc]
    """Thespian's root process."""

    def _childExited(self, _address: Any) -> None:  # noqa: N802
        """As above."""

    def open_for_work(self, starter: Any) -> None:
        """The original does this when its logger has reported; it makes no child without the address of one."""
        self.asLogger = self.transport.myAddress
        _say_connected(self.transport, starter, 0)
        self._activate()

    def _cleanupAdmin(self, finish_cleanup: Any) -> None:  # noqa: N802
        """The original first waits for its logger to end."""
        finish_cleanup()


def _say_connected(transport: UnixTransport, to: Any, number: int) -> None:
    ready = TransmitIntent(to, EndpointConnected(number)).addCallback(onFailure=actorStartupFailed)
    transport.scheduleTransmit(None, ready)


def _start_child(
    actor_class: Any,
    global_name: Any,
    endpoint: Any,
    transport_class: Any,
    source_hash: Any,
    source: Any,
    parent: Any,
    admin: Any,
    notify: Any,
    logger: Any,
    requirements: Any,
    capabilities: Any,
    _files_to_close: Any,
    context: Any,
    log_defs: Any,
) -> None:
    """In the process of a new actor. The original also has every line of the log travel to a logger."""
    transport = transport_class(endpoint)
    manager = _Manager(
        actor_class, global_name, transport, source_hash, source, parent, admin, requirements, capabilities, context,
        log_defs,
    )  # fmt: skip
    manager.asLogger = logger
    _say_connected(transport, notify, endpoint.addrInst)
    ended = common.shutdown_signal_detector("actor", transport.myAddress, manager)
    other = common.signal_detector("actor", transport.myAddress, manager)
    for number in signal.valid_signals() - _LEFT_ALONE:
        signal.signal(number, ended if number in _ENDING else other)
    signal.signal(signal.SIGCHLD, manager.signalChildDied)
    manager.run()


_LEFT_ALONE = {signal.SIGCONT, signal.SIGPIPE, signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
_ENDING = {signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT}
common.MultiProcManager, common.startChild = _Manager, _start_child
common.get_multiproc_context = lambda _capabilities: Context()
common.detach_child = lambda _child: None  # ours are known to nobody who would end them


def single_threaded() -> bool:
    """Whether a fork is safe now."""
    return len(os.listdir("/proc/self/task")) == 1


def _run_admin(
    admin_class: Any,
    starter: Any,
    endpoint: Any,
    transport_class: Any,
    address: Any,
    capabilities: Any,
    log_defs: Any,
    context: Any,
) -> None:
    """In the admin's process. Not daemonised as the original is: it stays the launcher's child and dies with it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    transport = transport_class(endpoint)
    frames.REFUSED = frames.OF_ADMIN
    admin = admin_class(transport, address, capabilities, log_defs, context)
    setproctitle("tegumentar: admin")
    signal.signal(signal.SIGCHLD, admin.signalChildDied)
    admin.open_for_work(starter)
    transport.enableRXPauseFlowControl(False)
    admin.run()


class _Base(common.multiprocessCommon):  # type: ignore[misc]
    """The base that ``ActorSystem`` is built on, instead of one that it finds by name."""

    transportType = UnixTransport  # noqa: N815
    admin_process: Any = None

    def __init__(self, system: Any) -> None:
        system.capabilities.update(
            {
                "Thespian ActorSystem Name": "tegumentar",
                "Thespian ActorSystem Version": 1,
                "Thespian Watch Supported": True,
                "Process Startup Method": "fork",
            }
        )
        super().__init__(system, {"version": 1})

    def _startAdmin(self, address: Any, starter: Any, capabilities: Any, log_defs: Any) -> None:  # noqa: N802
        if not single_threaded():
            raise ActorSystemFailure("the actor system must be started before any thread")
        endpoint = self.transport.prepEndpoint(address, capabilities)
        arguments = (_Admin, starter, endpoint, type(self.transport), address, capabilities, log_defs, self.mpcontext)
        self.admin_process = self.mpcontext.Process(target=_run_admin, args=arguments)
        self.admin_process.start()
        answer = self.transport.run(None, common.MAX_ADMIN_STARTUP_DELAY)
        if not isinstance(answer, ReceiveEnvelope) or not isinstance(answer.message, EndpointConnected):
            raise InvalidActorAddress(address, "the admin did not start")


class RunningSystem:
    """An actor system started by this process: its admin's process, and the way to make its first actor."""

    def __init__(self) -> None:
        holder = SimpleNamespace(capabilities={})
        self._base = _Base(holder)
        try:
            self._system = ActorSystem(self._base, capabilities=holder.capabilities, transientUnique=True)
        except ActorSystemFailure as exc:
            raise Unavailable(f"the actor system did not start: {exc}") from exc

    @property
    def admin_pid(self) -> int:
        return int(self._base.admin_process.pid)

    def create(self, actor: type, name: str) -> Any:
        """Make the one actor that the admin itself is parent of. Returns its address."""
        return self._system.createActor(actor, globalName=name)

    def leave(self) -> None:
        """Close our own end: the launcher talks to the supervisor as any client does."""
        self._base.transport.close()
