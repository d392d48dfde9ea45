"""The paper's requirements, tested before any work.

    I      L_val is differentiable in theta
    II     opt_j is differentiable in theta_j and G_j, and ell_j twice differentiable in theta_j, so that B_j can pass
    IIIa   opt_j is differentiable in phi_opt, where there is one
    IIIb   G_j is differentiable in phi_loss, or L_val is, where there is one

What each is needed for: appendix_proofs/requirements.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs, prepare
from gimli_core.arguments.trial import trial
from gimli_core.derivatives.second_order import Choice
from gimli_core.errors import RequirementError, notice
from gimli_core.notation import State
from gimli_core.problem import Problem
from gimli_core.requirements.each import (
    Requirement,
    requirement_I,
    requirement_II,
    requirement_IIIa,
    requirement_IIIb,
)
from gimli_core.requirements.parts import part_by_part, refuse_undecomposed
from gimli_core.requirements.probes import (
    probe_replay,
    refuse_edits,
    refuse_stray_tensors,
)

__all__ = ["Requirement", "Requirements", "check_requirements", "require"]


@dataclass(frozen=True)
class Requirements:
    """The verdict on I, II, IIIa and IIIb.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> gimli.check_requirements(problem, theta_0, [one], one).ok
    True
    """

    entries: tuple[Requirement, ...]

    @property
    def ok(self) -> bool:
        """Whether all requirements hold."""
        return all(entry.holds for entry in self.entries)

    def assert_ok(self) -> None:
        """Raise `RequirementError`, naming every requirement that fails and why."""
        failed = [f"requirement {entry.name} fails: {entry.why}" for entry in self.entries if not entry.holds]
        if failed:
            raise RequirementError("; ".join(failed))

    def __str__(self) -> str:
        return "\n".join(f"{e.name:5}{'holds' if e.holds else 'FAILS':7}{e.why}" for e in self.entries)


def check_requirements(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Any] | None = None,
    state_0: State | None = None,
) -> Requirements:
    """Which of requirements I, II, IIIa and IIIb a problem meets, judged at theta_0 and the first batch.

    An entry of phi_loss may matter at a later step only: IIIb asks every batch before it refuses one.

    Arguments as in `meta_gradient`, with the shapes that it says; it runs this by itself when it first meets a
    problem.

    Returns:
        Requirements: `.entries`, `.ok`, `.assert_ok()`; printing it gives a table.

    Raises:
        ArgumentError: an argument that is wrong by itself.

    Cost: 13F, and the memory of one step; 9F more a step while an entry of phi_loss is not yet seen to matter.
    Source: Grefenstette et al. 2019, Section 2.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return theta["w"].sum() + phi["c"]            # c shifts the loss, and never its gradient
    >>> problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"].sum() ** 2, gimli.optimizers.SGD(lr=0.1))
    >>> theta_0, phi_loss = {"w": torch.ones(2)}, {"c": torch.tensor(1.0)}
    >>> gimli.check_requirements(problem, theta_0, lambda j: None, None, steps=2, phi_loss=phi_loss).ok
    False
    """
    call = Call(problem, theta_0, train_batches, val_batch, steps, phi_opt, phi_loss, state_0)
    return examine(part_by_part(prepare(call)))[0]


def examine(inputs: Inputs) -> tuple[Requirements, Choice | None]:
    """The verdict for checked inputs, and the means of their second-order products.

    The losses are only tried: see trial.py.
    """
    try:
        with trial(inputs) as tried:
            first, explicit = requirement_I(tried)
        entries, choice = [first], None
        if inputs.form.steps > 0:
            with trial(inputs) as tried:
                second, choice = requirement_II(tried)
                entries += [second, requirement_IIIa(tried)]
            if second.holds:  # without a second derivative IIIb cannot be asked
                with trial(inputs) as tried:
                    entries.append(requirement_IIIb(tried, explicit, choice))
        return Requirements(tuple(entries)), choice
    except Exception as error:
        error.add_note("while the requirements were tested, at theta_0, before any step")
        raise


def require(
    inputs: Inputs, *, replays: bool, tied: bool = False, first: Callable[[Inputs], None] = lambda inputs: None
) -> Inputs:
    """Raise unless the requirements hold; once per problem and shapes. Returns the inputs with means that work.

    With `replays`, the inner loss must also be replayable. The losses must leave what they are called with as it is,
    and not reach tensors whose gradient would be missing; when `tied` into autograd, a batch's would be missing too.
    Where they are tried, `first` is called before, with the inputs as they are tried.
    """
    seen = inputs.form.problem.memo.examined
    shapes = tuple((k, v.shape) for k, v in (*inputs.values.theta_0.items(), *inputs.values.phi_loss.items()))
    shapes += tuple((k, v.value.shape) for k, v in inputs.values.indexed.items())
    means = (inputs.form.second_order, inputs.form.second_derivatives, inputs.form.in_parts)
    signature = (shapes, inputs.form.wanted, inputs.form.steps > 0, replays, tied, means)
    if signature in seen:
        return _by(inputs, seen[signature])
    tried = part_by_part(inputs)
    first(tried)
    verdict, choice = examine(tried)
    verdict.assert_ok()
    refuse_undecomposed(inputs)
    if choice is not None and choice.mean is not None:
        inputs = _by(inputs, choice.mean)
        _tell(inputs.form.problem, choice)
    values = refuse_edits(tried)
    if (replays or inputs.form.evaluates_again) and inputs.form.steps > 0:
        probe_replay(tried)
    refuse_stray_tensors(tried, values, tied=tied)
    seen[signature] = inputs.form.second_order
    return inputs


def _by(inputs: Inputs, mean: str) -> Inputs:
    """The inputs with the means of second-order products that work."""
    return replace(inputs, form=replace(inputs.form, second_order=mean))


def _tell(problem: Problem, choice: Choice) -> None:
    """Say once per problem which means took the place of others, and why."""
    message = f"second_order: {choice.mean} is used for train_loss, since another fails: {choice}"
    if choice.reasons and message not in problem.memo.told:
        problem.memo.told.add(message)
        notice(message)
