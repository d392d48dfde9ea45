"""Lines 4-7: one step of the inner loop forwards. Nothing of the backward sweep is known here."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.first_order import Gradient, gradient
from gimli_core.environment import keeping_buffers
from gimli_core.errors import NotFiniteError
from gimli_core.optimizers.interface import Tensors
from gimli_core.record import Event, Point
from gimli_core.transforms.one_vector import Spread

__all__ = ["check_end", "check_finite", "flaw", "inner_gradient", "step"]


def inner_gradient(inputs: Inputs, point: Point, *, keep_graph: bool) -> Gradient:
    """Line 5: G_j = grad_theta ell_j(theta_j, phi_loss). Cost 3F.

    The graph is always recorded, and dropped at once if it is not to be kept: without it normalisations and other
    modules take another kernel, and theta_{j+1} would depend on the memory schedule in the last bits.
    """
    j, buffers = point.j, inputs.environment.buffers
    batch = inputs.batch(j)
    try:
        with keeping_buffers(buffers) if keep_graph and buffers else nullcontext():
            G_j = gradient(
                inputs.problem.train_loss, "train_loss", point.theta, inputs.phi_loss, batch,
                frozen=inputs.frozen, keep_graph=True,
            )  # fmt: skip
    except Exception as error:
        error.add_note(f"at inner step j = {j} of {inputs.steps}")
        raise
    G_j = G_j._replace(theta=inputs.optimizer.gathered(G_j.theta))
    if point.theta[next(iter(point.theta))].device.type == "cpu":  # elsewhere a look would stall the device
        check_finite(point, G_j, batch)
    return G_j if keep_graph else G_j._replace(graph=None)


def step(
    inputs: Inputs, point: Point, *, keep_graph: bool, replay: bool, known: Gradient | None = None
) -> Generator[Event, None, tuple[Gradient, Point]]:
    """Lines 5 and 6: from (theta_j, s_j) to G_j, unless it is `known` already, and (theta_{j+1}, s_{j+1})."""
    j = point.j
    G_j = inner_gradient(inputs, point, keep_graph=keep_graph) if known is None else known  # line 5
    computed = Event(5, j, {"loss": G_j.loss, "G": G_j.theta}, replay, {"theta": point.theta})
    yield computed
    G_j = G_j._replace(theta=computed.values["G"])
    phi_opt = inputs.hyper.at(j)
    theta, s = inputs.optimizer.step(point.theta, point.state, G_j.theta, phi_opt)  # line 6
    given = {"theta": point.theta, "s": point.state, "G": G_j.theta, "phi_opt": phi_opt}
    computed = Event(6, j, {"theta": theta, "s": s}, replay, given)
    yield computed
    return G_j, Point(j + 1, computed.values["theta"], computed.values["s"], None)


def check_finite(point: Point, G_j: Gradient, batch: Any) -> None:
    """Raise `NotFiniteError`, naming the step and what broke first, unless the loss and G_j are finite."""
    loss = G_j.loss.sum().item()  # over the tasks, if there are any
    sound = math.isfinite(loss) and math.isfinite(total(G_j.theta))
    if sound:
        return
    j, bad_theta, bad_G = point.j, broken(point.theta), broken(G_j.theta)
    if bad_theta:
        broke = f"the update of step {j - 1} broke it, from a finite G_{j - 1}"
        came = f"theta_{j} of {bad_theta} is not finite already: {broke}"
    elif bad_G:
        came = f"G_{j} of {bad_G} is not finite, the first quantity to break"
    elif math.isfinite(loss):
        return  # only the sum overflowed
    else:
        came = f"theta_{j} and G_{j} are finite"
    of_batch = "" if bad_theta else flaw(batch)
    raise NotFiniteError(
        f"train_loss at inner step j = {j}: expected a finite loss and gradient; got a loss of "
        f"{loss:g}, and {came}. {of_batch}"
        "Lower the learning rate, or keep the loss away from log(0), sqrt(0) and 0/0."
    )


def flaw(batch: Any) -> str:
    """What in a batch may be why a loss is not finite, in one sentence: an empty tensor, or inf and nan in one."""
    for x in tree_leaves(batch):
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_nested:
            continue
        if x.numel() == 0:
            return f"Its batch holds an empty tensor, of shape {tuple(x.shape)}: drop that batch. "
        if x.dtype.itemsize > 1 and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            return f"Its batch holds inf or nan, in a tensor of shape {tuple(x.shape)}: clean the data. "
    return ""


def total(tensors: Tensors) -> float:
    """The sum over all entries."""
    flat = tensors.flat if isinstance(tensors, Spread) else None
    return flat.sum().item() if flat is not None else sum(g.sum().item() for g in tensors.values())


def check_end(theta_J: Tensors, train_losses: list[Tensor]) -> None:
    """Raise `NotFiniteError` unless theta_J is finite; where steps were not looked at, say which loss broke first."""
    names = "" if math.isfinite(total(theta_J)) else broken(theta_J)
    if not names:
        return
    finite = [bool(torch.isfinite(loss).all()) for loss in train_losses]
    first = (
        f"train_loss broke first at inner step j = {finite.index(False)}"
        if False in finite
        else "every train_loss was finite"
    )
    raise NotFiniteError(
        f"theta_{len(finite)} of {names}: expected finite values; got inf or nan, and {first}. Lower the learning rate."
    )


def broken(tensors: Tensors) -> str:
    """The names of the entries that are not finite, or the empty string."""
    return ", ".join(repr(k) for k, v in tensors.items() if not bool(torch.isfinite(v).all()))
