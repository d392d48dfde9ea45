"""What a call becomes once it is checked: its form, which holds no tensor, and its values, which are the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.approximation import Approximation
from gimli_core.derivatives.second_order import BY_GRAPH
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.meta_parameters.indexed import Indexed, Rows
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.problem import Problem
from gimli_core.processes.mesh import Mesh, Ranks
from gimli_core.processes.pieces import Pieces
from gimli_core.record import Ends
from gimli_core.transforms.interface import Transform
from gimli_core.transforms.nested import Places
from gimli_core.transforms.shards import Shards

__all__ = ["Form", "Parts", "Values"]

Parts = tuple[tuple[float, tuple[torch.Size, ...]], ...]  # the weight and the tensors' shapes of each part of a batch


@dataclass(frozen=True, eq=False)
class Form:
    """What is run, without a tensor of a call: two calls of one form differ in their values alone.

    Tensors that the optimizer itself was built with stay its own.
    """

    problem: Problem  # the losses as they are run
    optimizer: Optimizer  # as it is run, knowing which of its hyperparameters are learned
    steps: int
    weighted: tuple[bool, ...]  # whether L_val(theta_j) counts, for j = 0 … J
    warm: bool  # whether state_0 was given
    wanted: tuple[str, ...]  # the hyperparameters of phi_opt
    phi_loss: bool  # whether there is a phi_loss
    tasks: int | None
    scale: float  # what the sum of the tasks' losses is multiplied by; 1 for a single inner loop
    left_out: Approximation
    second_order: str  # the means of second-order products; `require` puts one that works in its place
    trained: tuple[str, ...]
    in_parts: Parts = ()  # of batches that come as MicroBatches: then no graph is kept, but each part evaluated again
    transforms: tuple[Transform, ...] = ()
    nested: Places = ()  # where the entries of phi_loss stand in what the user gave, if that had dicts in it
    given_by: tuple[Any, ...] = ()  # the code that is run where batches are asked for; None for what is only read
    mesh: Mesh | None = None  # the processes that share the run, if there are several
    journaled: str = ""  # of ranks that write what they store to a directory: a digest of what all start from
    recorded: bool = False  # whether autograd records the run, so that its results can be differentiated
    learned_start: bool = True  # whether B_0 is asked for; else the last step swept has no V_j Hessian

    @cached_property
    def first(self) -> int:
        """The step at which the sweep ends: J - k where it is truncated to k steps."""
        return self.left_out.first(self.steps)

    @cached_property
    def curvature(self) -> bool:
        """Whether line 14 has V_j Hessian."""
        return not self.left_out.first_order

    @cached_property
    def augmented(self) -> bool:
        """Whether the sweep carries S_j, the adjoint of the optimizer's state."""
        return not self.left_out.theta_only

    @property
    def recurrence(self) -> str:
        """How lines 11-14 are read."""
        return "augmented" if self.augmented else "theta_only"

    @cached_property
    def second_derivatives(self) -> bool:
        """Whether line 13 or 14 needs any."""
        return self.curvature or self.phi_loss

    @cached_property
    def keeps_graph(self) -> bool:
        """Whether second-order products are taken from the kept graph of G_j."""
        return self.second_derivatives and self.second_order in ("auto", BY_GRAPH) and not self.in_parts

    @cached_property
    def evaluates_again(self) -> bool:
        """Whether second-order products evaluate the inner loss again, at theta_j as it was kept."""
        return self.second_derivatives and not self.keeps_graph

    @property
    def in_shards(self) -> bool:
        """Whether each rank has a part of theta, s, B and S."""
        return self.mesh is not None and self.mesh.shard is not None

    @property
    def data(self) -> Ranks | None:
        """The ranks that each hold a part of every batch, if there are several."""
        return None if self.mesh is None else self.mesh.data

    @cached_property
    def pieces(self) -> Pieces | None:
        """How theta is cut over ranks, if it is."""
        return next((transform.pieces for transform in self.transforms if isinstance(transform, Shards)), None)

    @property
    def stores_parts(self) -> Ranks | None:
        """The ranks that are at the same (theta_j, s_j), if there are several: each stores a part of it.

        A journal has points as they are: each rank writes its own.
        """
        same = self.mesh is not None and not self.mesh.data_in_shards
        return self.data if same and not self.journaled else None

    def zero_loss(self, theta: Tensors) -> Tensor:
        """A tensor like the inner loss."""
        return next(iter(theta.values())).new_zeros(() if self.tasks is None else self.tasks)

    @cached_property
    def of_later_steps(self) -> Form:
        """The same where nobody asks for B_0: made once, and found again by the calls that take this form over."""
        return replace(self, learned_start=False)

    @property
    def approximation(self) -> str:
        """What the result leaves out, or the empty string."""
        missing = ["first order: line 14 without V_j Hessian"] * (not self.curvature)
        k = self.steps - self.first
        missing += [f"truncated: the last {k} of {self.steps} steps, the others as the identity"] * (self.first > 0)
        return "; ".join(missing)

    @cached_property
    def _gathering(self) -> list[Transform]:
        """The transforms that do something in `gathered`, the last first; likewise those of `part`."""
        return [t for t in reversed(self.transforms) if type(t).gathered is not Transform.gathered]

    @cached_property
    def _cutting(self) -> list[Transform]:
        return [t for t in self.transforms if type(t).part is not Transform.part]

    def names(self, theta: Tensors) -> Tensors:
        """theta, G or B of a run by the names of the tensors, for whoever looks at it."""
        for transform in reversed(self.transforms):
            theta = transform.names(theta)
        return theta

    def gathered(self, theta: Tensors, what: str, j: int | None = None) -> Tensors:
        """theta or V of a run as the losses are handed it; `what` says which, of which line, and j of which step."""
        for transform in self._gathering:
            where = what if j is None else f"{what} at inner step j = {j} of {self.steps}"
            theta = transform.gathered(theta, where)
        return theta

    def part(self, G: Tensors) -> Tensors:
        """What a derivative of the losses gives, as the run goes on with it."""
        for transform in self._cutting:
            G = transform.part(G)
        return G

    def total(self, A_opt: list[Tensor]) -> list[Tensor]:
        """A_opt of a run."""
        for transform in reversed(self.transforms):
            A_opt = transform.total(A_opt)
        return A_opt

    def back(self, ends: Ends) -> Ends:
        """The ends of a run in the form that the arguments came in."""
        for transform in reversed(self.transforms):
            ends = transform.back(ends)
        return ends


