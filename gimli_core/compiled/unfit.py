"""Why a problem cannot be compiled: found out in eager mode, before anything is compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.arguments.trial import trial
from gimli_core.compiled.compiler.other_globals import not_watched
from gimli_core.compiled.compiler.trial import Uncompiled, distance
from gimli_core.compiled.pure_steps import gradient_and_products, validate
from gimli_core.compiled.steps import fixed_of
from gimli_core.derivatives.evaluate import evaluate
from gimli_core.derivatives.first_order import gradient
from gimli_core.derivatives.second_order import probing, reverse_over_reverse
from gimli_core.errors import first_line, listing
from gimli_core.optimizers.interface import with_path
from gimli_core.optimizers.wrappers.interface import rules_within
from gimli_core.outlines import ByOutline
from gimli_core.transforms.one_vector import LeftAlone
from gimli_core.trees import entries

__all__ = ["unfit"]


def unfit(inputs: Inputs) -> Uncompiled | None:
    """Why a problem cannot be compiled, or some run of it. It runs the losses."""
    problem = inputs.form.problem
    modules = [type(m).forward for module in inputs.environment.modules for m in module.modules()]
    rules = [method for rule in rules_within(problem.optimizer) for method in (type(rule).step, type(rule).pullback)]
    if reason := not_watched([problem.train_loss, problem.val_loss, *modules, *rules]):
        return Uncompiled(reason)
    with trial(inputs) as tried:
        why = _with_aux(tried)
    for found_out in (_kept_together, _left_alone, _otherwise):
        if why is None:
            with trial(inputs) as tried:
                why = found_out(tried)
    return None if why is None else Uncompiled(why)


def _with_aux(inputs: Inputs) -> str | None:
    """Why a problem whose losses return (loss, aux) is not compiled. Cost 2F, once."""
    values, problem = inputs.values, inputs.form.problem
    with torch.enable_grad():  # as in a run: a loss may differentiate inside
        theta = {**values.frozen, **{k: v.detach().requires_grad_() for k, v in values.theta_0.items()}}
        batches = {"train_loss": values.batch(0), "val_loss": values.last_val_batch}
        phi = {
            name: {k: v.detach().requires_grad_() for k, v in phi_loss.items()}
            for name, phi_loss in (("train_loss", values.phi_at(0)), ("val_loss", values.phi_loss))
        }
        aux = [
            evaluate(getattr(problem, k), k, theta, phi[k], v, vector=k == "val_loss")[1] is not None
            for k, v in batches.items()
        ]
    names = [name for name, returned in zip(batches, aux, strict=True) if returned]
    return f"{listing(names)} return (loss, aux), and what is compiled returns the loss alone" if names else None


def _kept_together(inputs: Inputs) -> str | None:
    """Why a problem is not compiled whose batches the compiler does not take apart: it would keep the first one's."""
    batches = {"train_batches": inputs.values.batch(0), "val_batch": inputs.values.last_val_batch}
    for name, batch in batches.items():
        for leaf in pytree.tree_leaves(batch):
            if not isinstance(leaf, Tensor) and entries(leaf) is not None:
                kind = type(leaf).__name__
                return f"{name} has a {kind}, which torch's pytrees do not take apart (a dict, list or tuple they do)"
    return None


def _left_alone(inputs: Inputs) -> str | None:
    """Why a problem is not compiled that leaves tensors alone in some step; a compiled one gives them a gradient of 0.

    Batches that look alike are tried once: to use a tensor or not by their values is a branch, which is not compiled.
    Cost 3F for each look, once.
    """
    names, tried = set[str](), ByOutline[bool]()
    try:
        for j in range(inputs.form.steps):
            loss = inputs.inner_loss(j)
            if tried.get((loss.phi_loss, loss.batch)):
                continue
            tried.put((loss.phi_loss, loss.batch), True)
            G = gradient(loss, inputs.values.theta_0, keep_graph=True)
            inputs.look_for_missed(j, G)
            names |= G.theta.keys() - with_path(inputs.form.optimizer, G.theta, G.unused).keys()
    except LeftAlone as left_alone:
        names |= set(left_alone.names)
    if not names:
        return None
    return f"train_loss does not use {listing(sorted(names))} in some step, and it is then left alone"


def _otherwise(inputs: Inputs) -> str | None:
    """Why a problem is not compiled whose losses torch.func differentiates otherwise than autograd does: `.data`, or
    `is_leaf`. Of losses that draw no random numbers, at theta_0 and the first batches. Cost 24F, once.
    """
    try:
        by_autograd, by_transforms = _derivatives_by_autograd(inputs), _derivatives_by_transforms(inputs)
    except Exception as error:  # a formula that is missing, or what transforms cannot do: nor could the compiler
        return first_line(error)
    if by_transforms is None:
        return None
    for name, derivatives in by_autograd.items():
        if not distance(*map(pytree.tree_leaves, (by_transforms[name], derivatives))) <= 1:
            return f"torch.func, which is compiled, does not differentiate {name} as autograd does (.data, is_leaf)"
    return None


def _derivatives_by_autograd(inputs: Inputs) -> dict[str, Any]:
    """As the engine has them: of train_loss the gradient and products with a vector, of val_loss the gradient."""
    theta = inputs.values.theta_0
    G = gradient(inputs.inner_loss(0), theta, keep_graph=True)
    assert G.graph is not None
    products = reverse_over_reverse.products(G.graph, probing(theta))
    of_train = [G.theta, products.curvature, products.mixed]
    if outer_losses(inputs) is not None:
        return {"train_loss": of_train}
    last = max(j for j, weighted in enumerate(inputs.form.weighted) if weighted)
    L = gradient(inputs.outer_loss(last), theta, of_phi=True)
    return {"train_loss": of_train, "val_loss": [L.theta, L.phi_loss]}


def _derivatives_by_transforms(inputs: Inputs) -> dict[str, Any] | None:
    """The same as a compiled step has them; None where they draw random numbers, maybe in another order."""
    values, fixed, snapshot = inputs.values, fixed_of(inputs), inputs.environment.capture()
    theta, frozen = values.theta_0, values.frozen
    with torch.no_grad():
        (_, G, _), (curvature, mixed) = gradient_and_products(
            fixed, theta, values.phi_at(0), frozen, values.batch(0), probing(theta), ()
        )
        of_val: list[Any] = []
        if outer_losses(inputs) is None:
            L = validate(fixed, theta, values.phi_loss, frozen, values.last_val_batch)
            of_val = [L.theta, L.phi_loss]
    if inputs.environment.moved(snapshot):
        return None
    return {"train_loss": [G, curvature, mixed], "val_loss": of_val}
