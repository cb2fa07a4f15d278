"""What a cell believes about where a frame comes from."""

import pytest

from actors.core.lifecycle import Introduction
from actors.core.messages import CellState
from actors.core.peers import Peers, Standing


def row(state: CellState, *, incarnation: int = 2, up: bool = False, pid: int = 0) -> Introduction:
    return Introduction(cell="merkel", state=state, incarnation=incarnation, up=up, pid=pid)


@pytest.mark.parametrize(
    ("known", "incarnation", "pid", "standing"),
    [
        (None, 1, 7, Standing.NEW),
        (row(CellState.HEALTHY, up=True, pid=7), 2, 7, Standing.KNOWN),
        (row(CellState.HEALTHY, up=True, pid=7), 2, 8, Standing.STALE),
        (row(CellState.HEALTHY, up=True, pid=7), 1, 7, Standing.STALE),
        (row(CellState.HEALTHY, up=True, pid=7), 3, 9, Standing.NEW),
        (row(CellState.STARTING), 2, 7, Standing.NEW),
        (row(CellState.STARTING), 1, 7, Standing.STALE),
        (row(CellState.DOWN), 2, 7, Standing.STALE),
    ],
)
def test_a_source_is_believed_only_as_the_living_incarnation_and_awaited_while_it_starts(
    known: Introduction | None, incarnation: int, pid: int, standing: Standing
):
    peers = Peers("gateway")

    if known is not None:
        peers.learn(known)

    assert peers.standing("merkel", incarnation, pid) is standing
