"""Batches in parts: the requirements are tested part by part, and whether the inner loss is the sum of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.trial import trial
from gimli_core.derivatives.evaluate import evaluate
from gimli_core.derivatives.micro_batches import MicroBatches, each, together
from gimli_core.errors import unexpected

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
    form = replace(inputs.form, steps=count * inputs.form.steps, in_parts=False)
    return replace(inputs, form=form, values=replace(values, batch=batch, rows=rows))


def refuse_undecomposed(inputs: Inputs) -> None:
    """Raise unless train_loss at theta_0 and the first batch is the weighted sum over its parts, where that can be
    told: not where it draws random numbers, or where the parts cannot be joined. Cost 2F, in the memory of the whole.
    """
    if not inputs.form.in_parts:
        return
    batch = inputs.values.batch(0)
    assert isinstance(batch, MicroBatches)
    with trial(inputs) as tried:
        environment = inputs.environment
        found = environment.capture()
        total = torch.stack([w * _value(tried, part) for w, part in each(tried.values.batch(0))]).sum(0)
        now = environment.capture(found)
        if any(new is not old for new, old in zip(now.buffers, found.buffers, strict=True)):
            expected, came = "a loss that leaves its modules' buffers alone", "one that changes running statistics"
            do = "BatchNorm would be trained on each part, not on the whole batch: use LayerNorm, GroupNorm or eval()."
            raise unexpected("train_loss on micro-batches", expected, came, do)
        if inputs.values.rows is not None:  # of which each part has its own
            batch = batch._replace(parts=tuple(part.batch for part in batch.parts))
        joined = together(batch, 0 if inputs.form.tasks is None else 1)
        if environment.moved(found) or joined is None:
            return
        whole = _value(tried, joined)
    dtype = torch.get_autocast_dtype(whole.device.type) if torch.is_autocast_enabled(whole.device.type) else whole.dtype
    scale = torch.maximum(whole.abs(), total.abs()).clamp_min(1e-12)
    if not bool(((total - whole).abs() <= torch.finfo(dtype).eps ** 0.5 * scale).all()):
        expected = f"Σ_i w_i train_loss(part_i) = train_loss of all parts together, {whole.tolist()!r}"
        do = (
            "Give the weights of what it divides by: MicroBatches(parts, weights=…), ones if it is a sum. A loss that "
            "normalises by the whole batch has no parts. check=False goes on, with the sum as the inner loss."
        )
        raise unexpected("train_loss on micro-batches", expected, f"{total.tolist()!r}", do)


def _value(inputs: Inputs, batch: Any) -> Tensor:
    values = inputs.values
    theta = {**values.frozen, **{k: v.detach().requires_grad_() for k, v in values.theta_0.items()}}
    with torch.enable_grad():  # a loss may differentiate inside
        loss, _ = evaluate(inputs.form.problem.train_loss, "train_loss", theta, values.phi_at(0), batch)
    return loss.detach()
