"""Words for people: durations, times, counts. Pure functions."""

import re
import time

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_PARTS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))
MAX_DURATION_S = 31_536_000.0


def parse_duration(text: str) -> float:
    """``90``, ``45s``, ``10m``, ``2h``, ``1d`` or ``1h30m`` as seconds, up to a year. Raises ValueError."""
    if not re.fullmatch(r"\s*(?:\d{1,9}|(?:\d{1,9}[smhd]\s*)+)\s*", text, re.ASCII):
        raise ValueError(f"{text!r} is no duration; write 90, 45s, 10m, 2h, 1d or 1h30m")
    seconds = float(sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd]?)", text)))
    if not 0 < seconds <= MAX_DURATION_S:
        raise ValueError(f"{text!r} is not between one second and a year")
    return seconds


def duration(seconds: float) -> str:
    """At most two parts, the largest first: ``4m 10s``, ``2h``, ``3d 4h``; below ten seconds with a decimal."""
    if seconds < 0:
        return "0s"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}s"
    left = round(seconds)
    said = []
    for size, unit in _PARTS:
        count, left = divmod(left, size)
        if count:
            said.append(f"{count}{unit}")
        elif said:
            break
    return " ".join(said[:2]) or "0s"


def remaining(until_unix_s: float, now_unix_s: float | None = None) -> str:
    """Time left until a wall-clock second; ``until released`` for 0, which means for ever."""
    if not until_unix_s:
        return "until released"
    left = until_unix_s - (time.time() if now_unix_s is None else now_unix_s)
    return duration(left) if left > 0 else "expired"


def ago(at_unix_s: float, now_unix_s: float | None = None) -> str:
    if not at_unix_s:
        return "never"
    passed = (time.time() if now_unix_s is None else now_unix_s) - at_unix_s
    return f"{duration(passed)} ago" if passed >= 1 else "just now"


def count(number: float) -> str:
    """Whole numbers in groups of three: ``1,234,567``."""
    return f"{round(number):,}"


def plural(number: int, thing: str, things: str = "") -> str:
    return f"{count(number)} {thing if number == 1 else things or thing + 's'}"
