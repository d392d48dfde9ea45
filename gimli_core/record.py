"""What is kept of a step, what is told of it, and what a run ends with. Tensors here are detached, but for the graph of
G_j.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from gimli_core.derivatives.first_order import Gradient
from gimli_core.environment import Snapshot
from gimli_core.notation import State, Tensors

__all__ = ["Ends", "Event", "Kept", "Outcome", "Point", "Record", "Swept"]


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


class Swept(NamedTuple):
    """What the sweep of one step returns."""

    B: Tensors  # B_j
    S: State  # S_j
    A_opt: dict[str, Tensors]  # the increment of line 12, {tensor: {hyperparameter: adjoint}}
    A_loss: Tensors  # the increment of line 13
    loss: Tensor | None  # ell_j, where the second-order products evaluated it again
    same: Tensor | None = None  # ell_j, where line 5 was run again: to the same bits


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


class Ends(NamedTuple):
    """Where the unroll and the sweep end."""

    theta_J: Tensors
    s_J: State
    B: Tensors  # B_0, or B_{J-k} of a sweep of the last k steps
    S: State


class Outcome(NamedTuple):
    """What a run has computed. With T tasks each loss is [T]."""

    val_loss: Tensor  # L = Σ_j w_j L_val(theta_j); over tasks their mean or sum
    of_each: Tensor  # the same, of each task
    train_losses: Tensor  # [J], or [J, T]
    val_losses: Tensor  # [J + 1]: L_val(theta_j), nan where it was not evaluated; or [J + 1, T]
    ends: Ends
    buffers_J: Tensors
    A_opt: list[Tensor]  # one accumulator for each tensor of phi_opt; what s_0 adds is not in it yet
    A_loss: Tensors
    aux: tuple[Any, Any] = (None, None)  # what the inner and the outer losses returned besides
