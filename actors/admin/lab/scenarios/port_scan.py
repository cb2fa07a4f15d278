"""Port scans: what a scanner learns in each posture, and what a hasty one gets.

A patient scanner, below the SYN budget, is recognised as one and banned within seconds, with a reason; until then he
learns what he asks in BALANCED, only service ports in HARDENED and nothing in LOCKDOWN, where not one of his packets
reaches the node's stack. A hasty one breaks the SYN budget and is banned within milliseconds, like any flood. The
innocent's established connection lives through all of it, and new ones are refused only where the posture says so.
"""

from actors.admin.lab.ears import Ears
from actors.admin.lab.passage import slowest
from actors.admin.lab.report import REACTION_LIMIT_MS, Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.scenarios.flood import BURST
from actors.admin.lab.stage import BEFORE_S, MANAGEMENT_PORT, OTHER_PORT, PORT, SETTLE_S, Stage

#: Below the default SYN budget (200 a second): patience is the scanner's one way around it.
PATIENT_RATE, HASTY_RATE = 150, 20_000
#: A conversation is judged half a second after its start, and the table is looked at twice a second.
CAUGHT_LIMIT_S = 3.0
LISTENING = {PORT, MANAGEMENT_PORT, OTHER_PORT}
#: A scanner of its own for each posture: the node repeats its answers to the one before for a minute.
SCANNERS = {"balanced": 66, "hardened": 67, "lockdown": 68}
HASTY_SCANNER = 69


def play(stage: Stage, report: Report) -> None:
    """The same patient scan in three postures, then a hasty one in BALANCED."""
    ears = Ears(stage.net.attacker)
    try:
        stage.phase("before")
        stage.rest(BEFORE_S)
        stage.phase("during")
        for posture in SCANNERS:
            _patient_scan(stage, report, ears, posture)
        stage.service.ask("posture.set", posture="balanced")
    finally:
        ears.close()
    _hasty_scan(stage, report)
    stage.phase("after")
    stage.rest(SETTLE_S)
    report.sent, report.dropped = stage.sent(), stage.dropped()
    report.must("the witness saw every packet that arrived", stage.witness_complete())
    judge_innocent(report, stage.innocent_figures(("established",)))


def _patient_scan(stage: Stage, report: Report, ears: Ears, posture: str) -> None:
    """Each port once, the listening ones among them; judged by what the scanner was told."""
    stage.service.ask("posture.set", posture=posture)
    stage.rest(SETTLE_S)
    seconds = stage.options.seconds / 2
    senders = [
        stage.scan(family, rate=PATIENT_RATE, seconds=seconds, number=SCANNERS[posture], include=sorted(LISTENING))
        for family in stage.options.families
    ]
    for sender in senders:
        sender.begin()
    for sender in senders:
        sender.done.wait(seconds + 5)
        sender.stop()
    stage.rest(SETTLE_S)
    for sender in senders:
        told = ears.answers(sender.spec.source)
        opened = {port for port, kind in told.items() if kind == "open"}
        arrived = sum(passage.counts()[1] for passage in stage.passages(sender).values())
        stage.timeline.note(
            "scan",
            f"{posture}: {sender.spec.source} tried {sender.sent} ports, {arrived} packets arrived, "
            f"{len(told)} answers, open: {', '.join(map(str, sorted(opened))) or 'none'}",
        )
        if posture == "balanced":
            _must_be_caught(stage, report, sender.spec.source)
        elif posture == "hardened":
            report.must(
                f"hardened answers {sender.spec.source} only on service ports", opened <= {PORT, MANAGEMENT_PORT}
            )
            report.must(
                "and says nothing about the others", all(kind == "open" or port == 443 for port, kind in told.items())
            )
        else:
            report.must(
                f"lockdown tells {sender.spec.source} nothing but the management port", set(told) <= {MANAGEMENT_PORT}
            )
            report.leaked += max(0, arrived - 1)


def _must_be_caught(stage: Stage, report: Report, source: str) -> None:
    def caught() -> bool:
        row = stage.ban_of(source)
        return row is not None and "port scan" in str(row["reason"])

    took_s = stage.until(caught, CAUGHT_LIMIT_S, step_s=0.05)
    evidence = (stage.ban_of(source) or {}).get("evidence", "not banned")
    stage.timeline.note("ban", f"{source}: {evidence}", good=took_s is not None)
    report.must(f"{source} was caught as a port scanner within {CAUGHT_LIMIT_S:.0f} s", took_s is not None)


def _hasty_scan(stage: Stage, report: Report) -> None:
    senders = [
        stage.scan(family, rate=HASTY_RATE, seconds=0.5, number=HASTY_SCANNER, include=sorted(LISTENING))
        for family in stage.options.families
    ]
    for sender in senders:
        sender.begin()
    for sender in senders:
        sender.done.wait(5)
        sender.stop()
    stage.rest(SETTLE_S)
    passages = [passage for sender in senders for passage in stage.passages(sender).values()]
    report.reaction_ms = slowest([passage.reaction_ms() for passage in passages])
    report.leaked += sum(passage.leaked() for passage in passages)
    limit_ms = 1000 * BURST / HASTY_RATE + REACTION_LIMIT_MS
    report.must_react("the hasty scan was cut off", limit_ms)
    report.must("and learned nothing more; nor did anything but management pass in lockdown", report.leaked == 0)
