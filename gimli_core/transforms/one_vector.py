"""All small tensors as one vector: one chain of operations a step of an elementwise rule, not one a tensor.

theta is `{name: vector}`, of one name. The losses see their tensors by name, as views of it; the rule is the
elementwise one on a single tensor. Every element has the bits that the rule alone would give it, and increments of A
are summed tensor by tensor, in the order in which they would be without this form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._nn import flatten_dense_tensors

from gimli_core.notation import COUNTS, Hyper, Loss, State, Tensors
from gimli_core.optimizers.counting import next_step
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.tensorwise import SMALL, ElementwiseOptimizer, by_element_alone
from gimli_core.problem import Problem
from gimli_core.record import Ends
from gimli_core.transforms.interface import RuleInAnotherForm, Transform

__all__ = ["LeftAlone", "OneVector", "one_vector"]

NUMBERS = SMALL  # beyond, joining the tensors costs more than it saves
_View = tuple[str, tuple[int, ...] | None]  # a tensor's name and shape, unless its part of the vector has that already


class LeftAlone(Exception):
    """A step's loss does not use a tensor of the vector: a rule must leave it alone, and the tensors must stay
    apart."""

    def __init__(self, j: int, names: Collection[str]) -> None:
        super().__init__(f"train_loss does not use {', '.join(map(repr, names))} at inner step j = {j}")
        self.names = tuple(names)


@dataclass(frozen=True, eq=False)
class OneVector(Transform):
    """The tensors of theta as one vector `[n]`, or `[T, n]` with tasks.

    Args:
        shapes: `{name: shape}`, of one task.
        scalars: names of the hyperparameters that all tensors share as one number; the others are one an element.
        tasks: T, where tensors are `[T, …]`; all hyperparameters are then shared by the tasks.
        taken: names of theta that the losses see besides, held constant.

    Cost: views; the gradient comes out as one vector by itself.
    """

    shapes: Mapping[str, torch.Size]
    scalars: frozenset[str]
    tasks: int | None
    taken: frozenset[str]

    name: str = field(init=False)  # under which the vector stands in theta
    lead: tuple[int, ...] = field(init=False)
    sizes: list[int] = field(init=False)
    flat: tuple[int, ...] = field(init=False)  # the shape of a tensor's part of the vector, of any length
    views: tuple[list[_View], list[_View]] = field(init=False)  # of a vector, and of one with the tasks in front

    def __post_init__(self) -> None:
        name = "all tensors"
        while name in self.taken or name in self.shapes:  # a name is data: someone may have used this one
            name += "'"
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "lead", () if self.tasks is None else (self.tasks,))
        object.__setattr__(self, "sizes", [shape.numel() for shape in self.shapes.values()])
        object.__setattr__(self, "flat", (*self.lead, -1))
        object.__setattr__(self, "views", (self._views(()), self._views(self.lead)))

    def _views(self, lead: tuple[int, ...]) -> list[_View]:
        return [(k, None if len(shape) == 1 else (*lead, *shape)) for k, shape in self.shapes.items()]

    def problem(self, problem: Problem) -> Problem:
        """Made once a problem and layout, so that what is compiled for it is found again."""
        key = ("one vector", tuple(self.shapes.items()), self.tasks, self.name)
        if key not in problem.memo.forms:
            losses = {name: _LossOnVector(getattr(problem, name), self) for name in ("train_loss", "val_loss")}
            problem.memo.forms[key] = Problem(**losses, optimizer=problem.optimizer, modules=problem.modules)
            problem.memo.forms[key].memo.patience = problem.memo.patience
        return problem.memo.forms[key]

    def rule(self, rule: ElementwiseOptimizer) -> Optimizer:
        """A rule in this form."""
        return _RuleOnVector(rule=rule, layout=self)

    def theta(self, theta: Tensors) -> Tensors:
        if self.tasks is None:  # at half the time
            return {self.name: flatten_dense_tensors([theta[k] for k in self.shapes])}
        flat = self.flat
        return {self.name: torch.cat([theta[k].reshape(flat) for k in self.shapes], -1)}

    def names(self, theta: Tensors) -> Tensors:
        """Views of the vector, by name. `[n]`, or with the tasks' dimension in front where it still has that."""
        vector = theta[self.name]
        parts = zip(vector.split_with_sizes(self.sizes, -1), self.views[vector.ndim > 1], strict=True)
        return {k: part if shape is None else part.view(shape) for part, (k, shape) in parts}

    def hyper(self, hyper: Hyper) -> Hyper:
        """One number for all as it is, one an element in a vector too."""
        first = next(iter(hyper.values()))
        return {self.name: {n: v if n in self.scalars else self._wide(n, hyper) for n, v in first.items()}}

    def hyper_by_name(self, hyper: Hyper) -> Hyper:
        """The hyperparameters of a step by the names of the tensors."""
        by_name: Hyper = {k: {} for k in self.shapes}
        for name, value in hyper[self.name].items():
            parts = value.split(self.sizes, -1) if name not in self.scalars else [value] * len(self.sizes)
            for (k, shape), part in zip(self.shapes.items(), parts, strict=True):
                by_name[k][name] = part if name in self.scalars else part.reshape((*self.lead, *shape))
        return by_name

    def _wide(self, name: str, hyper: Hyper) -> Tensor:
        wide = torch.cat([hyper[k][name].reshape(-1) for k in self.shapes])
        return wide.expand(*self.lead, len(wide))

    def back(self, ends: Ends) -> Ends:
        theta_J, B = self.names(ends.theta_J), self.names(ends.B)
        return Ends(theta_J, self.state_by_name(ends.s_J), B, self.state_by_name(ends.S))

    def state_by_name(self, state: State) -> State:
        """A state of vectors as `{slot: {name: tensor}}`."""
        return {slot: of_slot if slot in COUNTS else self.names(of_slot) for slot, of_slot in state.items()}

    def state(self, by_name: State) -> State:
        """A state `{slot: {name: tensor}}` as one of vectors."""
        return {slot: of_slot if slot in COUNTS else self.theta(of_slot) for slot, of_slot in by_name.items()}

    def by_tensor(self, A: Tensors) -> dict[str, Tensors]:
        """Increments of the vector by tensor, each summed as its own: in what order changes the last bits."""
        increments: dict[str, Tensors] = {k: {} for k in self.shapes}
        for name, increment in A.items():
            parts = increment.contiguous().split_with_sizes(self.sizes, -1)
            if name in self.scalars:
                wide = torch.promote_types(increment.dtype, torch.float32)
                for of_tensor, part in zip(increments.values(), parts, strict=True):
                    of_tensor[name] = part.sum(-1, dtype=wide)
                continue
            for (k, shape), part in zip(self.shapes.items(), parts, strict=True):
                increments[k][name] = part.reshape((*self.lead, *shape))
        return increments


