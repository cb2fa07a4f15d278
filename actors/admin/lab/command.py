"""``python run.py lab [SCENARIO]``: attackers and a protected node in network namespaces on this machine, live."""

import json
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer


class Family(StrEnum):
    """Which internet protocol the scenario speaks."""

    FOUR = "4"
    SIX = "6"
    BOTH = "both"


class Rung(StrEnum):
    """Rungs of the ladder on which the node may stand."""

    NATIVE = "native"
    TCX = "tcx"
    GENERIC = "generic"
    NFT_INGRESS = "nft_ingress"
    NFT_PREROUTING = "nft_prerouting"


def lab(
    scenario: Annotated[str, typer.Argument(help="Which scenario; without it they are listed.")] = "",
    family: Annotated[Family, typer.Option(help="IPv4, IPv6 or both at once.")] = Family.BOTH,
    seed: Annotated[int, typer.Option(help="Makes the random choices of a run repeatable.")] = 1,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of the attack.")] = 4.0,
    rate: Annotated[int, typer.Option(min=100, max=100_000, help="Packets a second of a flood, per family.")] = 20_000,
    sources: Annotated[int, typer.Option(min=1, max=200, help="Forged sources that share the rate.")] = 1,
    rung: Annotated[
        Rung, typer.Option(help="The best rung the node may take; reflexes need one of the first three.")
    ] = Rung.NATIVE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
) -> None:
    """Attack a protected node in network namespaces made for the purpose, with real packets, and judge what happens.

    Exit code 0 only when every criterion of the scenario held; 2 for an unknown scenario, 4 without root."""
    from rich.console import Console

    from actors.admin.lab.scenarios import SCENARIOS

    if not scenario:
        _list(as_json)
        return
    if scenario not in SCENARIOS:
        typer.echo(f"There is no scenario {scenario!r}; choose one of: {', '.join(SCENARIOS)}.", err=True)
        raise typer.Exit(2)
    if os.geteuid() != 0:
        typer.echo("The lab makes network namespaces and forges packets, so it needs root: run it with sudo.", err=True)
        raise typer.Exit(4)

    from actors.admin.lab.runner import play
    from actors.admin.lab.stage import Options

    families = {Family.FOUR: (4,), Family.SIX: (6,), Family.BOTH: (4, 6)}[family]
    options = Options(families=families, seed=seed, seconds=seconds, rate=rate, sources=sources)
    console = Console(file=sys.stderr if as_json else sys.stdout)
    rungs = [*list(Rung)[list(Rung).index(rung) :], "observe"]
    settings = {"TEGUMENTAR_REFLEX__RUNGS": json.dumps(rungs)}
    report, timeline = play(scenario, options, console, quiet=as_json, settings=settings)
    if as_json:
        print(json.dumps(report.as_json(timeline)))
    else:
        report.show(timeline, console)
    raise typer.Exit(0 if report.ok else 1)


def _list(as_json: bool) -> None:
    from actors.admin.lab.scenarios import SCENARIOS

    if as_json:
        print(json.dumps({"scenarios": [{"name": s.name, "summary": s.summary} for s in SCENARIOS.values()]}))
        return
    for each in SCENARIOS.values():
        typer.echo(f"{each.name:<16} {each.summary}")
