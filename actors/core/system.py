"""The actor system: Thespian's admin and managers with the corrections that supervision needs.

Launcher → admin → supervisor → cells. All forked, all single-threaded at that moment, all dying with their parent.
There is no logger process: cells write their own lines, and one that sat idle for the rest would cost 5 MB.
"""

import logging
import os
import signal
from types import SimpleNamespace
from typing import Any

import thespian.system.logdirector as logdirector
import thespian.system.multiprocCommon as common  # noqa: N813
from setproctitle import setproctitle
from thespian.actors import ActorSystem, ActorSystemFailure, DeadEnvelope, InvalidActorAddress
from thespian.system.messages.multiproc import EndpointConnected
from thespian.system.systemCommon import actorStartupFailed
from thespian.system.transport import ReceiveEnvelope, TransmitIntent

from actors.core import frames
from actors.core.errors import Unavailable
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
        """The original does this when its logger has reported. A child must be told of some logger: that is us."""
        self.addrOfStarter = starter
        self.asLogger = self.transport.myAddress
        ready = TransmitIntent(starter, EndpointConnected(0)).addCallback(onFailure=actorStartupFailed)
        self.transport.scheduleTransmit(None, ready)
        self._activate()

    def h_LogRecord(self, envelope: Any) -> bool:  # noqa: N802
        """A line from a newborn that does not write its own yet. The original passes it on to the logger."""
        logger = logging.getLogger(envelope.message.name)
        if logger.isEnabledFor(envelope.message.levelno):
            logger.handle(envelope.message)
        return True

    def _cleanupAdmin(self, finish_cleanup: Any) -> None:  # noqa: N802
        """The original first waits for its logger to end."""
        finish_cleanup()


common.MultiProcManager = _Manager
common.setProcName = logdirector.setProcName = lambda name, _address: setproctitle(f"tegumentar: {name}")


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
    common.setProcName("admin", "")
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
        common.detach_child(self.admin_process)
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