class _LossOnVector:
    """A loss that is handed the vector, and sees its tensors by name.

    What is told apart by tensor (derivatives/first_order.py) takes `loss` and `layout` from it.
    """

    def __init__(self, loss: Loss, layout: OneVector) -> None:
        self.loss, self.layout = loss, layout
        self.shape = getattr(loss, "shape", ())

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        return self.loss(self._by_name(theta), phi_loss, batch)

    def vectorised(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        """The same where a loss over tasks must not run one task after the other."""
        loss = getattr(self.loss, "vectorised", self.loss)
        return loss(self._by_name(theta), phi_loss, batch)

    def _by_name(self, theta: Tensors) -> Tensors:
        tensors = dict(theta)  # what is held constant keeps its place: some losses take theta.values() apart by it
        vector = tensors.pop(self.layout.name)
        return {**tensors, **self.layout.names({self.layout.name: vector})}


@dataclass(frozen=True, eq=False)
class _RuleOnVector(RuleInAnotherForm):
    """`rule` on the one tensor, with increments of A by the names of the many.

    The vector is no single number, and no step leaves it alone (`LeftAlone`), so nothing of either is looked after.
    """

    rule: ElementwiseOptimizer = field(kw_only=True)
    layout: OneVector = field(kw_only=True)

    def seen(self) -> tuple[str, ...]:
        return ()  # else there is no vector

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.rule.initial_state(theta, hyper)

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        if type(self.rule).initial_state_pullback is Optimizer.initial_state_pullback:
            return {}
        # Of a state that is split by tensor, as without this form: the pullback of a start has sums of its own.
        return self.rule.initial_state_pullback(
            self.layout.state_by_name(S_0), self.layout.hyper_by_name(hyper), wanted
        )

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        k, steps = self.layout.name, next_step(state["step"])
        s = {slot: of_slot[k] for slot, of_slot in state.items() if slot not in COUNTS}
        theta_k, s_k = self.rule._step(theta[k], s, G[k], hyper[k], steps)
        return {k: theta_k}, {"step": steps, **{slot: {k: v} for slot, v in s_k.items()}}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        k = self.layout.name
        s, S_k = {slot: state[slot][k] for slot in S}, {slot: of_slot[k] for slot, of_slot in S.items()}
        V, B_j, S_j, thunks = self.rule._pullback(theta[k], s, G[k], hyper[k], next_step(state["step"]), B[k], S_k)
        A = self.layout.by_tensor({name: thunks[name]() for name in wanted if name in thunks})
        return Pulled({k: V}, {k: B_j}, {slot: {k: S_j[slot]} for slot in S}, A)


def one_vector(
    optimizer: Optimizer,
    theta: Tensors,
    shapes: Mapping[str, torch.Size],
    scalars: Collection[str],
    numbers: Collection[str],
    tasks: int | None,
    taken: Collection[str],
) -> OneVector | None:
    """The layout for an elementwise rule over the tensors of theta, tasks included; None where it does not pay.

    `scalars` names hyperparameters that are one number for all tensors, `numbers` those that are a number for some
    tensor, and so are used in float64: spread over the elements they would be rounded to theta's dtype, and the bits
    would no longer be those of the rule alone.
    """
    small = len(theta) > 1 and sum(v.numel() for v in theta.values()) <= NUMBERS
    if not by_element_alone(optimizer) or optimizer.seen():
        return None
    alike = len({v.dtype for v in theta.values()}) == 1
    if not small or not alike or not set(numbers) <= set(scalars):
        return None
    return OneVector(shapes, frozenset(scalars), tasks, frozenset(taken))
