"""Log lines: one JSON object per line on stderr, from our own code and from libraries alike.

Keys: ``ts`` (UTC), ``level``, ``event``, ``cell``, and what the line is about. Transitions are logged once; what
repeats is counted and, where a line helps, limited to one per period by ``OncePer``.
"""

import logging
import sys
import time
from typing import Any

import structlog

_PROCESSORS: tuple[Any, ...] = (
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
)


def configure(level: str = "info") -> None:
    """Send everything to stderr. Called once in each process that speaks; calling again changes the level.

    Libraries are heard from ``warning`` on, and from ``info`` on when our own level is ``debug``."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            *_PROCESSORS,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_PROCESSORS, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(max(threshold, logging.WARNING) if threshold > logging.DEBUG else logging.INFO)


def logger(**bound: Any) -> Any:
    """A structlog logger; ``bound`` keys appear on each of its lines."""
    return structlog.get_logger(**bound)


class OncePer:
    """Lets one line per key and period through, so that a flood of causes is not a flood of lines."""

    def __init__(self, period_s: float = 60.0) -> None:
        self._period_s = period_s
        self._next: dict[str, float] = {}

    def __call__(self, key: str) -> bool:
        """Whether a line about ``key`` may be written now. Keys must come from code, not from outside."""
        now = time.monotonic()
        if now < self._next.get(key, 0.0):
            return False
        self._next[key] = now + self._period_s
        return True
