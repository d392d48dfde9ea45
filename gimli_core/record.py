"""What is kept of a step, and what is told of it. Tensors here are detached, but for the graph of G_j."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gimli_core.derivatives.first_order import Gradient
from gimli_core.environment import Snapshot
from gimli_core.notation import State, Tensors

__all__ = ["Event", "Kept", "Point", "Record"]


class Point(NamedTuple):
    """All that is needed to run the loop on from step j."""

    j: int
    theta: Tensors
    state: State
    snapshot: Snapshot | None  # random numbers and buffers before step j, where something may need them again


class Record(NamedTuple):
    """Step j as it ran: where it started, and G_j (with its graph, if that was kept)."""

    point: Point
    gradient: Gradient
    validation: Gradient | None  # of L_val(theta_j), for losses along the way


class Kept(NamedTuple):
    """G_j alone, and the random numbers and buffers that its loss met."""

    gradient: Gradient
    snapshot: Snapshot


class Event(NamedTuple):
    """One line of Algorithm 1 as it ran.

    `values` is keyed by the paper's symbols, with the index that the line gives them: at line 6 of step j,
    "theta" is theta_{j+1}; at line 14, "B" is B_j. The engine goes on with what it finds in `values` when
    it is resumed: a consumer that puts another tensor there intervenes. `given` is what the line used.
    `replay` tells a step that had been run before.
    """

    line: int
    j: int
    values: dict[str, Any]
    replay: bool = False
    given: Mapping[str, Any] = MappingProxyType({})
