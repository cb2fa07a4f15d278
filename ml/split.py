"""Clean traffic split by time: what is learned from, and what, later, it is calibrated with."""

from typing import Final

from ml.dataset import Table

#: Share of the clean period that is trained on.
FIT_SHARE: Final = 0.6


def split_by_time(table: Table, share: float = FIT_SHARE) -> tuple[Table, Table]:
    """(earlier, later): rows before the cut, and rows of flows that began after it. No flow is in both.

    A random split would put flows of one burst on both sides and flatter every figure."""
    cut = table.at_ns[0] + int(share * int(table.at_ns[-1] - table.at_ns[0]))
    return table.rows(table.at_ns < cut), table.rows(table.first_ns >= cut)
