"""Is everything finite, and if not, what broke first."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gimli_core.derivatives.first_order import Gradient
from gimli_core.errors import NotFiniteError
from gimli_core.notation import Tensors

__all__ = ["at_once", "broken", "check_end", "check_finite", "finite", "flaw", "total"]


def at_once(device: torch.device) -> bool:
    """Whether a number may be looked at as soon as it is made; elsewhere a look stalls the device, and waits."""
    return device.type == "cpu"


def finite(value: Tensor) -> bool:
    """Whether every entry is finite; by their sum, which is quicker, unless that overflows. Of any shape and dtype."""
    return cmath.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def check_finite(j: int, theta: Tensors, G_j: Gradient, batch: Any, names: Callable[[Tensors], Tensors]) -> None:
    """Raise `NotFiniteError`, naming the step and what broke first, unless the loss and G_j are finite.

    `names` gives theta and G_j by the names that a user knows.
    """
    loss = (G_j.loss.sum() if G_j.loss.ndim else G_j.loss).item()  # over the tasks, if there are any
    sound = math.isfinite(loss) and math.isfinite(total(G_j.theta))
    if sound:
        return
    bad_theta, bad_G = broken(names(theta)), broken(names(G_j.theta))
    if bad_theta:
        broke = f"the update of step {j - 1} broke it, from a finite G_{j - 1}"
        actual = f"theta_{j} of {bad_theta} is not finite already: {broke}"
    elif bad_G:
        actual = f"G_{j} of {bad_G} is not finite, the first quantity to break"
    elif math.isfinite(loss):
        return  # only the sum overflowed
    else:
        actual = f"theta_{j} and G_{j} are finite"
    of_batch = "" if bad_theta else flaw(batch)
    raise NotFiniteError(
        f"train_loss at inner step j = {j}: expected a finite loss and gradient; got a loss of "
        f"{loss:g}, and {actual}. {of_batch}"
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
    return sum([g.sum().item() for g in tensors.values()])


def check_end(theta_J: Tensors, train_losses: list[Tensor], names: Callable[[Tensors], Tensors]) -> None:
    """Raise `NotFiniteError` unless theta_J is finite; where steps were not looked at, say which loss broke first.

    Each of train_losses is a scalar, or [T].
    """
    bad = "" if math.isfinite(total(theta_J)) else broken(names(theta_J))
    if not bad:
        return
    finite = [bool(torch.isfinite(loss).all()) for loss in train_losses]
    first = (
        f"train_loss broke first at inner step j = {finite.index(False)}"
        if False in finite
        else "every train_loss was finite"
    )
    raise NotFiniteError(
        f"theta_{len(finite)} of {bad}: expected finite values; got inf or nan, and {first}. Lower the learning rate."
    )


def broken(tensors: Tensors) -> str:
    """The names of the entries that are not finite, or the empty string."""
    return ", ".join(repr(k) for k, v in tensors.items() if not bool(torch.isfinite(v).all()))
