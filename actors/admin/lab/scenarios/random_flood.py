"""A SYN flood from random sources: nobody is over a budget of his own, and a ban would hit whoever was forged.

The kernel's SYN cookies keep the listener open. What the node is held to: the innocent client connects throughout, in
both families; the program sees that the *destination* gets more SYNs than it should and says so; and not one of the
forged addresses is banned, because the next one might be the innocent's. Each SYN comes from another address; the
answers go to nobody.
"""

from actors.admin.lab.report import Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.stage import AFTER_S, BEFORE_S, SETTLE_S, Stage

#: Forged sources: as many as the lab's network holds, so that each speaks about once.
SOURCES = 60_000
#: So many of them, per family, are looked for among the bans.
ASKED = 20
#: Per family. Far over what one port may get by default (2,000 a second), and what the lab's witness can still write
#: down, because these packets pass.
RATE_LIMIT = 8_000
#: Longer than the listener's queue of 4,096 lasts at that rate.
SECONDS_MIN = 2.0


def play(stage: Stage, report: Report) -> None:
    """Before, during, after; then what the client lost, and what the node says."""
    options = stage.options
    rate, seconds = min(options.rate, RATE_LIMIT), max(options.seconds, SECONDS_MIN)
    senders = [stage.stream(family, "syn", rate=rate, seconds=seconds, sources=SOURCES) for family in options.families]
    over_before, cookies_before = _syn_over(stage), _cookies(stage)
    with stage.decoys("syn", rate):
        stage.phase("before")
        stage.rest(BEFORE_S)

    began_ns = stage.phase("during")
    stage.timeline.note("attack", f"SYNs from {SOURCES:,} sources at {rate:,} a second and family", at_ns=began_ns)
    for sender in senders:
        sender.begin()
    for sender in senders:
        sender.done.wait(seconds + 5)
        sender.stop()

    stage.timeline.note("attack", "the flood has ended")
    with stage.decoys("syn", rate):
        stage.phase("after")
        stage.rest(AFTER_S)
    stage.rest(SETTLE_S)
    report.sent, report.dropped = stage.sent(), stage.dropped()
    over = _syn_over(stage) - over_before
    cookies = _cookies(stage) - cookies_before
    said = f"{over:,} SYNs were beyond the destination's rate; the kernel answered {cookies:,} with a cookie"
    stage.timeline.note("reflex", said, good=over > 0)
    report.must("the program saw that the destination is under a SYN flood", over > 0)
    forged = [source for sender in senders for source in sender.spec.source_list()[:: SOURCES // ASKED]]
    report.must("no forged address was banned", all(stage.ban_of(source) is None for source in forged))
    judge_innocent(report, stage.innocent_figures())


def _syn_over(stage: Stage) -> int:
    """SYNs beyond a destination's rate, by the program's own count."""
    tally: dict[str, int] = {}

    def counted() -> bool:
        tally.update(stage.service.ask("reflex.status")["counters"].get("tally", {}))
        return bool(tally)

    stage.until(counted, 1.0, step_s=0.05)
    return tally.get("syn_over", 0)


def _cookies(stage: Stage) -> int:
    """SYNs that the node's own kernel answered with a cookie instead of remembering them."""
    text = stage.net.node.namespace.run("cat", "/proc/net/netstat").stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    return int(values[names.index("SyncookiesSent")])
