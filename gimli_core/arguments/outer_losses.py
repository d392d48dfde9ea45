"""L_val as a number or as k numbers, of which each has a meta-gradient of its own."""

from __future__ import annotations

from typing import Any

import torch

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.evaluate import evaluate, task_shape
from gimli_core.derivatives.first_order import Gradient
from gimli_core.errors import unexpected
from gimli_core.notation import Tensors

__all__ = ["outer_losses", "outer_value", "refuse_vector"]


def outer_value(inputs: Inputs, theta: Tensors, batch: Any) -> Gradient:
    """L_val and its aux, without a gradient: [], or [k]; with tasks [T], or [T, k]. `theta` is whole. Cost F."""
    values = inputs.values
    with torch.enable_grad():  # without it some modules take another path, and the last bits change
        leaves = {**values.frozen, **{k: v.detach().requires_grad_() for k, v in theta.items()}}
        loss, aux = evaluate(inputs.form.problem.val_loss, "val_loss", leaves, values.phi_loss, batch, vector=True)
    return Gradient(loss.detach(), {}, {}, None, aux=aux)


def outer_losses(inputs: Inputs) -> int | None:
    """k, or None where val_loss returns one number. Told by val_loss at theta_0, which leaves no trace.

    Cost: F, once for a problem and its shapes.
    """
    values, remembered = inputs.values, inputs.form.problem.memo.outer_losses
    batch = values.last_val_batch
    wanted = (inputs.start, values.phi_loss, values.frozen, batch)
    several = remembered.get(wanted)
    if several is None:
        with inputs.environment.trial():
            loss = outer_value(inputs, inputs.start, batch).loss
        several = () if loss.shape == task_shape(inputs.form.problem.val_loss) else tuple(loss.shape[-1:])
        remembered.put(wanted, several)
    return several[0] if several else None


def refuse_vector(inputs: Inputs, who: str) -> None:
    """Raise ArgumentError where val_loss returns a vector and `who` shows one meta-gradient. Cost as `outer_losses`."""
    k = outer_losses(inputs)
    if k is not None:
        expected, actual = f"to return one number for {who}", f"a vector of {k} outer losses"
        do = "Choose one: val_loss=lambda theta, phi, batch: losses(theta, phi, batch)[0]. A row has the bits of that."
        raise unexpected("val_loss", expected, actual, do)
