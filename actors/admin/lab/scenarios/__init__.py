"""The scenarios of the lab, one file each; this is the table of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from actors.admin.lab.report import Report
from actors.admin.lab.scenarios import banned_source, flood, kill_cells, patience, port_scan, posture, random_flood
from actors.admin.lab.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is played. settings: ``TEGUMENTAR_*`` variables this scenario's node runs with beside the defaults."""

    name: str
    summary: str
    play: Callable[[Stage, Report], None]
    settings: Mapping[str, str] = field(default_factory=dict)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="syn-flood",
            summary="SYNs far over the budget: dropped in the kernel at once, the source banned, the innocent unharmed",
            play=flood.syn_flood,
        ),
        Scenario(
            name="udp-flood",
            summary="datagrams far over the budget of a quiet service: the same reflex for UDP",
            play=flood.udp_flood,
            settings=flood.UDP_SETTINGS,
        ),
        Scenario(
            name="random-syn-flood",
            summary="SYNs from sixty thousand forged sources: the innocent still connects, nobody forged is banned",
            play=random_flood.play,
        ),
        Scenario(
            name="banned-source",
            summary="a source passes, is banned by hand, is dropped, is released, passes again",
            play=banned_source.play,
        ),
        Scenario(
            name="port-scan",
            summary="what a scanner learns in each posture, and what a hasty one gets",
            play=port_scan.play,
        ),
        Scenario(
            name="slow-scan",
            summary="one door after the other, less than one a second: seen all the same, and banned with a reason",
            play=patience.slow_scan,
        ),
        Scenario(
            name="distributed-scan",
            summary="many sources, a few doors each, all doors together: each of them is banned with a reason",
            play=patience.distributed_scan,
        ),
        Scenario(
            name="brute-force",
            summary="passwords guessed one by one on the management port; the innocent's short requests go on",
            play=patience.brute_force,
        ),
        Scenario(
            name="posture",
            summary="LOCKDOWN within 100 ms, established connections live, unconfirmed postures return",
            play=posture.play,
        ),
        Scenario(
            name="kill-cells",
            summary="every process killed, one by one and all at once, while a banned source keeps sending",
            play=kill_cells.play,
        ),
    )
}
