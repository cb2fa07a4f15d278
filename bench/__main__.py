"""``make bench``: every claim measured against a peer in the same run, as a table and as plots in bench/results.

    python -m bench [--quick] [--only NAME]... [--results DIR]

One process per script, one after the other; what a script cannot do here (no root, a peer that is not installed) is
said in its place and the others go on. Exit code 1 when a promise was not kept or a script failed. Measuring scripts
that print their own tables are run too, and quoted as they are.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.claims import Claim, as_markdown, as_text, read

HERE = Path(__file__).parent
#: Scripts that speak in claims, in this order.
CLAIMS = ("verdicts", "pipeline", "load", "crowdsec_bouncer", "wire", "events", "bans", "syn_cookie", "replacement")
#: Modules that measure nothing by themselves.
PARTS = frozenset(
    {"__init__", "__main__", "claims", "kernel", "plots", "blocklist_harness", "blocklist_lookup", "blocklist_load"}
)
LIMIT_S = 1800


@dataclass
class Outcome:
    """What came of one script. said: its own words where it has no claims, or its last ones when it failed."""

    name: str
    title: str
    took_s: float
    claims: list[Claim] = field(default_factory=list)
    said: str = ""
    failed: bool = False


def main() -> int:
    shape = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=shape)
    parser.add_argument("--quick", action="store_true", help="a smoke run of the claims; its figures mean nothing")
    parser.add_argument("--only", action="append", metavar="NAME", help="this script alone; may be given again")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    for name in options.only or ():
        if not (HERE / f"{name}.py").exists() or name in PARTS:
            parser.error(f"there is no measurement {name}; choose of {', '.join([*CLAIMS, *_others()])}")
    names = options.only or [*CLAIMS, *([] if options.quick else _others())]
    outcomes = []
    for name in names:
        print(f"— {name}", flush=True)
        outcome = run_script(name, options.quick)
        print(as_text(outcome.claims) if outcome.claims else outcome.said, flush=True)
        outcomes.append(outcome)
    write(outcomes, options.results, options.quick)
    broken = [claim for outcome in outcomes for claim in outcome.claims if claim.kept is False]
    print(f"\nwritten to {options.results}; {len(broken)} promises not kept")
    return 1 if any(outcome.failed for outcome in outcomes) or (broken and not options.quick) else 0


def _others() -> list[str]:
    """Measuring scripts of other parts of the project, by name: those that can be called."""
    known = PARTS | set(CLAIMS)
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in known and "__main__" in p.read_text())


def run_script(name: str, quick: bool) -> Outcome:
    """Run ``bench.NAME`` to its end in a process of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "claims.json")
        speaks = "from bench.claims import" in (HERE / f"{name}.py").read_text()
        argv = [sys.executable, "-m", f"bench.{name}"]
        if speaks:
            argv += ["--json", str(result), *(["--quick"] if quick else [])]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=HERE.parent)
            said, failed = done.stdout, done.returncode != 0
            if failed:
                said = (done.stderr or done.stdout)[-2000:]
        except subprocess.TimeoutExpired:
            said, failed = f"it was not done after {LIMIT_S} s", True
        claims = read(result) if speaks and result.exists() else []
    return Outcome(name, _title(name), time.monotonic() - began, claims, said, failed)


def _title(name: str) -> str:
    """The first sentence of the script's docstring, without importing it."""
    text = (HERE / f"{name}.py").read_text().split('"""')
    return " ".join(text[1].split("\n\n")[0].split()) if len(text) > 1 else name


def write(outcomes: list[Outcome], directory: Path, quick: bool) -> None:
    """``results.md`` and one plot per script that has something to draw."""
    from bench.plots import draw

    directory.mkdir(parents=True, exist_ok=True)
    parts = ["# Measured claims", "", _machine(quick), ""]
    for outcome in outcomes:
        command = f"`python -m bench.{outcome.name}`, {outcome.took_s:.0f} s"
        parts += [f"## {outcome.name}", "", outcome.title, "", command, ""]
        if outcome.failed:
            parts += ["It failed:", ""]
        if outcome.claims:
            parts += [as_markdown(outcome.claims), ""]
            if draw(outcome.claims, outcome.title, directory / f"{outcome.name}.png"):
                parts += [f"![{outcome.name}]({outcome.name}.png)", ""]
        else:
            parts += ["```", outcome.said.rstrip(), "```", ""]
    (directory / "results.md").write_text("\n".join(parts))


def _machine(quick: bool) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.processor())
    warning = "**A smoke run: these figures mean nothing.** " if quick else ""
    return (
        f"{warning}Linux {platform.release()}, {os.cpu_count()} CPUs ({model}). Medians of interleaved rounds, "
        "net of the harness; a ratio is ours divided by the peer's, so below 1 is better unless more is promised."
    )


if __name__ == "__main__":
    sys.exit(main())
