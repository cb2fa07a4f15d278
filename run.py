#!/usr/bin/env python3
"""The door: ``python run.py`` is the node service, ``python run.py VERB`` speaks with the one that runs.

This file holds what a node is made of (the anatomy) and the list of verbs; everything else is imported when needed,
so that help is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from actors.admin import (
    antigens,
    bans,
    posture,
    replay,
    rules,
    service,
    session,
    settings_verbs,
    state,
    upkeep,
    vaccines,
)
from actors.admin.doctor.verb import doctor
from actors.admin.lab.command import lab
from actors.core.anatomy import Anatomy, CellSpec, Privileges

EPIDERMIS, DERMIS, HYPODERMIS = "epidermis", "dermis", "hypodermis"

#: Every cell of a node. What reads attackers' bytes keeps no privilege; what changes the kernel keeps those for it.
ANATOMY = (
    CellSpec(
        "memory_cell",
        "actors.dermis.memory_cell.MemoryCell",
        DERMIS,
        privileges=Privileges.none(),
        born_with=("memory", "records", "kafka", "lymph"),
    ),
    CellSpec(
        "reflex_arc",
        "actors.epidermis.reflex_arc.ReflexArc",
        EPIDERMIS,
        privileges=Privileges.keep("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_OVERRIDE"),
        optional=False,
        born_with=("interfaces", "reflex.rungs", "reflex.max_bans", "reflex.loader"),
    ),
    CellSpec(
        "keratinocyte",
        "actors.epidermis.keratinocyte.Keratinocyte",
        EPIDERMIS,
        privileges=Privileges.keep("CAP_NET_ADMIN"),
        optional=False,
        born_with=("keratinocyte",),
    ),
    CellSpec(
        "permeability",
        "actors.hypodermis.permeability.Permeability",
        HYPODERMIS,
        privileges=Privileges.none(),
        depends_on=("memory_cell",),
        critical=True,
        optional=False,
        born_with=("permeability", "reflex.max_bans"),
    ),
    CellSpec("melanocyte", "actors.epidermis.melanocyte.Melanocyte", EPIDERMIS, privileges=Privileges.none()),
    CellSpec(
        "merkel",
        "actors.dermis.merkel.Merkel",
        DERMIS,
        privileges=Privileges.none(),
        born_with=("interfaces", "merkel"),
    ),
    CellSpec(
        "mast_cell",
        "actors.dermis.mast_cell.MastCell",
        DERMIS,
        privileges=Privileges.none(),
        depends_on=("reflex_arc", "permeability"),
        start_limit_s=20.0,
        born_with=("mast",),
    ),
    CellSpec(
        "throttler",
        "actors.hypodermis.throttler.Throttler",
        HYPODERMIS,
        privileges=Privileges.keep("CAP_NET_ADMIN"),
        depends_on=("reflex_arc",),
        born_with=("interfaces", "throttler", "redis"),
    ),
    CellSpec(
        "macrophage",
        "actors.dermis.macrophage.Macrophage",
        DERMIS,
        privileges=Privileges.none(),
        depends_on=("reflex_arc", "permeability"),
        born_with=("macrophage",),
    ),
    CellSpec(
        "langerhans",
        "actors.dermis.langerhans.Langerhans",
        DERMIS,
        privileges=Privileges.none(),
        born_with=("kafka", "lymph"),
    ),
    CellSpec(
        "gateway",
        "actors.hypodermis.gateway.gateway.Gateway",
        HYPODERMIS,
        privileges=Privileges.none(),
        born_with=("gateway", "redis", "throttler"),
    ),
)

#: What every process of the node was started with.
OF_THE_NODE = (
    "state_dir", "run_dir", "log_dir", "bpf_dir", "user", "supervisor.heartbeat_s", "supervisor.missed_heartbeats",
)  # fmt: skip

app = typer.Typer(
    name="tegumentar",
    help="Tegumentar: a skin for this node. Without a verb it runs the service in the foreground.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    interface: Annotated[
        list[str] | None, typer.Option("--interface", "-i", help="interface to protect; may be given again")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="settings file to read instead of the system's")
    ] = None,
) -> None:
    ctx.obj = session.Call(config, {"interfaces": interface} if interface else {})
    if ctx.invoked_subcommand is None:
        service.run(ctx.obj, Anatomy(ANATOMY, born_with=OF_THE_NODE))


READ, CHANGE, HOST = "Read the node", "Change the node", "This host"
app.command(rich_help_panel=READ)(state.status)
app.command(rich_help_panel=READ)(state.cells)
app.command(rich_help_panel=READ)(state.qualia)
app.command(rich_help_panel=READ)(bans.blocks)
app.command(rich_help_panel=READ)(bans.why)
app.command(rich_help_panel=READ)(bans.history)
app.command(rich_help_panel=READ)(state.feeds)
app.command(rich_help_panel=READ)(antigens.antigens)
app.command(rich_help_panel=READ)(antigens.sessions)
app.command(rich_help_panel=READ)(antigens.attackers)
app.command(rich_help_panel=READ)(vaccines.vaccines)
app.command(rich_help_panel=READ)(rules.rules)
app.command(rich_help_panel=CHANGE)(posture.posture)
app.command(rich_help_panel=CHANGE)(bans.block)
app.command(rich_help_panel=CHANGE)(bans.release)
app.command(rich_help_panel=CHANGE)(bans.tolerate)
app.command(rich_help_panel=CHANGE)(upkeep.reload)
app.command(rich_help_panel=CHANGE)(upkeep.restart)
app.command(rich_help_panel=HOST)(doctor)
app.command(rich_help_panel=HOST)(lab)
app.command(rich_help_panel=HOST)(replay.replay)
app.add_typer(settings_verbs.app, name="config", rich_help_panel=HOST)

if __name__ == "__main__":
    app()
