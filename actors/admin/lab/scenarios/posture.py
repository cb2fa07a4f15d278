"""Postures: how fast LOCKDOWN bites, what it spares, and that an unconfirmed posture returns by itself.

A stranger sends datagrams to the application, each from a new port and so a new connection; the first one that does
not arrive tells when the posture took hold, to half a millisecond. The innocent's open connection never stops."""

import time

from actors.admin.lab.passage import Passage, slowest
from actors.admin.lab.report import Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.stage import AFTER_S, BEFORE_S, SETTLE_S, Stage

RATE = 2_000
EFFECT_LIMIT_MS = 100.0
CONFIRM_WITHIN_S = 2.0
#: A timer of the gate, one message and one nft transaction: late by a scheduling hiccup, never early.
RETURN_SLACK_S = 0.5


def play(stage: Stage, report: Report) -> None:
    """BALANCED, LOCKDOWN, BALANCED, then HARDENED that nobody confirms."""
    options, timeline = stage.options, stage.timeline
    length_s = BEFORE_S + options.seconds + AFTER_S + CONFIRM_WITHIN_S + 15
    senders = [stage.stream(family, "udp", rate=RATE, seconds=length_s, port=8081) for family in options.families]
    for sender in senders:
        sender.begin()
    stage.phase("before")
    stage.rest(BEFORE_S)

    locked_ns = stage.phase("during")
    stage.service.ask("posture.set", posture="lockdown")
    timeline.note("posture", "lockdown", at_ns=locked_ns)
    stage.rest(options.seconds)
    open_ns = stage.phase("after")
    stage.service.ask("posture.set", posture="balanced")
    opened_ns = time.monotonic_ns()
    timeline.note("posture", "balanced", at_ns=open_ns)
    stage.rest(AFTER_S)

    unconfirmed_ns = time.monotonic_ns()
    stage.service.ask("posture.set", posture="hardened", confirm_within_s=CONFIRM_WITHIN_S)
    closed_ns = time.monotonic_ns()
    timeline.note(
        "posture", f"hardened, to be confirmed within {CONFIRM_WITHIN_S:.0f} s; nobody does", at_ns=unconfirmed_ns
    )
    returned_s = stage.until(lambda: _posture(stage) == "balanced", CONFIRM_WITHIN_S + RETURN_SLACK_S + 2)
    timeline.note("posture", "back to balanced by itself" if returned_s else "it never returned", good=bool(returned_s))
    stage.rest(AFTER_S)
    for sender in senders:
        sender.stop()
    stage.rest(SETTLE_S)

    passages = {source: passage for sender in senders for source, passage in stage.passages(sender).items()}
    report.reaction_ms = slowest([passage.reaction_ms(locked_ns) for passage in passages.values()])
    report.leaked = sum(passage.leaked(locked_ns, open_ns) for passage in passages.values())
    report.sent, report.dropped = stage.sent(), stage.dropped()
    report.must_react("lockdown took effect", EFFECT_LIMIT_MS)
    report.must("in lockdown nothing new arrived", report.leaked == 0)
    for source, passage in passages.items():
        _judge_openness(report, source, passage, locked_ns, opened_ns, unconfirmed_ns, closed_ns)
    report.must("the unconfirmed posture returned by itself", returned_s is not None)
    in_its_time = returned_s is not None and abs(returned_s - CONFIRM_WITHIN_S) <= RETURN_SLACK_S
    report.must("and in its time", in_its_time, timed=True)
    report.must("the witness saw every packet that arrived", stage.witness_complete())
    judge_innocent(report, stage.innocent_figures(("established",)))


def _judge_openness(
    report: Report, source: str, passage: Passage, locked_ns: int, opened_ns: int, unconfirmed_ns: int, closed_ns: int
) -> None:
    """Everything arrived while the posture was open, and again after the unconfirmed one had gone. ``opened_ns`` and
    ``closed_ns``: when the node had answered; how fast it is, the lockdown tells."""
    grace_ns = int(EFFECT_LIMIT_MS * 1e6)
    sent, arrived = passage.counts(until_ns=locked_ns)
    report.must(f"{source} passed in balanced ({arrived} of {sent})", arrived == sent > 0)
    sent, arrived = passage.counts(since_ns=opened_ns + grace_ns, until_ns=unconfirmed_ns)
    report.must(f"and again when it was back ({arrived} of {sent})", arrived == sent > 0)
    closed_s = CONFIRM_WITHIN_S - RETURN_SLACK_S
    _, arrived = passage.counts(closed_ns + grace_ns, unconfirmed_ns + int(closed_s * 1e9))
    report.must("hardened kept it out", arrived == 0)
    sent, arrived = passage.counts(since_ns=unconfirmed_ns + int((CONFIRM_WITHIN_S + RETURN_SLACK_S) * 1e9))
    report.must(f"and it passed once hardened had gone ({arrived} of {sent})", arrived == sent > 0)


def _posture(stage: Stage) -> str:
    return str(stage.service.ask("posture.get")["posture"])
