"""Batches in parts: the requirements are tested part by part, and whether the inner loss is the sum of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.trial import trial
from gimli_core.derivatives.evaluate import evaluate
from gimli_core.derivatives.micro_batches import MicroBatches, dim_of_examples, each, together
from gimli_core.errors import first_line, unexpected

__all__ = ["part_by_part", "refuse_undecomposed"]


def part_by_part(inputs: Inputs) -> Inputs:
    """The inputs with every part as the batch of a step, so that no more than one is looked at at a time."""
    values = inputs.values
    if not inputs.form.in_parts:
        return inputs
    count = len(list(each(values.batch(0))))

    def batch(i: int) -> Any:
        parts = [part for _, part in each(values.batch(i // count))]
        return parts[min(i % count, len(parts) - 1)]

    of_step = values.rows
    rows = None if of_step is None else lambda i: of_step(i // count)
    form = replace(inputs.form, steps=count * inputs.form.steps, in_parts=())
    return replace(inputs, form=form, values=replace(values, batch=batch, rows=rows))


def refuse_undecomposed(inputs: Inputs, name: str = "train_loss", where: str = "micro-batches") -> None:
    """Raise unless a loss at theta_0 and its first batch is the weighted sum over its parts, where that can be told:
    not where it draws random numbers, or where the parts cannot be joined. Cost 2F; nothing is kept for a derivative,
    so that a batch of which only parts fit may pass.

    Args:
        name: which loss; of the outer one at its last batch.
        where: what the parts are, for the message.
    """
    inner = name == "train_loss"
    batch = (inputs.values.batch(0) if inner else inputs.values.last_val_batch) if inputs.form.in_parts else None
    if not isinstance(batch, MicroBatches):
        return
    with trial(inputs) as tried:
        environment = inputs.environment
        snapshot = environment.capture()
        copies = tried.values.batch(0) if inner else tried.values.last_val_batch
        total = torch.stack([w * _value(tried, name, part) for w, part in each(copies)]).sum(0)
        now = environment.capture(snapshot)
        if any(new is not old for new, old in zip(now.buffers, snapshot.buffers, strict=True)):
            expected, actual = "a loss that leaves its modules' buffers alone", "one that changes running statistics"
            do = "BatchNorm would be trained on each part, not on the whole batch: use LayerNorm, GroupNorm or eval()."
            raise unexpected(f"{name} on {where}", expected, actual, do)
        if inner and inputs.values.rows is not None:  # each part has its own
            batch = batch._replace(parts=tuple(part.batch for part in batch.parts))
        joined = together(batch, dim_of_examples(inputs.form.tasks))
        if environment.moved(snapshot) or joined is None:
            return
        try:
            of_all = _value(tried, name, joined)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            dim = dim_of_examples(inputs.form.tasks)
            expected = f"a loss of any number of examples, counted in dimension {dim} of a batch's tensors"
            do = "Parts of another kind have no common batch: check=False goes on, with the sum over them as the loss."
            raise unexpected(f"{name} on all {where} together", expected, first_line(error), do) from error
    device = of_all.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else of_all.dtype
    scale = torch.maximum(of_all.abs(), total.abs()).clamp_min(1e-12)
    if not bool(((total - of_all).abs() <= torch.finfo(dtype).eps ** 0.5 * scale).all()):
        expected = f"Σ_i w_i {name}(part_i) = {name} of all parts together, {of_all.tolist()!r}"
        weights = (
            "MicroBatches(parts, weights=…), ones if it is a sum" if where == "micro-batches" else "Share(part, w)"
        )
        do = (
            f"Give the weights of what it divides by: {weights}. A loss that "
            "normalises by the whole batch has no parts. check=False goes on, with the sum as the loss."
        )
        raise unexpected(f"{name} on {where}", expected, f"{total.tolist()!r}", do)


def _value(inputs: Inputs, name: str, batch: Any) -> Tensor:
    values = inputs.values
    theta = {**values.frozen, **{k: v.detach().requires_grad_() for k, v in values.theta_0.items()}}
    loss_function = getattr(inputs.form.problem, name)
    phi_loss = values.phi_at(0) if name == "train_loss" else values.phi_loss

    def value() -> Tensor:
        return evaluate(loss_function, name, theta, phi_loss, batch, vector=name == "val_loss")[0].detach()

    with torch.enable_grad():
        try:
            with saved_tensors_hooks(lambda saved: None, _not_kept):
                return value()
        except RuntimeError:  # it differentiates inside, by torch.func or by what was saved
            return value()


def _not_kept(saved: None) -> Tensor:
    raise RuntimeError("a tensor that was saved for a derivative has not been kept")
