"""A transform: a problem in another form, and what a run of it computed put back.

    problem            the same losses, in the other form
    theta              theta_0 (or any theta, G or B) into that form
    hyper              the hyperparameters of one step into that form
    names              theta in that form back to its tensors by name, of the form before
    whole              theta, or V, in that form as the losses of that form are handed it
    part               what a derivative of these losses gives, in that form
    total              A_opt, of which a run in that form has only a part of a sum
    back               the ends of a run back: theta_J and s_J as they are, B_0 and S_0 as adjoints are

Beside it stands the optimizer in that form, a `RuleInAnotherForm` where the problem's own does not do. What both are
given and give are `Tensors` and `State` of notation.py, keyed as that form names them; the rule's increments of A stay
`{tensor: {hyperparameter: adjoint}}` by the names before. With theta' = T(theta), the losses are ell(T^-1(theta')), and

    theta'_{j+1} = T(opt(T^-1(theta'_j), s_j, G_j)),   B_0 = B'_0 dT(theta_0)/dtheta_0

A run is put into a form before it begins (runs/make_run.py), by `inputs.through(transform, rule, theta_0=…, …)`, with
the values that are others in it; what follows, every schedule and every compiled run, is the same. Tasks
(over_tasks.py), one vector (one_vector.py) and pieces on ranks (shards.py) are put so; the shortest is in
tests/transforms/test_new_form.py.

All of them are pure functions of tensors, so that one may be compiled together with the run between them. Transforms
are applied in turn, each to what the one before it made, and taken back in the opposite order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.problem import Problem
from gimli_core.record import Ends

__all__ = ["RuleInAnotherForm", "Transform"]


@dataclass(frozen=True, eq=False)
class RuleInAnotherForm(Optimizer):
    """Base of a rule in a transform's form: `rule`, which has checked itself, on tensors in that form.

    What a loss does not use it lacks in that form too, so step and pullback go on as `rule` does without it: they call
    `rule.step_used` and `rule.pullback_used`.
    """

    rule: Optimizer = field(kw_only=True)

    def __post_init__(self) -> None:
        pass

    def seen(self) -> tuple[str, ...]:
        return self.rule.seen()

    def moved_by_gradient(self, names: Collection[str]) -> Collection[str]:
        return self.rule.moved_by_gradient(names)

    def step_used(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        return self.step(theta, state, G, hyper)

    def pullback_used(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        return self.pullback(theta, state, G, hyper, B, S, wanted)


class Transform(ABC):
    """A form of a problem; see the module's docstring."""

    @abstractmethod
    def problem(self, problem: Problem) -> Problem:
        """The losses in this form; one problem for one form, or nothing that is compiled for it is found again."""

    @abstractmethod
    def theta(self, theta: Tensors) -> Tensors:
        """theta in this form."""

    def hyper(self, hyper: Hyper) -> Hyper:
        """The hyperparameters of one step in this form."""
        return hyper

    def names(self, theta: Tensors) -> Tensors:
        """theta of this form as it was before."""
        return theta

    def gathered(self, theta: Tensors, what: str) -> Tensors:
        """theta of this form, or V, as the losses are handed it. `what` it is, and where, for messages."""
        return theta

    def part(self, G: Tensors) -> Tensors:
        """What a derivative of the losses gives, in this form."""
        return G

    def total(self, A_opt: list[Tensor]) -> list[Tensor]:
        """A_opt of a run in this form."""
        return A_opt

    @abstractmethod
    def back(self, ends: Ends) -> Ends:
        """What a run in this form ends with, as the form before has it."""
