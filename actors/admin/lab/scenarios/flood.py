"""Floods: the budget is broken within milliseconds, and from then on the source is banned in the kernel.

The first packets of a flood pass, because a burst is what a budget allows; the reaction is the moment when the first
packet does not arrive. After it nothing of that source may arrive, because the program bans who breaks a budget.
"""

from typing import Any

from actors.admin.lab.children import Sender
from actors.admin.lab.passage import Passage, slowest
from actors.admin.lab.report import REACTION_LIMIT_MS, Report
from actors.admin.lab.scenarios.common import judge_innocent
from actors.admin.lab.stage import AFTER_S, BEFORE_S, SETTLE_S, Stage

#: What a source may send at once: the default for SYNs, and what the udp-flood scenario sets for datagrams.
BURST = 400
#: A node whose service expects some hundred datagrams a second says so. With the default budget (25,000 a second and
#: a burst of 50,000, right for a fast tunnel) the burst alone would outlast 50 ms at any rate this machine can send.
UDP_SETTINGS = {"TEGUMENTAR_REFLEX__UDP_RATE": "400", "TEGUMENTAR_REFLEX__UDP_BURST": str(BURST)}
PROOF_LIMIT_S = 2.0
#: Share of a flood that the virtual wire itself may lose while the machine is busy; usually it is none.
WIRE_LOSS = 0.001


def syn_flood(stage: Stage, report: Report) -> None:
    """SYNs to the application's own port."""
    play(stage, report, "syn", "budget_syn")


def udp_flood(stage: Stage, report: Report) -> None:
    """Datagrams to the application's own port."""
    play(stage, report, "udp", "budget_udp")


def play(stage: Stage, report: Report, kind: str, reflex: str) -> None:
    """Before, during, after; then what the witness says, and what the node says about it."""
    options, timeline = stage.options, stage.timeline
    senders = [
        stage.stream(family, kind, rate=options.rate, seconds=options.seconds, sources=options.sources)
        for family in options.families
    ]
    with stage.decoys(kind, options.rate):
        stage.phase("before")
        stage.rest(BEFORE_S)

    began_ns = stage.phase("during")
    timeline.note("attack", f"{kind} flood begins: {', '.join(map(_who, senders))}", at_ns=began_ns)
    for sender in senders:
        sender.begin()
    bans = {source: _ban(stage, source) for sender in senders for source in sender.spec.source_list()}
    for sender in senders:
        sender.done.wait(options.seconds + 5)
        sender.stop()

    timeline.note("attack", "the flood has ended")
    with stage.decoys(kind, options.rate):
        stage.phase("after")
        stage.rest(AFTER_S)
    passages = {source: passage for sender in senders for source, passage in stage.passages(sender).items()}
    _judge_packets(stage, report, passages)
    judge_innocent(report, stage.innocent_figures())
    for source, ban in bans.items():
        _judge_ban(stage, report, source, ban, reflex)


def _judge_packets(stage: Stage, report: Report, passages: dict[str, Passage]) -> None:
    stage.rest(SETTLE_S)
    all_arrived = 0
    for source, passage in passages.items():
        reaction, (sent, arrived) = passage.reaction_ms(), passage.counts()
        report.sent += sent
        all_arrived += arrived
        report.leaked += passage.leaked()
        said = "never" if reaction is None else f"{reaction:.1f} ms after its first packet"
        stage.timeline.note(
            "reaction", f"{source} dropped {said}; {arrived:,} of {sent:,} packets arrived", good=reaction is not None
        )
    report.reaction_ms = slowest([passage.reaction_ms() for passage in passages.values()])
    report.dropped = stage.dropped()
    limit_ms = 1000 * BURST / (stage.options.rate / stage.options.sources) + REACTION_LIMIT_MS
    report.must_react("after its first packet the flood was dropped", limit_ms)
    report.must("nothing of the flood arrived after the reaction", report.leaked == 0)
    missing = report.sent - all_arrived - sum(report.dropped.values())
    report.must(
        f"the kernel's counters explain every packet that did not arrive ({missing:+,} unexplained)",
        abs(missing) <= report.sent * WIRE_LOSS and bool(report.dropped),
    )
    report.must("the witness saw every packet that arrived", stage.witness_complete())


def _ban(stage: Stage, source: str) -> dict[str, Any] | None:
    """The row of ``blocks`` for this source, waiting until it is proven; None when the source is not listed."""
    proven = stage.until(lambda: stage.is_proven(source), PROOF_LIMIT_S, step_s=0.05) is not None
    ban = stage.ban_of(source)
    if ban is None:
        stage.timeline.note("ban", f"{source} is not in the list of blocks", good=False)
        return None
    state = "proven in the kernel" if proven else "NOT proven"
    stage.timeline.note("ban", f"banned {source} by {ban['reason']}, {state}", good=proven)
    return ban


def _judge_ban(stage: Stage, report: Report, source: str, ban: dict[str, Any] | None, reflex: str) -> None:
    """The ban is listed with source, reflex, reason and time left, is proven, and ``why`` explains it."""
    row = ban or {}
    report.must(f"{source} is listed as banned by {reflex}", reflex in str(row))
    report.must(f"the ban of {source} shows the time left", float(row.get("left_s") or 0) > 0)
    report.must(f"the ban of {source} is proven in the kernel", bool(row.get("proven")))
    report.must(f"why {source} explains it", reflex in stage.explain(source))


def _who(sender: Sender) -> str:
    spec = sender.spec
    more = f" and {spec.sources - 1} more" if spec.sources > 1 else ""
    return f"{spec.source}{more} at {spec.rate:,} packets/s"
