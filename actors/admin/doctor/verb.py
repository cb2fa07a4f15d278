"""The verb ``doctor``: ask everything within two seconds, show it, end with a code that says how well it stands."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import verb

if TYPE_CHECKING:
    from actors.admin.doctor.check import Check

VERDICTS = {
    0: "this host can protect",
    6: "this host can protect, with less than it could",
    1: "this host can only watch",
}


@verb
def doctor(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Option("--config", help="settings file instead of the system's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """What this host can do, what it cannot, why, and the remedy. Exit code 0: protects; 6: partly; 1: cannot."""
    from actors.admin.doctor import host, kernel, network, servers
    from actors.admin.doctor.check import enforcement, exit_code

    call = session.of(ctx)
    call.config = file or call.config
    begun = time.monotonic()
    loaded = call.load()
    settings = loaded.settings
    parts = {
        "kernel": kernel.checks(settings.bpf_dir),
        "network": network.checks(settings.interfaces),
        "servers": servers.checks(settings),
        "host": host.checks(settings),
    }
    found = [check for part in parts.values() for check in part]
    code, ways = exit_code(found), enforcement(found)
    if as_json:
        session.emit(
            {
                "verdict": VERDICTS[code],
                "enforcement": ways,
                "checks": [check.document() for check in found],
                "warnings": loaded.warnings,
                "seconds": round(time.monotonic() - begun, 2),
            }
        )
    else:
        _show(parts, VERDICTS[code], ways, loaded.warnings, time.monotonic() - begun)
    raise typer.Exit(code)


def _show(parts: "dict[str, list[Check]]", verdict: str, ways: list[str], warnings: list[str], seconds: float) -> None:
    from rich.text import Text

    from actors.admin import render

    shown: list[Any] = []
    for title, checks in parts.items():
        rows = []
        for check in checks:
            told = Text(check.says or "-")
            if check.consequence:
                told.append(f"\n{check.consequence}", style=render.QUIET)
            if check.remedy:
                told.append(f"\n→ {check.remedy}")
            sign = render.state(check.state) if check.state != "no" or check.weight != "note" else _minor()
            rows.append([Text("  ").append_text(sign), Text(check.name, no_wrap=True), told])
        shown += [render.heading(title), render.table(["", ("", {"no_wrap": True, "min_width": 16}), ""], rows), Text()]
    line = Text(verdict, style="bold")
    line.append(f"  {' and '.join(ways)}" if ways else "", style="not bold").append_text(
        render.quiet(f"  {seconds:.1f} s")
    )
    render.show(*shown, line)
    for warning in warnings:
        session.say_error(warning)


def _minor() -> Any:
    from rich.text import Text

    return Text("○ no", style="bright_black", no_wrap=True)
