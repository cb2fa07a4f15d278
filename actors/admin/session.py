"""One call of the command line: settings, the connection to the service, and how failures end it.

Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 missing privilege, 5 service unreachable, 6 degraded,
78 wrong settings (sysexits' EX_CONFIG, which service managers do not restart).
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from actors.core.errors import NotFound, ServiceNotRunning, TegumentarError, Unavailable

if TYPE_CHECKING:
    from actors.core.client import Client
    from config.load import Loaded

P = ParamSpec("P")

#: Who asks, for the record; the supervisor adds the user's number, which the kernel tells it.
BY = "cli"
#: A part of a page that is not there by then is shown as missing. Seconds.
PART_LIMIT_S = 0.5


class Exit(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    PRIVILEGE = 4
    UNREACHABLE = 5
    DEGRADED = 6
    CONFIG = 78


@dataclass
class Call:
    """What was said before the verb: which settings file, which interfaces."""

    config: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> "Loaded":
        """The settings of this call; wrong ones end it with one sentence each and code 78."""
        from config.load import load

        with _settings_told():
            return load(self.options, config=self.config)

    @contextmanager
    def service(self) -> Iterator["Client"]:
        """The running service of this node. Never starts one; where none runs, wrong settings are told first."""
        from actors.core.client import connect
        from config.sources import run_directory

        with _settings_told():
            directory = run_directory(self.config)
        try:
            client = connect(directory)
        except ServiceNotRunning:
            self.load()
            raise
        try:
            yield client
        finally:
            client.close()


@contextmanager
def _settings_told() -> Iterator[None]:
    """Wrong settings become one sentence each and code 78."""
    from config.sources import SettingsError

    try:
        yield
    except SettingsError as exc:
        for problem in exc.problems:
            say_error(problem, "python run.py config check tells whether all is well")
        raise typer.Exit(Exit.CONFIG) from exc


def of(ctx: typer.Context) -> Call:
    call = ctx.find_root().obj
    return call if isinstance(call, Call) else Call()


def part(client: "Client", verb: str, args: dict[str, Any] | None = None) -> Any:
    """One part of a page: what its cell answers, or a ``problem`` in its place: one absent cell hides no other."""
    try:
        return client.ask(verb, args or {}, by=BY, timeout_s=PART_LIMIT_S)
    except Unavailable as exc:
        return {"problem": str(exc), "remedy": exc.remedy}


def absent(value: Any) -> bool:
    """Whether a part is not there, or only the account of why."""
    return value is None or (isinstance(value, dict) and "problem" in value and set(value) <= {"problem", "remedy"})


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a verb: what it raises becomes a sentence, a remedy and an exit code, never a traceback."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = kwargs.get("as_json") is True
        try:
            function(*args, **kwargs)
        except TegumentarError as exc:
            fail(str(exc), exc.remedy, _code(exc), as_json)
        except PermissionError as exc:
            fail(f"this needs more rights: {exc}", "run it as root", Exit.PRIVILEGE, as_json)
        except ValueError as exc:
            fail(str(exc), "", Exit.USAGE, as_json)
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(Exit.OK) from None
        except KeyboardInterrupt:
            raise typer.Exit(Exit.OK) from None

    return guarded


def fail(problem: str, remedy: str, code: int, as_json: bool = False) -> None:
    """End the call. A program that asked for JSON finds the problem in the one document on stdout too."""
    say_error(problem, remedy)
    if as_json:
        emit({"problem": problem, "remedy": remedy, "exit_code": int(code)})
    raise typer.Exit(int(code))


def say_error(problem: str, remedy: str = "") -> None:
    typer.echo(f"tegumentar: {problem}", err=True)
    if remedy:
        typer.echo(f"  what to do: {remedy}", err=True)


def emit(document: Any) -> None:
    """The one JSON document of a call, on stdout."""
    typer.echo(json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=str))


def _code(error: TegumentarError) -> Exit:
    if isinstance(error.__cause__, PermissionError):
        return Exit.PRIVILEGE
    if isinstance(error, NotFound):
        return Exit.NOT_FOUND
    return Exit.UNREACHABLE if isinstance(error, Unavailable) else Exit.ERROR
