"""The paper's requirements, each tested by itself at theta_0: see examine.py."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.evaluate import differentiate, evaluate
from gimli_core.derivatives.first_order import Graph, gradient
from gimli_core.derivatives.second_order import (
    BY_GRAPH,
    Choice,
    Products,
    choose,
    from_a_point,
    probing,
    reverse_over_reverse,
)
from gimli_core.errors import unexpected
from gimli_core.notation import Tensors
from gimli_core.optimizers.seen import seeing
from gimli_core.requirements.probes import refuse_once_differentiable

__all__ = ["Requirement", "requirement_I", "requirement_II", "requirement_IIIa", "requirement_IIIb"]


class Requirement(NamedTuple):
    """One requirement and whether the problem meets it."""

    name: str
    holds: bool
    why: str


def requirement_I(inputs: Inputs) -> tuple[Requirement, frozenset[str]]:
    """I, and the names in phi_loss that L_val depends on explicitly."""
    with torch.enable_grad():
        theta = {k: v.detach().requires_grad_() for k, v in inputs.values.theta_0.items()}
        phi = {k: v.detach().requires_grad_() for k, v in inputs.values.phi_loss.items()}
        val_loss, batch = inputs.form.problem.val_loss, inputs.values.last_val_batch
        try:
            L, _ = evaluate(val_loss, "val_loss", {**inputs.values.frozen, **theta}, phi, batch, vector=True)
        except KeyError as error:
            indexed = {path[-1]: name for name, path in inputs.form.nested if name in inputs.values.indexed}
            indexed |= {name: name for name in inputs.values.indexed}
            if error.args[:1] and error.args[0] in indexed:
                actual, do = f"one that asks for {indexed[error.args[0]]!r}", "Mark what train_loss alone uses."
                raise unexpected("val_loss", "to leave indexed entries alone: it has no rows", actual, do) from error
            raise
        gradients = differentiate(L, [*theta.values(), *phi.values()])
    explicit = frozenset(k for k, g in zip(phi, gradients[len(theta) :], strict=True) if g is not None)
    if any(g is not None for g in gradients[: len(theta)]):
        return Requirement("I", True, "val_loss is differentiable in theta"), explicit
    why = (
        "val_loss has no gradient path to theta. Compute it from the theta it is called with, without "
        ".detach(), .item(), "
        "argmax or torch.no_grad()"
    )
    return Requirement("I", False, why), explicit


def requirement_II(inputs: Inputs) -> tuple[Requirement, Choice]:
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

    choice = choose(inputs.form.second_order, at, probing(inputs.values.theta_0))
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
    G = gradient(inputs.inner_loss(j), inputs.values.theta_0, keep_graph=True)
    assert G.graph is not None
    return G.graph


def _products(inputs: Inputs, mean: str, j: int, V: Tensors) -> Products:
    """The second-order products at theta_0 and batch j. Cost 9F."""
    if mean == BY_GRAPH:
        return reverse_over_reverse.products(_recorded(inputs, j), V)
    return from_a_point(mean)(inputs.inner_loss(j), inputs.values.theta_0, V)


def requirement_IIIa(inputs: Inputs) -> Requirement:
    """IIIa: every hyperparameter in phi_opt moves the update."""
    optimizer, hyper = inputs.form.optimizer, inputs.values.hyper
    if not hyper.wanted:
        return Requirement("IIIa", True, "no phi_opt")
    ones = {k: torch.ones_like(v) for k, v in inputs.values.theta_0.items()}
    zero = optimizer.zero_adjoint(inputs.values.state_0)
    S = {slot: {k: torch.ones_like(v) for k, v in of_slot.items()} for slot, of_slot in zero.items()}
    shape = getattr(inputs.form.problem.train_loss, "shape", ())  # the value of a loss matters here as little as G's
    handed = seeing(optimizer, hyper.at(0), next(iter(ones.values())).new_ones(shape))
    pulled = optimizer.pullback(inputs.values.theta_0, inputs.values.state_0, ones, handed, ones, S, hyper.wanted)
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


def requirement_IIIb(inputs: Inputs, explicit: frozenset[str], choice: Choice) -> Requirement:
    """IIIb: every entry of phi_loss reaches G or L_val."""
    if choice.products is None or choice.mean is None or not inputs.form.phi_loss:
        return Requirement("IIIb", True, "no phi_loss")
    idle = [k for k in inputs.values.phi_at(0) if k not in choice.products.reached | explicit]
    for j in range(1, inputs.form.steps):
        if not idle:
            break
        seen = _products(inputs, choice.mean, j, probing(inputs.values.theta_0)).reached
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
