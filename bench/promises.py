"""Promises about scripts that print figures of their own (``--json``): which figure, in what unit, and what it must be.

A figure that is not named here is shown for information.
"""

import json
from typing import Any, Final

from bench.claims import Claim

#: script → figure → (unit, limit, whether more is better)
PROMISES: Final[dict[str, dict[str, tuple[str, float, bool]]]] = {
    "ml_speed": {
        "end_to_end_flows_per_s": ("flows/s", 300_000, True),
        "feature_build_times_plain_loop": ("times", 15, True),
        "verdict_age_p99_s": ("s", 1.5, False),
    },
    "signatures_speed": {"mb_per_s": ("MB/s", 300, True)},
    "signatures_oracle": {
        "recall_outside_http_evasion": ("of 1", 0.95, True),
        "recall_http_evasion": ("of 1", 0.85, True),
        "specificity": ("of 1", 0.95, True),
    },
    "sessions_flood": {"verdict_age_p99_s": ("s", 1.5, False), "scanner_found": ("of 1", 1, True)},
}


def claims_of(script: str, printed: str) -> list[Claim]:
    """The figures of one script as claims; empty when it printed something else than one JSON object."""
    try:
        figures = json.loads(printed)
    except ValueError:
        return []
    promised = PROMISES.get(script, {})
    return [
        _claim(name, value, *promised.get(name, ("", None, False)))
        for name, value in (figures.items() if isinstance(figures, dict) else ())
        if isinstance(value, int | float)
    ]


def _claim(name: str, value: Any, unit: str, limit: float | None, more_is_better: bool) -> Claim:
    what = name.replace("_", " ")
    return Claim(what=what, entries=0, ours=float(value), unit=unit, limit=limit, more_is_better=more_is_better)
