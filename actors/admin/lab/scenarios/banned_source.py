"""A ban by hand: before it the source passes, with it not one packet, after its release it passes again."""

import time

from actors.admin.lab.passage import slowest
from actors.admin.lab.report import Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.stage import AFTER_S, BEFORE_S, SETTLE_S, Stage

#: Far below every budget: what drops these packets is the ban and nothing else.
RATE = 1_000
#: From the wish to the kernel, journal first: a few actor messages and one commit to disk, on a busy machine.
EFFECT_LIMIT_MS = 500.0
REASON = "banned by hand in the lab"


def play(stage: Stage, report: Report) -> None:
    """One steady stream per family through three acts: free, banned, free again."""
    options, timeline = stage.options, stage.timeline
    length_s = BEFORE_S + options.seconds + AFTER_S + 10
    senders = [stage.stream(family, "udp", rate=RATE, seconds=length_s) for family in options.families]
    sources = [sender.spec.source for sender in senders]
    for sender in senders:
        sender.begin()
    stage.phase("before")
    stage.rest(BEFORE_S)

    banned_ns = stage.phase("during")
    stage.service.ask("block", subjects=sources, ttl_s=300.0, reason=REASON)
    timeline.note("ban", f"{', '.join(sources)} banned by hand")
    proven = stage.until(lambda: all(map(stage.is_proven, sources)), 3.0, step_s=0.05) is not None
    timeline.note("proof", "the kernel confirms the bans" if proven else "the bans are not proven", good=proven)
    stage.rest(options.seconds)
    explained = all(REASON in stage.explain(source) for source in sources)

    released_ns = stage.phase("after")
    stage.service.ask("release", subjects=sources)
    free_ns = time.monotonic_ns() + int(EFFECT_LIMIT_MS * 1e6)
    timeline.note("release", "the bans are lifted", at_ns=released_ns)
    stage.rest(AFTER_S)
    for sender in senders:
        sender.stop()
    stage.rest(SETTLE_S)

    passages = {source: passage for sender in senders for source, passage in stage.passages(sender).items()}
    for source, passage in passages.items():
        (free, passed), (freed, passed_again) = passage.counts(until_ns=banned_ns), passage.counts(since_ns=free_ns)
        report.must(f"{source} passed before the ban ({passed} of {free})", passed == free > 0)
        report.must(f"and again after its release ({passed_again} of {freed})", passed_again == freed > 0)
    report.reaction_ms = slowest([passage.reaction_ms(banned_ns) for passage in passages.values()])
    report.leaked = sum(passage.leaked(banned_ns, released_ns) for passage in passages.values())
    report.sent, report.dropped = stage.sent(), stage.dropped()
    report.must_react("the ban took effect", EFFECT_LIMIT_MS)
    report.must("with it not one packet arrived", report.leaked == 0)
    report.must("it was proven in the kernel", proven)
    report.must("why explained it", explained)
    report.must("the witness saw every packet that arrived", stage.witness_complete())
    judge_innocent(report, stage.innocent_figures())
