"""``make bench``: every claim measured against a peer in the same run, as a table and as plots in bench/results.

    python -m bench [--quick] [--only NAME]... [--results DIR]

One process per script, one after the other, in about ten minutes; how far it is, is said every 15 s. What a script
cannot do here (no root, a peer that is not installed) is said in its place and the others go on. Exit code 1 when a
promise was not kept or a script failed. Scripts that print figures of their own are run too: those named in
bench/promises.py become claims, the others are quoted as they are.
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

from bench.claims import HEADINGS, Claim, as_markdown, as_text, cells, read
from bench.promises import claims_of

HERE = Path(__file__).parent
#: Scripts that speak in claims, in this order.
CLAIMS = ("verdicts", "pipeline", "load", "crowdsec_bouncer", "wire", "events", "bans", "syn_cookie", "replacement")
#: Modules that measure nothing by themselves.
PARTS = frozenset(
    {
        "__init__", "__main__", "claims", "kernel", "plots", "promises", "blocklist_harness", "blocklist_lookup",
        "blocklist_load",
    }
)  # fmt: skip
#: A script that has not ended by then is ended.
LIMIT_S, SAY_EVERY_S = 600, 15


@dataclass
class Outcome:
    """What came of one script. said: its own words where it has no claims, or its last ones when it failed.
    load: processes that wanted a CPU in the minute before, on average."""

    name: str
    title: str
    took_s: float
    load: float
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
    outcomes, began = [], time.monotonic()
    for number, name in enumerate(names, 1):
        print(f"— {number} of {len(names)}: {name}", flush=True)
        outcome = run_script(name, options.quick)
        print(as_text(outcome.claims) if outcome.claims else outcome.said, flush=True)
        if outcome.failed and outcome.claims:
            print(outcome.said, flush=True)
        print(f"  {outcome.took_s:.0f} s, {time.monotonic() - began:.0f} s in all\n", flush=True)
        outcomes.append(outcome)
        write(outcomes, options.results, options.quick)  # each time: who stops it half-way keeps what there is
    broken = [claim for outcome in outcomes for claim in outcome.claims if claim.kept is False]
    print(f"\nwritten to {options.results}; {len(broken)} promises not kept")
    return 1 if any(outcome.failed for outcome in outcomes) or (broken and not options.quick) else 0


def _others() -> list[str]:
    """Measuring scripts of other parts of the project, by name: those that can be called."""
    known = PARTS | set(CLAIMS)
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in known and "__main__" in p.read_text())


def run_script(name: str, quick: bool) -> Outcome:
    """Run ``bench.NAME`` to its end in a process of its own."""
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "claims.json")
        text = (HERE / f"{name}.py").read_text()
        speaks, figures = "from bench.claims import" in text, '"--json"' in text
        argv = [sys.executable, "-m", f"bench.{name}"]
        if speaks:
            argv += ["--json", str(result), *(["--quick"] if quick else [])]
        elif figures:
            argv.append("--json")
        code, said, errors = _watched(argv)
        failed = code != 0
        claims: list[Claim] = []
        try:
            claims = read(result) if speaks and result.exists() else claims_of(name, said) if figures else []
        except (OSError, ValueError, TypeError) as error:
            failed, errors = True, f"its claims cannot be read: {error}"
    if failed:
        said = _without_paths((errors or said)[-2000:])
    return Outcome(name, _title(name), time.monotonic() - began, load, claims, said, failed)


def _watched(argv: list[str]) -> tuple[int | None, str, str]:
    """Exit code (None: it was ended), output and errors of a process; a line is printed while it takes its time.

    One thread for linear algebra: figures are of one core."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    began = time.monotonic()
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, cwd=HERE.parent, env=environment) as running:
        while True:
            try:
                said, errors = running.communicate(timeout=SAY_EVERY_S)
                return running.returncode, said, errors
            except subprocess.TimeoutExpired:
                took = time.monotonic() - began
                if took > LIMIT_S:
                    running.kill()
                    said, _ = running.communicate()
                    return None, said, f"it was not done after {LIMIT_S} s"
                print(f"  … {took:.0f} s", flush=True)


def _without_paths(text: str) -> str:
    """Results may be shown to others: where things lie on this machine is left out."""
    for directory in (HERE.parent, Path(sys.prefix), Path(sys.base_prefix), Path.home()):
        text = text.replace(f"{directory}/", "")
    return text


def _title(name: str) -> str:
    """The first sentence of the script's docstring, without importing it."""
    text = (HERE / f"{name}.py").read_text().split('"""')
    return " ".join(text[1].split("\n\n")[0].split()) if len(text) > 1 else name


def write(outcomes: list[Outcome], directory: Path, quick: bool) -> None:
    """``results.md`` and one plot per script that has something to draw."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = ["# Measured claims", "", _machine(quick), "", "## Promises", "", *_promises(outcomes), ""]
    for outcome in outcomes:
        command = f"`python -m bench.{outcome.name}`, {outcome.took_s:.0f} s; load before it {outcome.load:.1f}"
        parts += [f"## {outcome.name}", "", outcome.title, "", command, ""]
        if outcome.failed:
            parts += ["It failed:", "", "```", outcome.said.strip(), "```", ""]
        if outcome.claims:
            parts += [as_markdown(outcome.claims), ""]
            if _drawn(outcome, directory / f"{outcome.name}.png"):
                parts += [f"![{outcome.name}]({outcome.name}.png)", ""]
        elif not outcome.failed:
            parts += ["```", outcome.said.rstrip(), "```", ""]
    (directory / "results.md").write_text("\n".join(parts))


def _promises(outcomes: list[Outcome]) -> list[str]:
    """One table of all that was promised, and how many of it is kept."""
    promised = [(outcome, claim) for outcome in outcomes for claim in outcome.claims if claim.limit is not None]
    kept = sum(claim.kept is True for _, claim in promised)
    rows = ["| " + " | ".join((outcome.name, *cells(claim))) + " |" for outcome, claim in promised]
    head = ["| " + " | ".join(("script", *HEADINGS)) + " |", "|" + "---|" * (len(HEADINGS) + 1)]
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    trouble = f" Failed: {', '.join(failed)}." if failed else ""
    return [f"{kept} of {len(promised)} kept.{trouble}", "", *head, *rows]


def _drawn(outcome: Outcome, target: Path) -> bool:
    """A picture that cannot be drawn costs nobody the table."""
    try:
        from bench.plots import draw

        return draw(outcome.claims, outcome.title, target)
    except (ImportError, OSError, ValueError) as error:
        print(f"  no plot of {outcome.name}: {error}")
        return False


def _machine(quick: bool) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.processor())
    warning = "**A smoke run: these figures mean nothing.** " if quick else ""
    return (
        f"{warning}Linux {platform.release()}, {os.cpu_count()} CPUs ({model}). Medians of interleaved rounds, "
        "net of the harness; a ratio is ours divided by the peer's, so below 1 is better unless more is promised. "
        "The load before each script is how many processes wanted a CPU: beyond the number of CPUs, times are rough."
    )


if __name__ == "__main__":
    sys.exit(main())
