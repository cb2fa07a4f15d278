"""What the commands learn from: a table of ml.extract, or the learning pool of a node. The same arguments for all."""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml.dataset import Table
from ml.pool import MOST_ROWS, QUARANTINE_S, Pool, pool_dir
from ml.split import FIT_SHARE, split_by_time


@dataclass(frozen=True, slots=True)
class Material:
    """own: the node's addresses where the pool says them, None where they are to be guessed. facts: for the card;
    remarks: for people."""

    table: Table
    share: float
    own: NDArray[np.void] | None = None
    facts: dict[str, object] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def earlier(self) -> Table:
        """What is trained on."""
        return split_by_time(self.table, self.share)[0]

    @property
    def later(self) -> Table:
        """What a trained model has not seen."""
        return split_by_time(self.table, self.share)[1]


def add_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    data = parser.add_mutually_exclusive_group(required=required)
    data.add_argument("--table", type=Path, help="table of ml.extract, of clean traffic")
    data.add_argument("--pool", type=Path, nargs="?", const=pool_dir(), help="learning pool, this node's by default")
    parser.add_argument("--share", type=float, default=FIT_SHARE, help="earlier share that is trained on (0.6)")
    parser.add_argument(
        "--quarantine-hours", type=float, default=QUARANTINE_S / 3600, help="how old a segment of the pool must be (24)"
    )
    parser.add_argument("--rows", type=int, default=MOST_ROWS, help=f"snapshots to take of the pool ({MOST_ROWS})")


def read(args: argparse.Namespace) -> Material:
    """Raises TableError."""
    if args.table is not None:
        return Material(Table.load(args.table), args.share)
    lesson = Pool(args.pool).clean(time.time(), args.quarantine_hours * 3600, args.rows)
    remarks = [f"passed over: {problem}" for problem in lesson.unread]
    if lesson.left_out:
        remarks.append(f"left out: {lesson.left_out} sources that were blamed")
    facts = {
        "pool_segments": lesson.segments,
        "pool_sources_left_out": lesson.left_out,
        "pool_least_share_of_sources": f"{lesson.kept:g}",
        "quarantine_hours": f"{args.quarantine_hours:g}",
    }
    return Material(lesson.table, args.share, lesson.own, facts, remarks)
