"""A loss called and checked, and its derivative by autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Variable

from gimli_core.derivatives.beside_loss import value_and_aux
from gimli_core.derivatives.kernels import uncompiled
from gimli_core.derivatives.micro_batches import MicroBatches, each, of_parts
from gimli_core.errors import unexpected
from gimli_core.notation import Loss, Tensors

__all__ = ["LossOfTheta", "differentiate", "evaluate", "task_shape"]


class LossOfTheta(NamedTuple):
    """A loss as a function of theta alone: ell_j(·, phi_loss) of batch_j, or L_val, by the name in its errors.

    All have whatever shapes `function` takes; `frozen` are the entries of theta that are held constant.
    """

    function: Loss
    name: str
    phi_loss: Tensors
    batch: Any
    frozen: Mapping[str, Tensor]


def task_shape(loss_function: Loss) -> tuple[int, ...]:
    """The shape that one number a loss has: [], or [T] of T tasks."""
    return tuple(getattr(loss_function, "shape", ()))


def evaluate(
    loss_function: Loss, name: str, theta: Tensors, phi_loss: Tensors, batch: Any, *, vector: bool = False
) -> tuple[Tensor, Any]:
    """Call a loss; (its value, checked to be a scalar tensor or one value a task, and its aux, detached).

    With `vector` the value may also be k numbers, in the last dimension. Of a batch in parts it is their weighted sum.
    """
    if isinstance(batch, MicroBatches):
        of_each = [(w, evaluate(loss_function, name, theta, phi_loss, part, vector=vector)) for w, part in each(batch)]
        return torch.stack([w * loss for w, (loss, _) in of_each]).sum(0), of_parts(
            [aux for _, (_, aux) in of_each], name
        )
    try:
        with uncompiled():
            loss, aux = value_and_aux(loss_function(theta, phi_loss, batch), name)
    except Exception as error:
        error.add_note(f"in {name}")
        raise
    tasks = task_shape(loss_function)
    shape = tuple(loss.shape) if isinstance(loss, Tensor) else None
    several = vector and shape is not None and len(shape) == len(tasks) + 1 and shape[:-1] == tasks and shape[-1] > 0
    if not isinstance(loss, Tensor) or not (shape == tasks or several) or not loss.is_floating_point():
        actual = (
            f"a {loss.dtype} tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        )
        expected, do = "to return a scalar floating-point tensor (shape [])", "Reduce it with .mean() or .sum()."
        if vector:
            expected = "to return a scalar floating-point tensor (shape []), or a vector [k] of k >= 1 outer losses"
        raise unexpected(name, expected, actual, do)
    return loss, aux


def pulled(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` of outputs times cotangents of their shapes, with None for every input not reached.

    `torch.autograd.grad` first compares the shapes as symbols, for which it imports sympy: 35 MiB and half a second of
    a cold process, and a sixth of the time of a small product at every call. What it calls in the end is called here.

    Args:
        retain: whether the graph is needed once more.
    """
    retain_graph = retain or create_graph
    return Variable._execution_engine.run_backward(
        tuple(outputs),
        tuple(cotangents),
        retain_graph,
        create_graph,
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )


def differentiate(
    loss: Tensor,
    inputs: list[Tensor],
    *,
    create_graph: bool = False,
    along: Tensor | None = None,
    retain: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`, of the sum over tasks, with None for every input that the loss does not reach.

    Args:
        along: `[k]`, what the last dimension of the loss is multiplied by.
        retain: whether the graph is needed once more.
    """
    if not loss.requires_grad:
        return (None,) * len(inputs)
    if loss.is_complex():
        return torch.autograd.grad(loss.sum(), inputs)  # which says that there is none
    weights = loss.new_ones(()) if along is None else along
    weights = weights.expand(loss.shape) if loss.ndim else weights
    return pulled((loss,), (weights,), inputs, create_graph=create_graph, retain=retain)
