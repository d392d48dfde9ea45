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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs, prepare
from gimli_core.derivatives.first_order import Graph, differentiate, evaluate, gradient
from gimli_core.derivatives.second_order import BY_GRAPH, Choice, Products, choose, from_a_point, reverse_over_reverse
from gimli_core.errors import RequirementError, notice
from gimli_core.notation import State, Tensors
from gimli_core.problem import Problem
from gimli_core.requirements.probes import (
    probe_replay,
    refuse_edited_batches,
    refuse_once_differentiable,
    refuse_stray_tensors,
)
from gimli_core.requirements.trial import trial

__all__ = ["Requirement", "Requirements", "check_requirements", "require"]


class Requirement(NamedTuple):
    """One requirement and whether the problem meets it."""

    name: str
    holds: bool
    why: str


@dataclass(frozen=True)
class Requirements:
    """The verdict on I, II, IIIa and IIIb."""

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
    phi_loss: Mapping[str, Tensor] | None = None,
    state_0: State | None = None,
) -> Requirements:
    """Which of requirements I, II, IIIa and IIIb a problem meets, judged at theta_0 and the first batch.

    An entry of phi_loss may matter at a later step only: IIIb asks every batch before it refuses one.

    Arguments as in `meta_gradient`, which runs this by itself when it first meets a problem.

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
    return examine(prepare(call))[0]


def examine(inputs: Inputs) -> tuple[Requirements, Choice | None]:
    """The verdict for checked inputs, and the means of their second-order products.

    The losses are only tried: see trial.py.
    """
    try:
        with trial(inputs) as tried:
            first, explicit = _requirement_I(tried)
        entries, choice = [first], None
        if inputs.form.steps > 0:
            with trial(inputs) as tried:
                second, choice = _requirement_II(tried)
                entries += [second, _requirement_IIIa(tried)]
            if second.holds:  # without a second derivative IIIb cannot be asked
                with trial(inputs) as tried:
                    entries.append(_requirement_IIIb(tried, explicit, choice))
        return Requirements(tuple(entries)), choice
    except Exception as error:
        error.add_note("while the requirements were tested, at theta_0, before any step")
        raise


def require(inputs: Inputs, *, replays: bool, tied: bool = False) -> Inputs:
    """Raise unless the requirements hold; once per problem and shapes. Returns the inputs with means that work.

    With `replays`, the inner loss must also be replayable. The losses must leave their batches as they are, and not
    reach tensors whose gradient would be missing; when `tied` into autograd, that of a batch would be missing too.
    """
    seen = inputs.form.problem.memo.examined
    shapes = tuple((k, v.shape) for k, v in (*inputs.values.theta_0.items(), *inputs.values.phi_loss.items()))
    means = (inputs.form.second_order, inputs.form.second_derivatives)
    signature = (shapes, inputs.form.wanted, inputs.form.steps > 0, replays, tied, means)
    if signature in seen:
        return _by(inputs, seen[signature])
    verdict, choice = examine(inputs)
    verdict.assert_ok()
    if choice is not None and choice.mean is not None:
        inputs = _by(inputs, choice.mean)
        _tell(inputs.form.problem, choice)
    refuse_edited_batches(inputs)
    if (replays or inputs.form.evaluates_again) and inputs.form.steps > 0:
        probe_replay(inputs)
    refuse_stray_tensors(inputs, tied=tied)
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


def _requirement_I(inputs: Inputs) -> tuple[Requirement, frozenset[str]]:
    """I, and the names in phi_loss that L_val depends on explicitly."""
    with torch.enable_grad():
        theta = {k: v.detach().requires_grad_() for k, v in inputs.values.theta_0.items()}
        phi = {k: v.detach().requires_grad_() for k, v in inputs.values.phi_loss.items()}
        L = evaluate(
            inputs.form.problem.val_loss, "val_loss", {**inputs.values.frozen, **theta}, phi, inputs.values.val_batch,
            vector=True,
        )  # fmt: skip
        found = differentiate(L, [*theta.values(), *phi.values()])
    explicit = frozenset(k for k, g in zip(phi, found[len(theta) :], strict=True) if g is not None)
    if any(g is not None for g in found[: len(theta)]):
        return Requirement("I", True, "val_loss is differentiable in theta"), explicit
    why = (
        "val_loss has no gradient path to theta. Compute it from the theta it is called with, without "
        ".detach(), .item(), "
        "argmax or torch.no_grad()"
    )
    return Requirement("I", False, why), explicit


def _requirement_II(inputs: Inputs) -> tuple[Requirement, Choice]:
    """II, and the means of second-order products."""
    if not inputs.form.second_derivatives:
        return Requirement("II", True, "to first order no second derivative is asked for"), Choice(None, None, {})
    start = inputs.environment.capture()
    graph = _recorded(inputs, 0)

    def at(mean: str, V: Tensors) -> Products:
        inputs.environment.restore(start)
        if mean != BY_GRAPH:
            return _products(inputs, mean, 0, V)
        refuse_once_differentiable(inputs)
        return reverse_over_reverse.products(graph, V)

    choice = choose(inputs.form.second_order, at, _direction(inputs))
    if choice.products is None:
        why = (
            f"train_loss has no second derivative ({choice}). Use operations that autograd "
            "can differentiate twice "
            "(for attention: torch.nn.attention.sdpa_kernel(SDPBackend.MATH))"
        )
        return Requirement("II", False, why), choice
    note = "; train_loss is linear in theta, so line 14's curvature is 0" if choice.products.linear else ""
    return Requirement("II", True, f"the step is differentiable in theta and G{note}"), choice


def _recorded(inputs: Inputs, j: int) -> Graph:
    """The gradient of the inner loss at theta_0 and batch j, with its graph. Cost 3F."""
    G = gradient(
        inputs.form.problem.train_loss, "train_loss", inputs.values.theta_0, inputs.values.phi_loss,
        inputs.values.batch(j), frozen=inputs.values.frozen, keep_graph=True,
    )  # fmt: skip
    assert G.graph is not None
    return G.graph


def _products(inputs: Inputs, mean: str, j: int, V: Tensors) -> Products:
    """The second-order products at theta_0 and batch j. Cost 9F."""
    if mean == BY_GRAPH:
        return reverse_over_reverse.products(_recorded(inputs, j), V)
    return from_a_point(mean)(
        inputs.form.problem.train_loss,
        inputs.values.theta_0,
        inputs.values.phi_loss,
        inputs.values.batch(j),
        V,
        frozen=inputs.values.frozen,
    )


def _direction(inputs: Inputs) -> Tensors:
    """A direction that no symmetry of a loss makes a special one."""
    return {k: torch.arange(1, v.numel() + 1).to(v).cos().reshape(v.shape) for k, v in inputs.values.theta_0.items()}


def _requirement_IIIa(inputs: Inputs) -> Requirement:
    """IIIa: every hyperparameter in phi_opt moves the update."""
    optimizer, hyper = inputs.form.optimizer, inputs.values.hyper
    if not hyper.wanted:
        return Requirement("IIIa", True, "no phi_opt")
    ones = {k: torch.ones_like(v) for k, v in inputs.values.theta_0.items()}
    zero = optimizer.zero_adjoint(inputs.values.state_0)
    S = {slot: {k: torch.ones_like(v) for k, v in held.items()} for slot, held in zero.items()}
    pulled = optimizer.pullback(inputs.values.theta_0, inputs.values.state_0, ones, hyper.at(0), ones, S, hyper.wanted)
    moved = {name for increments in pulled.A.values() for name in increments}
    if not inputs.form.warm:
        first = optimizer.initial_state_pullback(S, hyper.at(0), hyper.wanted)
        moved |= {name for increments in first.values() for name in increments}
    idle = [name for name in hyper.wanted if name not in moved]
    if not idle:
        return Requirement("IIIa", True, f"the update is differentiable in {', '.join(hyper.wanted)}")
    rule = type(optimizer).__name__
    start = " with a given state_0" if inputs.form.warm else ""
    why = (
        f"the update of {rule}, as it is set up{start}, does not use {', '.join(repr(n) for n in idle)}. "
        "Remove it from phi_opt, or switch on what uses it"
    )
    return Requirement("IIIa", False, why)


def _requirement_IIIb(inputs: Inputs, explicit: frozenset[str], choice: Choice) -> Requirement:
    """IIIb: every entry of phi_loss reaches G or L_val."""
    if choice.products is None or choice.mean is None or not inputs.values.phi_loss:
        return Requirement("IIIb", True, "no phi_loss")
    idle = [k for k in inputs.values.phi_loss if k not in choice.products.reached | explicit]
    for j in range(1, inputs.form.steps):
        if not idle:
            break
        seen = _products(inputs, choice.mean, j, _direction(inputs)).reached
        idle = [k for k in idle if k not in seen]
    if not idle:
        return Requirement("IIIb", True, "the inner gradient or val_loss depends on every entry of phi_loss")
    names = ", ".join(repr(k) for k in idle)
    if choice.products.linear:
        because = (
            "train_loss is linear in theta, so its gradient is constant and its second derivative, which alone "
            "could carry phi_loss, is 0"
        )
    else:
        because = "the gradient of train_loss in theta does not depend on it, so its mixed second derivative is 0"
    why = (
        f"phi_loss {names}: val_loss does not depend on it, and {because} (at theta_0, with any batch). "
        "Let it act on theta, or leave it out; check=False goes on without this test"
    )
    return Requirement("IIIb", False, why)