@dataclass(frozen=True, eq=False)
class Values:
    """The tensors of a call, in the form that is run."""

    theta_0: Tensors
    trained: Tensors  # theta_0 by name, before any transform
    frozen: Tensors  # what the trained entries are laid over: all of theta_0, in its order, if some are held constant
    state_0: State
    phi_loss: Tensors  # but for indexed entries
    hyper: Hyperparameters
    batch: Callable[[int], Any]
    val_batch: Callable[[int], Any]  # of j = 0 … J
    weights: tuple[float | None, ...]  # w_0 … w_J of L = Σ_j w_j L_val(theta_j); None: L_val is not evaluated there
    indexed: Mapping[str, Indexed] = field(default_factory=dict)  # of phi_loss: a row for each example
    rows: Callable[[int], dict[str, Rows]] | None = None  # of the indexed entries, by step
    cold: bool = False  # whether state_0 follows from theta_0 and the hyperparameters alone

    def phi_at(self, j: int) -> Tensors:
        """phi_loss as the inner loss of step j is handed it: of an indexed entry the rows of its batch."""
        if self.rows is None:
            return self.phi_loss
        return {**self.phi_loss, **{k: self.indexed[k].value[rows] for k, rows in self.rows_at(j).items()}}

    def rows_at(self, j: int) -> Tensors:
        """The rows of each indexed entry at step j."""
        return {} if self.rows is None else {k: rows.joined() for k, rows in self.rows(j).items()}

    @property
    def last_val_batch(self) -> Any:
        """The batch of the last L_val that has a weight."""
        return self.val_batch(max(j for j, w in enumerate(self.weights) if w is not None))
