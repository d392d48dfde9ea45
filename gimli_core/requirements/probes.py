"""What a loss does besides returning a number: whether it replays and differentiates twice, and what it reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.first_order import evaluate
from gimli_core.errors import ReplayError, RequirementError
from gimli_core.meta_parameters.hyperparameters import tensor_paths

__all__ = ["probe_replay", "refuse_once_differentiable", "refuse_stray_tensors"]


def probe_replay(inputs: Inputs) -> None:
    """Evaluate the first inner loss twice from the same random numbers and buffers; raise `ReplayError` if it "
    "differs. Cost 2F."""
    environment = inputs.environment
    found = environment.capture()
    values = []
    try:
        for _ in range(2):
            environment.restore(found)
            with torch.enable_grad():  # as the run: a loss may differentiate inside
                theta = {
                    **inputs.values.frozen,
                    **{k: v.detach().requires_grad_() for k, v in inputs.values.theta_0.items()},
                }
                values.append(
                    evaluate(
                        inputs.form.problem.train_loss,
                        "train_loss",
                        theta,
                        inputs.values.phi_loss,
                        inputs.values.batch(0),
                    )
                )
    finally:
        environment.restore(found)
    if not torch.equal(*values) and not bool(torch.isnan(values[0]).any()):
        raise ReplayError(
            "train_loss: expected the same value twice from the same theta, batch and random state, since a step is "
            f"evaluated again here, for the memory schedule or for second_order; got {values[0].tolist()!r}, then "
            f"{values[1].tolist()!r}. Draw random numbers from torch's global generator (or numpy's, or Python's), "
            "return the same batch for one j, or use memory=RetainGraphs() and second_order='reverse_over_reverse'."
        )


def refuse_stray_tensors(inputs: Inputs) -> None:
    """Raise if a tensor that requires grad has a part in L and is in none of the arguments. Cost 2F.

    Looked for in the losses (at the first batch) and in the optimizer's own hyperparameters.
    """
    for hyperparameter, value in inputs.form.problem.optimizer.hyperparameters().items():
        if hyperparameter not in inputs.form.wanted and any(t.requires_grad for _, t in tensor_paths(value)):
            raise RequirementError(
                f"optimizer: expected constants for what is not in phi_opt; got a {hyperparameter} that "
                "requires grad, whose gradient "
                f"unroll(...).backward() would not fill. Pass it as phi_opt={{{hyperparameter!r}: …}}, or detach it."
            )
    environment = inputs.environment
    found = environment.capture()
    losses = [("val_loss", inputs.form.problem.val_loss, lambda: inputs.values.val_batch)]
    if inputs.form.steps > 0:
        losses.append(("train_loss", inputs.form.problem.train_loss, lambda: inputs.values.batch(0)))
    try:
        for name, loss_function, batch in losses:
            with torch.enable_grad():
                theta = {k: v.detach().requires_grad_() for k, v in inputs.values.theta_0.items()}
                phi = {k: v.detach().requires_grad_() for k, v in inputs.values.phi_loss.items()}
                loss = evaluate(loss_function, name, {**inputs.values.frozen, **theta}, phi, batch())
            stray = leaves_of(loss) - {id(t) for t in (*theta.values(), *phi.values())}
            if stray:
                raise RequirementError(
                    f"{name}: expected to depend on theta, phi_loss and constants; got {len(stray)} more "
                    "tensor(s) that require grad, whose "
                    "gradient unroll(...).backward() would not fill. Pass them in phi_loss or theta_0, or detach them."
                )
    finally:
        environment.restore(found)


# Every function that `once_differentiable` wraps shares this code.
_ONCE = once_differentiable(lambda ctx: None).__code__


def refuse_once_differentiable(inputs: Inputs) -> None:
    """Raise NotImplementedError if train_loss uses a custom function whose backward cannot be differentiated. Cost F.

    Autograd itself may say nothing: what such a backward returns can look like a constant, of derivative 0.
    """
    with torch.enable_grad():
        theta = {k: v.detach().requires_grad_() for k, v in inputs.values.theta_0.items()}
        loss = evaluate(
            inputs.form.problem.train_loss,
            "train_loss",
            {**inputs.values.frozen, **theta},
            inputs.values.phi_loss,
            inputs.values.batch(0),
        )
    for node in nodes_of(loss):
        function = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE:
            raise NotImplementedError(
                f"the backward of {node.name().removesuffix('Backward')} is marked once_differentiable"
            )


def nodes_of(tensor: Tensor) -> set[Any]:
    """Every node of autograd's graph behind `tensor`."""
    seen: set[Any] = set()
    todo: list[Any] = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)
    return seen


def leaves_of(loss: Tensor) -> set[int]:
    """The ids of the leaf tensors that autograd would reach from `loss`."""
    return {id(node.variable) for node in nodes_of(loss) if hasattr(node, "variable")}
