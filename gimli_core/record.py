"""What is kept of a step, what is told of it, and what a run ends with. Tensors here are detached, but for the graph of
G_j.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from gimli_core.derivatives.first_order import Gradient
from gimli_core.environment import Snapshot
from gimli_core.notation import State, Tensors

__all__ = ["Adjoint", "Again", "Ends", "Event", "Kept", "Outcome", "Point", "Record", "Swept"]


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
    validation: list[Gradient] | None  # of L_val(theta_j), one for each outer loss, for losses along the way


class Kept(NamedTuple):
    """G_j alone, and the random numbers and buffers that its loss met."""

    gradient: Gradient
    snapshot: Snapshot


class Swept(NamedTuple):
    """What the sweep of one step returns, for one outer loss."""

    B: Tensors  # B_j
    S: State  # S_j
    A_opt: dict[str, Tensors]  # the increment of line 12, {tensor: {hyperparameter: adjoint}}
    A_loss: Tensors  # the increment of line 13
    loss: Tensor | None  # ell_j, where the second-order products evaluated it again


class Adjoint(Protocol):
    """What the sweep of one outer loss carries, and adds to."""

    B: Tensors
    S: State

    def add_step(self, j: int, swept: Swept) -> None: ...


class Again(NamedTuple):
    """ell_j of a step, wherever its sweep evaluated the inner loss again."""

    roughly: Tensor | None = None  # by other operations than at first
    exactly: Tensor | None = None  # by the same, so to the same bits


class Event(NamedTuple):
    """One line of Algorithm 1 as it ran.

    `values` is keyed by the paper's symbols, with the index that the line gives them: at line 6 of step j,
    "theta" is theta_{j+1}; at line 14, "B" is B_j. The engine goes on with what it finds in `values` when
    it is resumed: a consumer that puts another tensor there intervenes. `inputs` are what the line used.
    `replay` tells a step that had been run before.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> seen = []
    >>> _ = gimli.meta_gradient(problem, theta_0, [one], one, watch=seen.append)
    >>> [(event.line, event.j) for event in seen]
    [(5, 0), (6, 0), (8, 1), (9, 1), (11, 0), (12, 0), (13, 0), (14, 0)]
    """

    line: int
    j: int
    values: dict[str, Any]
    replay: bool = False
    inputs: Mapping[str, Any] = MappingProxyType({})
    row: int = 0  # of which outer loss, where val_loss returns a vector; lines 9 and 11-14 come for each
    rows: int = 1  # how many there are


class Ends(NamedTuple):
    """Where the unroll and the sweep end."""

    theta_J: Tensors
    s_J: State
    B: Tensors  # B_0, or B_{J-k} of a sweep of the last k steps
    S: State


class Outcome(NamedTuple):
    """What a run has computed of one outer loss. With T tasks each loss is [T]; with k outer losses each has all k."""

    val_loss: Tensor  # L = Σ_j w_j L_val(theta_j), [] or [k]; over tasks their mean or sum
    of_each: Tensor  # the same, of each task, [T] or [T, k]
    train_losses: Tensor  # [J], or [J, T]
    val_losses: Tensor  # [J + 1]: L_val(theta_j), nan where it was not evaluated; or [J + 1, T]; and k last
    ends: Ends
    buffers_J: Tensors
    A_opt: list[Tensor]  # one accumulator for each tensor of phi_opt; what s_0 adds is not in it yet
    A_loss: Tensors
    aux: tuple[Any, Any] = (None, None)  # what the inner and the outer losses returned besides
