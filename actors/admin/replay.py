"""``python run.py replay FILE``: a capture through the very program, with the capture's own clock.

Nothing on the node changes and no service is needed: the program is loaded privately, with the settings of this node
and an empty ban table, and judges every frame of the file. What it says is what it would have done on the wire.
"""

import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.admin import session
from actors.admin.session import Exit, verb
from actors.core.errors import TegumentarError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bpf.replay import Replay

Column = str | tuple[str, dict[str, Any]]
#: Files of this many bytes take about two seconds; smaller ones need no bar.
LONG_FILE_BYTES = 40 << 20
#: What a capture file spends on each frame besides the frame.
FRAME_HEADER_BYTES = 16
#: Rows that a person is shown; ``--json`` has all.
SHOWN_BANS = 40


class ReplayPosture(StrEnum):
    """Which posture judges. In ``explore`` nothing would be dropped or banned, so it is no choice here."""

    BALANCED = "balanced"
    HARDENED = "hardened"


@verb
def replay(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A capture: pcap or pcapng.")],
    posture: Annotated[ReplayPosture, typer.Option(help="The posture that judges.")] = ReplayPosture.BALANCED,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """What would the skin have done with this capture? Verdicts by reason, and the bans: when, and why."""
    from actors.core.messages import Posture
    from actors.epidermis.reflex_events import policy_of
    from bpf import replay as runner
    from bpf.dataplane import DataPlaneError
    from bpf.pcap import CaptureError

    policy = policy_of(session.of(ctx).load().settings.reflex, Posture(posture.value))
    if not file.exists():
        session.fail(f"there is no file {file}", "name a capture file", Exit.NOT_FOUND, as_json)
    try:
        with _bar(file) as progress:
            done = runner.replay(file, policy, progress=progress)
    except CaptureError as exc:
        raise TegumentarError(
            f"{file}: {exc}", remedy="tcpdump -w and wireshark write captures that can be read"
        ) from exc
    except DataPlaneError as exc:
        code = Exit.PRIVILEGE if exc.errno in (errno.EPERM, errno.EACCES) else Exit.ERROR
        session.fail(f"the program cannot judge here: {exc}", exc.remedy, code, as_json)
        return
    document = account(file, done)
    if as_json:
        session.emit(document)
        return
    from actors.admin import render

    render.show(*page(document))


@contextmanager
def _bar(file: Path) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr for a long file in front of a person, else nothing."""
    if not sys.stderr.isatty() or file.stat().st_size < LONG_FILE_BYTES:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("replaying", total=file.stat().st_size)

        def advance(frames: int, size: int) -> None:
            said = f"{frames:,} frames"
            progress.update(task, completed=size + frames * FRAME_HEADER_BYTES, description=said)

        yield advance


def account(file: Path, done: "Replay") -> dict[str, Any]:
    """The result as plain data. Times are ISO 8601 by the capture's clock, ``at_s`` counts from its first frame."""
    from bpf.abi import DROP_REASONS

    passed = {name: count for name, count in done.by_reason.items() if name not in DROP_REASONS}
    dropped = {name: count for name, count in done.by_reason.items() if name in DROP_REASONS}
    return {
        "file": str(file),
        "frames": done.frames,
        "seconds": round((done.last_ns - done.first_ns) / 1e9, 6),
        "first": _moment(done.first_ns) if done.frames else None,
        "passed": _largest_first(passed),
        "dropped": _largest_first(dropped),
        "dropped_frames": sum(dropped.values()),
        "cut_frames": done.cut,
        "bans": bans(done),
        "events_lost": done.counters.tally["events_lost"] + done.counters.tally["events_suppressed"],
        "flows": len(done.flows),
    }


def bans(done: "Replay") -> list[dict[str, Any]]:
    """Every ban that was made, in order. ``dropped``: frames it cost, for the last ban of each subject."""
    from bpf.abi import EVENT_BANNED, reason_name
    from bpf.subjects import text_of

    costs = {ban.subject: ban.packets for ban in done.bans}
    made = done.events[(done.events["flags"] & EVENT_BANNED) != 0]
    again = Counter(_subject(event, text_of) for event in made)
    rows = []
    for event in made:
        subject = _subject(event, text_of)
        again[subject] -= 1
        rows.append(
            {
                "at": _moment(int(event["at_ns"])),
                "at_s": round((int(event["at_ns"]) - done.first_ns) / 1e9, 6),
                "subject": subject,
                "reason": reason_name(int(event["reason"])),
                "until": _moment(int(event["until_ns"])),
                "to_port": int(event["dest_port"]),
                "dropped": 0 if again[subject] else costs.get(subject, 0),
            }
        )
    return rows


def _subject(event: Any, text_of: Callable[[bytes, int], str]) -> str:
    """IPv4 is banned by address, IPv6 by /64."""
    source = event["source"].tobytes()
    return text_of(source[:8] + bytes(8), 64) if event["family"] == 6 else text_of(source, 128)


def _moment(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _largest_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def page(document: dict[str, Any]) -> "list[RenderableType]":
    """For people: how much, what passed and what did not, then the bans in order."""
    from actors.admin import render, words

    frames, lost = document["frames"], document["dropped_frames"]
    share = f"{lost / frames:.1%} dropped" if frames else "no frames"
    said = f"{words.plural(frames, 'frame')}, {words.duration(document['seconds'])}, {share}"
    parts: list[RenderableType] = [render.heading(Path(document["file"]).name, said)]
    right = {"justify": "right", "no_wrap": True}
    rows = [
        (verdict, reason.replace("_", " "), words.count(count), f"{count / frames:.2%}")
        for verdict in ("dropped", "passed")
        for reason, count in document[verdict].items()
    ]
    parts.append(render.indented(render.table(["", "reason", ("frames", right), ("share", right)], rows)))
    parts += _bans_page(document["bans"])
    if document["cut_frames"]:
        said = (
            f"{words.plural(document['cut_frames'], 'frame')} longer than the kernel takes, judged by the first bytes"
        )
        parts.append(render.quiet(said))
    return parts


def _bans_page(made: list[dict[str, Any]]) -> "list[RenderableType]":
    from actors.admin import render, words

    if not made:
        return [render.heading("bans", "none would have been made")]
    rows = [
        (f"+{row['at_s']:.3f}s", row["subject"], row["reason"].replace("_", " "), row["to_port"] or "",
         words.count(row["dropped"]))
        for row in made[:SHOWN_BANS]
    ]  # fmt: skip
    columns: list[Column] = ["when", "subject", "why", "port", ("frames dropped", {"justify": "right"})]
    parts: list[RenderableType] = [
        render.heading("bans", words.plural(len(made), "ban")),
        render.indented(render.table(columns, rows)),
    ]
    if len(made) > SHOWN_BANS:
        parts.append(render.quiet(f"and {words.count(len(made) - SHOWN_BANS)} more: --json has all"))
    return parts
