"""Why a problem cannot be compiled: found out in eager mode, before anything is compiled."""

from __future__ import annotations

import torch

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.trial import trial
from gimli_core.compiled.compiler.other_globals import not_watched
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.derivatives.evaluate import evaluate
from gimli_core.derivatives.first_order import gradient
from gimli_core.errors import listing
from gimli_core.optimizers.interface import with_path
from gimli_core.optimizers.wrappers.interface import rules_within
from gimli_core.outlines import ByOutline
from gimli_core.transforms.one_vector import LeftAlone

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
    with trial(inputs) as tried:
        missed = _missed(tried) if why is None else []
    if missed:
        why = f"train_loss does not use {listing(missed)} in some step, and it is then left alone"
    return None if why is None else Uncompiled(why)


def _with_aux(inputs: Inputs) -> str | None:
    """Why a problem whose losses return (loss, aux) is not compiled. Cost 2F, once."""
    values, problem = inputs.values, inputs.form.problem
    theta = {**values.frozen, **values.theta_0}
    batches = {"train_loss": values.batch(0), "val_loss": values.last_val_batch}
    phi = {"train_loss": values.phi_at(0), "val_loss": values.phi_loss}
    with torch.enable_grad():
        aux = [
            evaluate(getattr(problem, k), k, theta, phi[k], v, vector=k == "val_loss")[1] is not None
            for k, v in batches.items()
        ]
    names = [name for name, returned in zip(batches, aux, strict=True) if returned]
    return f"{listing(names)} return (loss, aux), and what is compiled returns the loss alone" if names else None


def _missed(inputs: Inputs) -> list[str]:
    """Tensors that some step would leave alone; a compiled step gives them a gradient of 0.

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
    return sorted(names)
