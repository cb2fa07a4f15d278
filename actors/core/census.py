"""Census: what the states of the cells make of the layers and of the node. Derived whenever asked, never stored."""

from collections.abc import Sequence
from typing import Any

from actors.core.life import Life
from actors.core.messages import CellState

#: Worst first.
_ORDER = (CellState.DOWN, CellState.STARTING, CellState.DEGRADED, CellState.HEALTHY, CellState.OFF)


def worst(lives: Sequence[Life]) -> CellState:
    """The state of a group: that of its worst member that is meant to run."""
    states = {life.state for life in lives}
    return next((state for state in _ORDER if state in states), CellState.OFF)


def of_node(lives: Sequence[Life]) -> dict[str, Any]:
    """State, readiness, layers and counts. Ready: every cell that enforcement needs is up and past its start."""
    required = [life for life in lives if not life.spec.optional and life.state is not CellState.OFF]
    settled = all(life.up and life.state is not CellState.STARTING for life in required)
    ready = settled and any(life.up for life in lives)
    layers = dict.fromkeys(life.spec.layer for life in lives)
    state = worst(lives)
    if state is CellState.DOWN and all(life.up for life in required):
        state = CellState.DEGRADED
    return {
        "state": state.value if ready else CellState.STARTING.value,
        "ready": ready,
        "layers": {layer: worst([life for life in lives if life.spec.layer == layer]).value for layer in layers},
        "cells": {"all": len(lives), "healthy": sum(life.state is CellState.HEALTHY for life in lives)},
    }
