"""Inputs whose tensors are the caller's own, with what made them: for a run that is recorded by autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.second_order import BY_GRAPH
from gimli_core.meta_parameters.marks import unmarked, unmarked_entries
from gimli_core.notation import Tensors, counts, slots
from gimli_core.optimizers.recordable import recordable
from gimli_core.transforms.over_tasks import OverTasks
from gimli_core.transforms.rule_over_tasks import RuleOverTasks
from gimli_core.transforms.tasks import stacked_state

__all__ = ["attached"]


def attached(inputs: Inputs, call: Call) -> Inputs:
    """The inputs of a call, not detached: theta_0, phi_opt, phi_loss and state_0 as the caller has them."""
    form, values = inputs.form, inputs.values
    entries = unmarked_entries(call.theta_0)
    trained: Tensors = {k: entries[k] for k in form.trained}
    theta_0, optimizer = trained, recordable(form.optimizer)
    for transform in form.transforms:
        theta_0 = transform.theta(theta_0)
        if isinstance(form.optimizer, RuleOverTasks):
            optimizer = replace(form.optimizer, rule=recordable(form.optimizer.rule))
    hyper = values.hyper.attached(call.phi_opt or {})
    state_0 = optimizer.initial_state(theta_0, hyper.at(0))
    if form.warm:
        shared = any(isinstance(transform, OverTasks) and transform.shared_state for transform in form.transforms)
        state = unmarked(call.state_0)
        state = stacked_state(state, form.tasks) if shared and form.tasks is not None else state
        moments = pytree.tree_map(lambda like, value: _of(value, like), slots(values.state_0), slots(state))
        state_0 = {**counts(values.state_0), **moments}
    phi_loss = {k: _of(unmarked(unmarked(call.phi_loss)[k]), v) for k, v in values.phi_loss.items()}
    return replace(
        inputs,
        form=replace(form, optimizer=optimizer, second_order=BY_GRAPH, recorded=True),
        values=replace(
            values, theta_0=theta_0, trained=trained, state_0=state_0, phi_loss=phi_loss, hyper=hyper, cold=False
        ),
    )


def _of(value: Any, like: Tensor) -> Tensor:
    """The caller's tensor in the dtype that is run; a number is one that was made of it."""
    return value.to(like.dtype) if isinstance(value, Tensor) else like
